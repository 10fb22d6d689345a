"""Data that don't fit: streamed training gives the same bits, and memory stays bounded whatever their number."""

import gc

import numpy as np
import pytest
import torch
from conftest import make_windows

import batches
import embedding
import pretrain
from augment import Copies, augment_copies, make_generator
from batches import FromFile, InMemory, Streamed, draw_epoch, open_views, share_of
from bookkeeping import resume
from models import Contrastive
from plain import Alone, Plain

PRETRAIN_A = ("pretrain", "-d", "a")
MASK = {"mask_ratio": 0.15, "max_gram": 10, "mask_prob": 0.8, "replace_prob": 0.5}
CPU = torch.device("cpu")
PLAIN = Plain(Alone(CPU))


def result(project):
    """The bytes of all artefacts of pretraining."""
    return {name: data for name, data in project.files().items() if name.startswith("saved/")}


@pytest.mark.parametrize("views", ["once", "epoch"])
@pytest.mark.parametrize("method", ["channel_aug", "rotation_random", "jitter"])
def test_streamed_training_gives_the_same_bits(project, capsys, views, method):
    project.config("pretrain", views=views)
    project.run(*PRETRAIN_A, "-am", method)
    in_memory = result(project)
    assert "batch by batch" not in capsys.readouterr().out
    project.run(*PRETRAIN_A, "-am", method, "--memory_gb", 0.0001)
    assert "of the 0.0001 GB there are for them: they are made batch by batch" in capsys.readouterr().out
    assert result(project) == in_memory


def test_a_run_may_go_on_streamed_where_it_stopped_in_memory(project, monkeypatch):
    """And the epochs are drawn in sections: the state is the same between any two epochs."""
    monkeypatch.setattr(resume, "COPY_SECONDS", 0)
    monkeypatch.setattr(batches, "SECTION", 128)  # two steps of 2 x 32 visits
    project.run(*PRETRAIN_A)
    undisturbed = result(project)
    original = pretrain.epoch_row
    for stop, flags in ((1, ()), (2, ("--memory_gb", 0)), (3, ())):

        def interrupted(epoch, *more, stop=stop):
            if epoch == stop:
                raise KeyboardInterrupt
            return original(epoch, *more)

        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "epoch_row", interrupted)
            with pytest.raises(KeyboardInterrupt):
                project.run(*PRETRAIN_A, *flags)
    project.run(*PRETRAIN_A, "--memory_gb", 0)
    assert result(project) == undisturbed


# ------------------------------------------------------------------------------------------ in parts and pieces


def test_sections_of_an_epoch_are_whole_steps_and_visit_every_row_once(monkeypatch):
    monkeypatch.setattr(batches, "SECTION", 48)
    head = Contrastive(8)
    sections = list(draw_epoch([50], 8, 6, (120, 6), MASK, head, make_generator("cpu", 1)))
    assert [len(draw.order) for draw in sections] == [3, 3]
    order = torch.cat([draw.order for draw in sections])
    assert order.shape == (6, 8) and len(order.unique()) == 48
    for draw in sections:
        assert draw.masks.positions.shape == (3, 16, 18) and draw.masks.values.shape == (3, 16, 18, 6)
        assert draw.keep["inner"].shape == (3, 16, 64)


@pytest.mark.parametrize("SECTION", [48, 1 << 17])
def test_the_shares_of_processes_are_parts_of_the_same_draw(monkeypatch, SECTION):
    monkeypatch.setattr(batches, "SECTION", SECTION)
    head = Contrastive(8)

    def drawn(mine):
        generator = make_generator("cpu", 1)
        return [share_of(draw, mine) for draw in draw_epoch([50], 8, 6, (120, 6), MASK, head, generator)]

    for whole, left, right in zip(drawn(slice(None)), drawn(slice(0, 4)), drawn(slice(4, 8)), strict=True):
        assert torch.equal(torch.cat([left.order, right.order], dim=1), whole.order)
        parts = list(zip(left.masks, right.masks, whole.masks, strict=True))
        parts += [(left.keep[name], right.keep[name], whole.keep[name]) for name in whole.keep]
        for mine, theirs, all_of_it in parts:
            (weak1, strong1), (weak2, strong2) = (part.unflatten(1, (2, 4)).unbind(1) for part in (mine, theirs))
            assert torch.equal(torch.cat([weak1, weak2, strong1, strong2], dim=1), all_of_it)


def test_windows_from_a_file_are_those_that_are_asked_for(tmp_path):
    data = make_windows(20)[0].astype(np.float64)
    np.save(tmp_path / "x.npy", data)
    windows = FromFile(np.load(tmp_path / "x.npy", mmap_mode="r"), CPU)
    index = torch.tensor([7, 3, 3, 19, 0])
    assert torch.equal(windows[index], torch.from_numpy(data).float()[index])


