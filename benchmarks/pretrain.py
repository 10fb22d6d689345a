"""How fast the stages are on this machine, plain path and fast path in one run, beside what the machine could do.

    python -m benchmarks.pretrain -d uci                 on the first GPU, else the CPU
    python -m benchmarks.pretrain -d uci -g cpu --rounds 3

Reads dataset/uci (or, with --windows N, makes up N windows), writes results/benchmark_pretrain.json and prints it as
tables. Plain and fast steps take turns, a large matrix product between them, so that a busy machine slows all alike;
`products` says how many 4096^3 float32 products (on a CPU the yardstick of this project) an epoch takes.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import classifier
import fast
import inference
import plain
import pretrain
import utils
from augment import augment_copies, make_generator, two_views
from batches import Draws, InMemory
from bookkeeping import artefacts, configs
from bookkeeping.commands import Parser, run
from models import Classifier, MaskedModel, encode

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("pretrain.py", "embedding.py", "classifier.py", "cross_dataset_test.py")
BATCH = 512  # windows in a step, as in config/pretrain.json
SIDE = 4096  # of the matrices whose product is the yardstick


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", default="uci", help="data set to take the windows of (default uci)")
    parser.add_argument("-g", "--gpu", help="index of the GPU, or cpu (default: the first GPU, else the CPU)")
    parser.add_argument("--windows", type=int, help="make up this many windows instead")
    parser.add_argument("--rounds", type=int, default=5, help="turns of plain, fast and product (default 5)")
    which = "default fp32, on a GPU all, on a CPU with AMX also bf16"
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "tf32", "bf16"), help=which)
    parser.add_argument("--no_plain", action="store_true", help="the fast path only")
    return parser.parse_args(argv)


def timed(fn, device, repeat=1):
    """Seconds that `repeat` calls of fn take together, all queued work included."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        fn()
    synchronize()
    return time.perf_counter() - start


def limits(device):
    """What the device can do: FLOP/s of a large float32 (and bf16) product, bytes/s of a large copy."""
    n = SIDE if device.type == "cpu" else 2 * SIDE
    a = torch.randn(n, n, device=device)
    large = torch.empty(1 << (26 if device.type == "cpu" else 28), device=device)
    repeat = 1 if device.type == "cpu" else 10
    found = {}
    torch.set_float32_matmul_precision("highest")
    products = {"fp32": lambda: a @ a}
    if device.type == "cuda" or fast.has_amx():
        half = a.bfloat16()
        products["bf16"] = lambda: half @ half
    for name, product in products.items():
        found[f"{name}_flops"] = 2 * n**3 * repeat / min(timed(product, device, repeat) for _ in range(3))
    found["copy_bytes"] = 8 * large.numel() * repeat / min(timed(large.clone, device, repeat) for _ in range(3))
    return found


def step_flops(both):
    """Floating-point operations of one training step (two views a window) by the plain formulas, backward included."""
    T, C, D, F, M, P = 120, 6, 72, 144, 18, 100
    block = T * (C * D + 3 * D * D + 2 * T * D + D * D + 2 * D * F)
    head = (T + 1) * (D * P + 3 * P * P + 2 * (T + 1) * P + P * P + 2 * P * 64) if both else 0
    return 3 * 2 * 2 * BATCH * (block + M * (D * D + D * C) + head)


def load_copies(args, device):
    """A data set's windows with their copies, or as many made-up ones, on the device: (6N, T, C)."""
    if args.windows:
        windows = torch.randn(args.windows, 120, 6, device=device)
    else:
        data = utils.load_windows(args.dataset, "20_120")[0]
        windows = torch.tensor(np.asarray(data, dtype=np.float32), device=device)
    return augment_copies(windows, "channel_aug", 0)


def step_bytes(both):
    """Bytes that a step moves if each activation of the plain formulas is written once and read once more."""
    T, D, F, H, P = 120, 72, 144, 4, 100
    block = T * (11 * D + 2 * F + H * T)
    head = (T + 1) * (10 * P + 2 * 64 + H * (T + 1)) if both else 0
    return 2 * 4 * 2 * BATCH * (block + head)


