"""Each benchmark runs to its end, on little: what they measure changes under them, and nobody runs them every day."""

import math

import pytest
import torch

from benchmarks import agreement, prepare, pretrain, scale, step, whole
from bookkeeping.commands import UserError


def run(benchmark, *flags):
    return benchmark.main(benchmark.get_args([str(flag) for flag in flags]))


def test_stages_on_both_paths(tmp_path, monkeypatch, capsys):
    """The start of the scripts, which takes longest, is left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "BATCH", 16), monkeypatch.setattr(pretrain, "SIDE", 64)
    monkeypatch.setattr(pretrain, "start_up", dict)
    found = run(pretrain, "--windows", 20, "--rounds", 1, "-g", "cpu", "--precisions", "fp32")
    assert [row["half"] for row in found["steps"]] == ["masked", "masked + contrastive"]
    numbers = [value for row in found["steps"] for value in row.values() if not isinstance(value, str)]
    numbers += found["stages"].values()
    assert all(math.isfinite(value) and value > 0 for value in numbers)
    assert "1600 epochs, fp32" in capsys.readouterr().out


def test_paths_side_by_side(project, monkeypatch):
    monkeypatch.setattr(agreement, "ROOT", project.folder)
    flags = ("-d", "a", "-td", "b", "--seeds", 1, "--epochs", 2, "--classifier_epochs", 1, "--batch_sizes", 16, 8)
    found = run(agreement, *flags)
    assert found["paths"]["fast"]["agree"] and len(found["runs"]) == 2
    with pytest.raises(UserError, match="does not agree"):
        run(agreement, *flags, "--tolerance", 0)


def test_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = run(scale, "-g", "cpu", "--sizes", 50, "--batch", 32, "--steps", 1, "--rounds", 1)
    assert [(row["mode"], row["half"]) for row in rows] == [
        (m, h) for h in scale.HALVES for m in ("memory", "streamed")
    ]
    assert all(row["step_s"] > 0 for row in rows)


def test_preparing(tmp_path):
    found = run(prepare, "--rows", 200_000, "--folder", tmp_path)
    assert found["status"] == 0 and found["windows"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="what they say without a GPU")
def test_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        run(step, "--windows", 100)
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        run(whole, "--work", "0 0")
