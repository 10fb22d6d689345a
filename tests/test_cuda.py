"""What only a GPU can show: the same losses there, recorded steps equal to plain ones, resume, determinism."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import MASK, ROOT, make_windows
from conftest import PAPER as ENCODER

import pretrain
import utils
from augment import draw_masks, instance_norm, make_generator
from batches import Draws, InMemory, open_views
from bookkeeping import commands
from fast.exact import Exact
from models import Contrastive, MaskedModel, draw_keep, losses
from plain import Alone, Plain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

GPU, CPU = Alone(torch.device("cuda", 0)), Alone(torch.device("cpu"))


@pytest.fixture(autouse=True)
def full_precision():
    """Other tests' TF32 must not reach these."""
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


def gradients(engine, both, B=96):
    """(losses, {parameter: gradient}) of one batch on the GPU, the same for every engine."""
    torch.manual_seed(0)
    model, head = MaskedModel(ENCODER).cuda().train(), Contrastive(72).cuda().train()
    generator = make_generator("cuda", 3)
    views = instance_norm(torch.randn(2, B, 120, 6, device="cuda", generator=generator))
    masks = draw_masks(2 * B, 120, 6, MASK, generator)
    keep = draw_keep(2 * B, 100, head.P_FF, generator)
    masked, contrastive = losses(engine, model, head, views, masks, keep, both)
    (6 * masked + contrastive if both else masked).backward()
    named = [*model.named_parameters("model"), *head.named_parameters("head")]
    return torch.stack([masked, contrastive]).detach(), {n: p.grad for n, p in named if p.grad is not None}


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 0.2)])
def test_fast_losses_equal_the_plain_ones_on_the_gpu(both, precision, tolerance):
    """Those of a GPU without Triton; tests/test_gpu.py has the others."""
    plain, wanted = gradients(Plain(GPU), both)
    ours, found = gradients(Exact(GPU, precision), both)
    torch.testing.assert_close(ours, plain, rtol=1e-4 if precision == "fp32" else 1e-2, atol=0)
    largest = max(float(gradient.norm()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        if name in found:
            assert (found[name] - gradient).norm() <= tolerance * max(float(gradient.norm()), 1e-2 * largest), name


@pytest.mark.parametrize("both", [False, True])
def test_a_recorded_step_does_what_the_step_does(both):
    def train(recorded):
        torch.manual_seed(0)
        engine, model, head = Exact(GPU), MaskedModel(ENCODER).cuda().train(), Contrastive(72).cuda().train()
        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], fused=True, capturable=True)
        networks = {"model": model, "head": head, "optimizer": optimizer}
        views = InMemory(torch.randn(2, 64, 120, 6, device="cuda", generator=make_generator("cuda", 1)))
        cfg, total = {"seed": 2, "batch_size": 32, "lambda1": 6, "lambda2": 1}, torch.zeros(2, device="cuda")
        draws = Draws(engine, [64], (120, 6), {"train": cfg, "mask": MASK}, head)
        draws.start(0)

        def step(both):
            total.add_(pretrain.train_step(engine, networks, views, draws, cfg, both))

        run = engine.recorded(step, [model, head], optimizer, [total, draws.index]) if recorded else step
        for _ in range(3):
            for order in draws.epoch(2):
                for _ in views.batches(order):
                    run(both)
            draws.ahead()
        states = (*model.state_dict().values(), *head.state_dict().values(), total)
        return torch.cat([tensor.flatten().float() for tensor in states])

    torch.testing.assert_close(train(True), train(False), rtol=1e-3, atol=1e-4)


def run_on_gpu(*flags):
    return pretrain.main(pretrain.get_args(["-d", "a", "-g", "0", "--quiet", *flags]))