def peak_memory(fn, device):
    """GiB at most while fn runs: allocated on a GPU, of the whole process on a CPU (None where Linux doesn't say)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        timed(fn, device)
        return torch.cuda.max_memory_allocated(device) / 2**30
    with contextlib.suppress(OSError, AttributeError, StopIteration):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier steps left for the next ones
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size counts from here
        fn()
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def make_step(engine, both, windows):
    """A function that trains one step on `windows` views, as pretrain.py does it."""
    train = {"seed": 0, "batch_size": BATCH, "lr": 1e-3, "lambda1": 6, "lambda2": 1}
    mask = configs.read_config("config/mask.json", configs.MASK_KEYS)
    config = {"train": train, "mask": mask, "model": configs.read_encoder_config("v1")}
    device = engine.device
    networks, _ = pretrain.make_networks(utils.Files("uci", "20_120"), config, device, repeat="")
    model, head, optimizer = networks.values()
    model.train(), head.train()
    views = InMemory(two_views(windows, make_generator(device, 0)))
    draws = Draws(engine, [len(windows)], windows.shape[1:], config, head)
    draws.start(0)
    list(draws.epoch(1))
    total = torch.zeros(2, device=device)

    def step(both):
        draws.index.zero_()
        total.add_(pretrain.train_step(engine, networks, views, draws, train, both))

    return functools.partial(engine.recorded(step, [model, head], optimizer, [total, draws.index]), both)


def measure_steps(device, windows, precisions, rounds, with_plain, bounds):
    """One row a half and precision: milliseconds a step on the plain and the fast path, their ratio, limits."""
    gpu, model_cfg = "cpu" if device.type == "cpu" else device.index, configs.read_encoder_config("v1")
    a = torch.randn(SIDE, SIDE, device=device)
    rows = []
    for precision in precisions:
        for both in (False, True):
            engine = fast.engine(gpu, encoder=model_cfg, training=True, precision=precision)
            candidates = {"fast": make_step(engine, both, windows)}
            if with_plain:
                candidates["plain"] = make_step(plain.Plain(engine.team), both, windows)
            repeat = 30 if device.type == "cuda" else 1
            compiled = {name: timed(step, device) for name, step in candidates.items()}
            seconds = {name: [] for name in (*candidates, "product")}
            peak = {name: peak_memory(step, device) for name, step in candidates.items()}
            for _ in range(rounds):
                for name, step in candidates.items():
                    seconds[name].append(timed(step, device, repeat) / repeat)
                seconds["product"].append(timed(lambda: a @ a, device, repeat) / repeat)
            median = {name: statistics.median(values) for name, values in seconds.items()}
            flops = bounds["bf16_flops" if precision == "bf16" else "fp32_flops"]
            row = {
                "precision": precision,
                "half": "masked + contrastive" if both else "masked",
                "fast_ms": 1e3 * median["fast"],
                "plain_ms": 1e3 * median["plain"] if with_plain else None,
                "ratio": median["plain"] / median["fast"] if with_plain else None,
                "fast_products": median["fast"] / median["product"],
                "plain_products": median["plain"] / median["product"] if with_plain else None,
                "share_of_arithmetic": step_flops(both) / median["fast"] / flops,
                "share_of_memory": step_bytes(both) / median["fast"] / bounds["copy_bytes"],
                "first_call_s": compiled["fast"],
                "peak_gib": peak["fast"],
                "plain_peak_gib": peak.get("plain"),
            }
            rows.append(row)
    return rows


def measure_stages(device, windows):
    """Windows a second of the encoder (before any file is written) and of encoder and classifier together."""
    cfg = configs.read_encoder_config("v1")
    engine = fast.engine("cpu" if device.type == "cpu" else device.index, encoder=cfg)
    model = MaskedModel(cfg).to(device)
    network = Classifier(configs.read_classifier_config("v1"), 4).to(device)
    cpu_windows = windows.cpu()

    def embed():
        for _ in encode(engine, model, cpu_windows):
            pass

    def test():
        inference.classify(engine, model, network, cpu_windows)

    found = {}
    for name, fn in (("embedding", embed), ("cross_dataset", test)):
        with torch.inference_mode():
            fn()
            found[f"{name}_windows_per_s"] = len(windows) / min(timed(fn, device) for _ in range(3))
            found[f"{name}_peak_gib"] = peak_memory(fn, device)
    return found


def measure_classifier(device, rows, rounds, precision="fp32", epochs=100, rate=0.1):
    """The classifier's `epochs` epochs at label rate `rate` on `rows` representations: seconds, products, peak memory.

    Computed from `rounds` steps and validations, products in between.
    """
    model = Classifier(configs.read_classifier_config("v1"), 4).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    generator = make_generator(device, 0)
    engine = fast.engine("cpu" if device.type == "cpu" else device.index, precision=precision)
    B = 128
    h, y = torch.randn(B, 120, 72, device=device), torch.randint(4, (B,), device=device)
    held_out = torch.randn(256, 120, 72, device=device)
    a = torch.randn(SIDE, SIDE, device=device)
    parts = {
        "step": lambda: classifier.train_epoch(engine, model, optimizer, h, y, [B], B, 1, generator),
        "validation": lambda: classifier.predict(model, held_out, engine.logits),
        "product": lambda: a @ a,
    }
    peak = peak_memory(parts["step"], device)
    seconds = {name: [] for name in parts}
    for _ in range(rounds):
        for name, fn in parts.items():
            seconds[name].append(timed(fn, device))
    step, validation, product = (statistics.median(seconds[name]) for name in parts)
    steps = -(-int(rate * int(0.8 * rows)) // B)
    total = epochs * (steps * step + 0.1 * rows / len(held_out) * validation)
    found = {"s": total, "products": total / product, "step_ms": 1e3 * step, "peak_gib": peak}
    kind = f" {precision}" if precision != "fp32" else ""
    return {f"classifier_{name}{kind}": value for name, value in found.items()}


def start_up():
    """Seconds from typing a command to its --help, and to having imported all it needs."""
    found = {}
    for script in SCRIPTS:
        for name, command in (("help", [script, "--help"]), ("import", ["-c", f"import {script[:-3]}"])):
            runs = []
            for _ in range(3):
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
                runs.append(time.perf_counter() - start)
            found[f"{script} {name}"] = min(runs)
    return found


def main(args):
    device = utils.pick_device(args.gpu if args.gpu in (None, "cpu") else int(args.gpu))
    if device.type == "cpu":
        fast.keep_freed_memory()
    windows = load_copies(args, device)
    training = windows[: int(0.8 * len(windows))]
    everywhere = ["fp32", "tf32", "bf16"] if device.type == "cuda" else ["fp32", "bf16"] if fast.has_amx() else ["fp32"]
    precisions = args.precisions or everywhere
    bounds = limits(device)
    rows = measure_steps(device, training, precisions, args.rounds, not args.no_plain, bounds)
    steps = len(training) // BATCH
    schedule = {
        precision: sum(800 * steps * row["fast_ms"] / 1e3 for row in rows if row["precision"] == precision)
        for precision in precisions
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    classifiers = {}
    for precision in precisions if device.type == "cpu" else ["tf32"]:
        classifiers |= measure_classifier(device, len(windows), args.rounds, precision)
    result = {
        "device": name,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "dataset": args.dataset if not args.windows else f"{args.windows} made-up windows",
        "steps_per_epoch": steps,
        "limits": bounds,
        "steps": rows,
        "training_steps_of_1600_epochs_s": schedule,
        "stages": measure_stages(device, windows) | classifiers,
        "start_up_s": start_up(),
    }
    artefacts.save_json("results/benchmark_pretrain.json", result)

    shown = json.dumps({key: f"{value:.3g}" for key, value in bounds.items()})
    of = f"{result['dataset']}, {steps} steps an epoch"
    print(f"{name}, torch {torch.__version__}, {result['date']}: {of}; limits {shown}\n")
    times = "plain ms/step | fast ms/step | ratio | plain products/epoch | fast products/epoch"
    shares = "share of arithmetic | share of memory | plain peak GiB | fast peak GiB"
    print(f"| precision | half | {times} | {shares} |\n" + "|-" * 11 + "|")
    for row in rows:
        cells = [row[key] for key in ("plain_ms", "fast_ms", "ratio", "plain_products", "fast_products")]
        cells[3:] = [steps * products if products else None for products in cells[3:]]
        cells += [row[key] for key in ("share_of_arithmetic", "share_of_memory", "plain_peak_gib", "peak_gib")]
        print(f"| {row['precision']} | {row['half']} | " + " | ".join(f"{c:.4g}" if c else "-" for c in cells) + " |")
    for precision, seconds in schedule.items():
        print(f"1600 epochs, {precision}: {seconds:.0f} s of training steps")
    for key, value in (result["stages"] | result["start_up_s"]).items():
        print(f"{key}: {value:.4g}")
    return result


if __name__ == "__main__":
    sys.exit(run(main, get_args))