def test_the_limit_decides_where_the_views_live(capsys):
    data = make_windows(20)[0]
    needed = 4 * 720 * (20 + 2 * 60)
    parts = [np.arange(40), np.arange(40, 60)]
    for limit, kind in ((needed / 1e9, InMemory), ((needed - 1) / 1e9, Streamed), (None, InMemory)):
        made = open_views(PLAIN, data, parts, "channel_aug", 1, limit)
        assert [type(views) for views in made] == [kind, kind] and list(map(len, made)) == [40, 20]
    assert capsys.readouterr().out.count("batch by batch") == 1
    assert 0 < batches.free_memory(CPU) < 1e13


@pytest.mark.parametrize("method", ["channel_aug", "scaling", "permutation", "none"])
def test_streamed_views_are_those_in_memory(method):
    data = make_windows(20)[0]
    parts = [np.random.RandomState(0).permutation(20 * (1 if method == "none" else 6))]
    (whole,), (streamed,) = (open_views(PLAIN, data, parts, method, 1, limit) for limit in (1, 0))
    n = len(whole)
    order = torch.randperm(n)[: n // 5 * 5].view(-1, 5)
    for epoch in (None, 3):
        if epoch:
            whole.renew(1, epoch), streamed.renew(1, epoch)
        for step in streamed.batches(order):
            assert torch.equal(streamed.batch(order[step]), whole.batch(order[step]))
        assert step == len(order) - 1
        assert torch.equal(streamed.between(3, 11), whole.between(3, 11))


# ------------------------------------------------------------------------------------------ memory


def test_streamed_training_holds_neither_the_data_nor_their_views(project, monkeypatch):
    """Of all tensors of windows that are alive in a step, the largest is a batch of both views."""
    largest, original = [], pretrain.train_step

    def windows():
        return [x for x in gc.get_objects() if type(x) is torch.Tensor and x.shape[-2:] == (120, 6)]

    def noted(*args):
        alive = [x for x in windows() if id(x) not in others]
        largest.append(max(x.untyped_storage().nbytes() for x in alive) // (4 * 720))
        return original(*args)

    monkeypatch.setattr(pretrain, "train_step", noted)
    project.dataset("a", 200, seed=1)
    project.config("pretrain", n_epochs=1, n_epochs_cl=1, total_steps=3)
    gc.collect()
    before = windows()  # of other tests' fixtures; held here, so that no new tensor gets the number of one of them
    others = set(map(id, before))
    project.run(*PRETRAIN_A, "--memory_gb", 0)
    assert largest == [2 * 32] * 3, "in windows"
    largest.clear()
    project.run(*PRETRAIN_A)
    assert largest == [2 * 6 * 160] * 3


def test_streaming_makes_no_more_views_at_once_than_a_batch(project, monkeypatch):
    sizes = []
    original = batches.two_views
    monkeypatch.setattr(batches, "two_views", lambda x, *more: sizes.append(len(x)) or original(x, *more))
    project.run(*PRETRAIN_A, "--memory_gb", 0)
    assert max(sizes) <= 32 and sizes.count(32) == 4 * 4
    sizes.clear()
    project.run(*PRETRAIN_A)
    assert len(sizes) == 2, "in memory they are made once"


# ------------------------------------------------------------------------------------------ embedding


@pytest.mark.parametrize("method", ["channel_aug", "rotation_random", "jitter", "scaling", "permutation", "none"])
def test_copies_made_piece_by_piece_are_those_made_at_once(tmp_path, method):
    data = make_windows(23)[0]
    np.save(tmp_path / "x.npy", data)
    copies = Copies(FromFile(np.load(tmp_path / "x.npy", mmap_mode="r"), CPU), method, 4)
    pieces = torch.cat([copies[start : start + 10] for start in range(0, len(copies), 10)])
    assert torch.equal(pieces, augment_copies(torch.from_numpy(data), method, 4))


def test_embedding_never_holds_more_than_a_batch_of_copies(trained, monkeypatch):
    before = trained.files()
    sizes = []
    original = Copies.__getitem__
    monkeypatch.setattr(Copies, "__getitem__", lambda self, rows: sizes.append(1) or original(self, rows))
    monkeypatch.setattr(embedding, "encode", lambda *args, encode=embedding.encode: encode(*args, 10))
    trained.run("embedding", "-d", "a")
    assert len(sizes) == -(-6 * 32 // 10)
    assert np.array_equal(np.load("embed/label_a_20_120.npy"), np.tile(make_windows(32, seed=1)[1], (6, 1, 1)))
    assert trained.files()["embed/label_a_20_120.npy"] == before["embed/label_a_20_120.npy"]