def test_pretraining_on_the_gpu_learns_what_the_plain_path_learns(project):
    fast_run, plain_run = run_on_gpu("--precision", "fp32", "-s", "fast"), run_on_gpu("--plain", "-s", "plain")
    for ours, plain in zip(fast_run["history"], plain_run["history"], strict=True):
        assert ours["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-2)


def test_an_interrupted_run_on_the_gpu_continues_to_the_same_losses(project, monkeypatch):
    whole = run_on_gpu("-s", "whole")
    original = pretrain.epoch_row

    def interrupted(epoch, *rest):
        if epoch == 3:
            raise KeyboardInterrupt
        return original(epoch, *rest)

    monkeypatch.setattr("bookkeeping.resume.COPY_SECONDS", 0)
    monkeypatch.setattr(pretrain, "epoch_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_on_gpu("-s", "broken")
    monkeypatch.setattr(pretrain, "epoch_row", original)
    continued = run_on_gpu("-s", "broken")
    assert len(continued["history"]) == len(whole["history"])
    assert continued["history"][-1]["val_loss"] == pytest.approx(whole["history"][-1]["val_loss"], rel=1e-2)


def test_deterministic_runs_on_the_gpu_give_the_same_bits(project):
    try:
        for stem in ("one", "two"):
            run_on_gpu("--deterministic", "-s", stem)
    finally:
        torch.use_deterministic_algorithms(False)
    files = [project.folder / f"saved/pretrain_base_a_20_120/{stem}_masked_6_1.pt" for stem in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_gpu_is_used_without_a_flag_and_one_that_is_not_there_is_refused():
    assert utils.pick_device(None).type == "cuda"
    with pytest.raises(commands.UserError, match="no such GPU; GPUs here: 0"):
        utils.pick_device(99)


# ------------------------------------------------------------------------------------------ streaming and torchrun


@pytest.mark.parametrize("method", ["channel_aug", "rotation_random", "jitter", "permutation"])
def test_streamed_views_are_those_in_memory_and_those_of_the_cpu(method):
    """No step waits for another here: every batch must be there when it is read, and stay until it was."""
    data = make_windows(300)[0]
    parts, places = [np.arange(1800)], ((GPU, 0), (GPU, 1), (CPU, 1))  # where, and how many GB may live there
    (streamed,), (whole,), (plain,) = (open_views(Exact(team), data, parts, method, 1, gb) for team, gb in places)
    torch.testing.assert_close(whole.views.cpu(), plain.views, rtol=1e-3, atol=1e-4)
    order = torch.randperm(1800, device=GPU.device).view(-1, 50).repeat(5, 1)
    busy, seen = torch.randn(2048, 2048, device=GPU.device), []
    for step in streamed.batches(order):
        busy = (busy @ busy).clamp(-1, 1)
        seen.append(streamed.batch(order[step]).clone())
    torch.testing.assert_close(torch.stack(seen), torch.stack([whole.batch(rows) for rows in order]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("views", ["once", "epoch"])
def test_streamed_training_on_the_gpu_learns_the_same(project, monkeypatch, views):
    monkeypatch.setattr("batches.SECTION", 128)  # two steps of 2 x 32 visits
    project.config("pretrain", views=views)
    in_memory = run_on_gpu("--precision", "fp32")
    streamed = run_on_gpu("--precision", "fp32", "--memory_gb", "0")
    for ours, other in zip(streamed["history"], in_memory["history"], strict=True):
        assert ours["val_loss"] == pytest.approx(other["val_loss"], rel=1e-2)
    assert streamed["history"][0]["val_loss"] == pytest.approx(in_memory["history"][0]["val_loss"], rel=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
@pytest.mark.parametrize("record", [False, True])
def test_two_gpus_learn_what_one_learns(project, record):
    one = run_on_gpu("--precision", "fp32", "-s", "one")
    script = project.folder / "script.py"
    script.write_text(f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import plain
from fast.exact import Exact
if not {record}:
    Exact.recorded = plain.Plain.recorded
runpy.run_path({str(ROOT / "pretrain.py")!r}, run_name="__main__")
""")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = ["-d", "a", "--precision", "fp32", "-s", "two", "--quiet"]
    done = subprocess.run([*launcher, script, *flags], cwd=project.folder, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lowest validation loss") == 1
    losses = (project.folder / "saved/pretrain_base_a_20_120/two_losses_6_1.csv").read_text().splitlines()[1:]
    for row, line in zip(one["history"], losses, strict=True):
        assert float(line.split(",")[-1]) == pytest.approx(row["val_loss"], rel=1e-2)
