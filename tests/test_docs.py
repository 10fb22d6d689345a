"""What README.md and docs/ speak of is there: commands, flags, files, names, links, and where a figure comes from."""

import argparse
import ast
import datetime
import hashlib
import importlib
import re
import shlex
import statistics

import pytest
from conftest import ROOT

from experiments import scores

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path: path.read_text(encoding="utf-8") for path in PAGES}
FOLDERS = ("config", "dataset", "docs", "experiments", "fast", "v2", "bookkeeping", "tests", "benchmarks")
PYTHON = sorted(ROOT.glob("*.py")) + [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
SOURCE = {path: path.read_text(encoding="utf-8") for path in PYTHON}
SETTINGS = "".join(path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).glob("*.json"))
OTHERS = {"make", "source", "for", "do", "done", "[", "echo", "nvidia-cuda-mps-control"}  # not ours, in shell blocks
PLACES = {"NAME": "uci", "$source": "uci", "$target": "motion", "mine": "uci", "S": "1", "N": "1", "X": "1"}


def place(path):
    return str(path.relative_to(ROOT))


def blocks(text):
    """The fenced blocks of a page: [(language, lines)]."""
    return [(kind, body.splitlines()) for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def spans(text):
    """The code spans of a page's prose, each on one line."""
    return [
        " ".join(span.split())
        for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    ]


def commands(text):
    """Every command of a page, as a list of words: the lines of its shell blocks, and spans that call Python."""
    lines = [line for kind, body in blocks(text) if kind == "shell" for line in body]
    lines += [span for span in spans(text) if re.match(r"(\S+=\S+ )?(python|torchrun|\.venv/bin/python) ", span)]
    for line in lines:
        for part in re.split(r"&&|\|\|?|;", re.sub(r"(^|\s)#.*", "", line)):
            if words := shlex.split(part):
                yield words


def script_of(words):
    """(the source file that a command runs, its flags); None for a command that is not this project's."""
    if words[0] == "torchrun":
        assert words[1].startswith("--nproc_per_node="), words
        words = ["python", *words[2:]]
    if words[0] not in ("python", ".venv/bin/python"):
        assert words[0] in OTHERS, f"{words[0]}: what runs {' '.join(words)}?"
        return None
    if words[1] == "-m":
        return None if words[2] == "pytest" else (words[2].replace(".", "/") + ".py", words[3:])
    return None if words[1] == "…" else (words[1], words[2:])


def module_of(name):
    assert (ROOT / name).is_file(), f"no file {name}"
    return importlib.import_module(name.removesuffix(".py").replace("/", "."))


def accept(words):
    """Have a command's own script read its flags; returns them, None for other commands."""
    if (found := script_of(words)) is None:
        return None
    flags = [PLACES.get(word, word) for word in found[1]]
    if found[0] == "dataset/prepare.py" and "--recordings" in flags:
        flags[flags.index("-d") + 1] = "mine"  # there a built-in set is refused
    try:
        return module_of(found[0]).get_args(flags)
    except SystemExit:
        pytest.fail(f"{' '.join(words)}: its script doesn't accept that")


def versions():
    """Names that -mv and --variants may have, by the configuration's keys."""
    return set(re.findall(r'"(?:base_|transformer_)?(\w+)": *\{', SETTINGS)) | {"v1", "all", "all_v2"}


@pytest.fixture(scope="module")
def flags():
    """The flags of all scripts together."""

    class Stop(Exception):
        pass

    found = {"-h", "--help"}

    def record(parser, *_):
        found.update(flag for action in parser._actions for flag in action.option_strings)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", record)
        for path in PYTHON:
            if re.search(r"^def get_args\(argv=None\):", SOURCE[path], re.M):
                with pytest.raises(Stop):
                    module_of(place(path)).get_args([])
    return found


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(TEXT[ROOT / "README.md"].splitlines()) <= 200
    for page in PAGES[1:]:
        assert f"({place(page)})" in TEXT[ROOT / "README.md"], f"README.md does not link {place(page)}"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_nothing_is_left_to_be_filled_in(page):
    left = re.findall(r"@[A-Z0-9]+@|\bTODO\b|\bFIXME\b|\bTBD\b|^[A-Z]{4,}$|\*\* [A-Z]{6,}$", TEXT[page], re.M)
    assert not left, f"{place(page)}: {left}"
    assert TEXT[page].count("```") % 2 == 0, f"{place(page)}: a block is not closed"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_command_is_accepted_by_its_script(page):
    for words in commands(TEXT[page]):
        args = accept(words)
        named = [*(getattr(args, "variants", None) or []), getattr(args, "model_version", None) or "v1"]
        unknown = [name for name in named if name not in versions() and name != "uci"]  # uci is NAME's stand-in
        assert not unknown, f"{place(page)}: {' '.join(words)}: no version or variant {unknown}"
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_flag_exists(page, flags):
    for span in spans(TEXT[page]):
        if re.match(r"--?[a-z]", span):
            assert span.split()[0] in flags, f"{place(page)}: no script has {span}"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_path_exists(page):
    """Paths into the project's folders; windows (dataset/NAME/...) are made by whoever reads on."""
    for name in re.findall(rf"(?<![\w/.])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", TEXT[page]):
        made = name.startswith("dataset/") and not name.endswith((".py", ".json")) or "NAME" in name
        assert made or (ROOT / name).exists(), f"{place(page)} speaks of {name}"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_name_is_in_the_source(page):
    """A code span that is a name or a key is a word of some source file or configuration."""
    words = set(re.findall(r"\w+", "".join(SOURCE[p] for p in PYTHON if p.parent.name != "tests") + SETTINGS))
    for span in spans(TEXT[page]):
        name = re.sub(r"\(.*\)$|\.\*$", "", span)
        if re.fullmatch(r"[A-Za-z]\w*", name):  # some columns are another's name with source_ in front
            assert {name, name.removeprefix("source_")} & words, f"{place(page)}: {span} is nowhere in the source"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_module_holds_what_is_named_of_it(page):
    for module, member in re.findall(r"(?<![\w-])([a-z]\w*(?:\.[a-z]\w*)*)\.([A-Za-z_]\w*)", TEXT[page]):
        at = ROOT / module.replace(".", "/")
        source = next((f for f in (at.with_suffix(".py"), at / "__init__.py") if f in SOURCE), None)
        if source is None or member in ("py", "md", "json") or (at / f"{member}.py") in SOURCE:
            continue
        body = ast.parse(SOURCE[source]).body
        names = {node.name for node in body if hasattr(node, "name")}
        values = [node for part in body if isinstance(part, ast.Assign) for node in ast.walk(part)]
        names |= {node.id for node in values if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        assert member in names, f"{place(page)}: {module} has no {member}"


def anchors(text):
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_link_resolves(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{place(page)} links {link}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{place(page)} links {link}"


def rows():
    return [row for models in scores.read().values() for row in models.values()]


def test_every_figure_has_its_command_date_and_runs():
    for row in rows():
        where = f"{row['source']} -> {row['target']}, {row['model']}"
        assert datetime.date.fromisoformat(row["date"]) and int(row["runs"]) >= 1, where
        assert row["model"] in scores.MODELS, where
        assert all(0 < float(row[key]) < 1 for key in ("accuracy", "f1_macro")), where
        if row["model"] != "released code":
            assert accept(shlex.split(row["command"])) is not None, where


def test_the_picture_was_drawn_from_the_table():
    picture = scores.TABLE.with_suffix(".png").read_bytes()
    assert hashlib.sha256(scores.TABLE.read_bytes()).hexdigest().encode() in picture, "run python -m experiments.scores"
    assert len(picture) < 100_000


@pytest.mark.parametrize(
    ("name", "model"), [("`-mv v1`", "v1"), ("`-mv v2`", "v2"), ("random forest", "random forest")]
)
def test_the_readme_averages_what_the_table_holds(name, model):
    (line,) = [line for line in TEXT[ROOT / "README.md"].splitlines() if line.startswith(f"| {name}")]
    accuracy, f1 = re.search(r"(0\.\d+) ± [\d.]+ / (0\.\d+) ± [\d.]+", line).groups()
    mine = [row for row in rows() if row["model"] == model]
    for said, key in ((accuracy, "accuracy"), (f1, "f1_macro")):
        assert float(said) == pytest.approx(statistics.mean(float(row[key]) for row in mine), abs=1.1e-3), (model, key)
