"""How pretraining's memory and time grow with the data, in memory and streamed, in one process or in several.

    python -m benchmarks.scale -g cpu                                        1000 to 1 000 000 windows, on the CPU
    python -m benchmarks.scale --sizes 1000000 --processes 1 2 --steps 128   a million, on one GPU and on two (torchrun)

Makes up the windows in a temporary folder (2.9 GB a million) and runs pretrain.py on them, without its validation; each
line is a process of its own. Writes results/scale.{json,png} and prints a table: `set-up` is all before the first step,
`memory` what it allocates at most (a GPU's memory there; else without the mapped file's pages, which the system
takes back when it needs them), `loss` what streaming costs: on a CPU the share of a step's time in which its views are
made, on a GPU, where that goes on beside the steps, the difference of the two times.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

import batches
import pretrain
from augment import COPIES
from bookkeeping import artefacts, plots
from bookkeeping.commands import Parser, UserError, run
from bookkeeping.plots import COLOURS, STYLE, plt

ROOT = Path(__file__).resolve().parents[1]
HALVES = ("masked", "masked + contrastive")
ENTRY = {"sr": 20, "seq_len": 120, "dimension": 6, "activity_label_index": 0, "activity_label_size": 1}


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-g", "--gpu", help="index of the GPU, or cpu (default: the first GPU, else the CPU)")
    add("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000], help="numbers of windows")
    add("--most", type=int, default=1_000_000, help="leave out sizes above this")
    add("--processes", type=int, nargs="+", default=[1], help="numbers of processes, several by torchrun (default 1)")
    add("--modes", nargs="+", choices=("memory", "streamed"), default=["memory", "streamed"], help="default both")
    add("--memory_gb", type=float, default=4, help="leave out views in memory that take more than this (default 4)")
    add("--batch", type=int, default=512, help="windows in a step, of all processes together (default 512)")
    add("--steps", type=int, default=3, help="steps that are timed together (default 3; on a GPU take 128)")
    add("--rounds", type=int, default=5, help="so many times, after one that doesn't count; the fastest (default 5)")
    add("--work", help=argparse.SUPPRESS)  # in the processes that this command starts: the settings as JSON
    return parser.parse_args(argv)


def make_up(folder, count):
    """A data set `made` of so many windows: noise around gravity."""
    (folder / "dataset/made").mkdir(parents=True, exist_ok=True)
    (folder / "dataset/data_config.json").write_text(json.dumps({"made_20_120": ENTRY}))
    path = folder / "dataset/made/data_20_120.npy"
    data = np.lib.format.open_memmap(path, "w+", np.float32, (count, 120, 6))
    rng = np.random.default_rng(0)
    for start in range(0, count, 4096):
        data[start : start + 4096] = rng.standard_normal((len(data[start : start + 4096]), 120, 6), np.float32)
        data[start : start + 4096, :, 2] += 9.8
    data.flush()
    np.save(folder / "dataset/made/label_20_120.npy", np.zeros((count, 120, 1), np.uint8))


def anonymous():
    """Bytes this process has allocated, mapped files left out."""
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def work(settings):
    """Pretrain as `settings` say, up to where validation would begin, and write down what it took."""
    batches.SECTION = 2 * settings["batch"] * settings["steps"]
    epoch, make, marks, made, most = batches.Draws.epoch, batches.Source.__call__, [], [], [anonymous()]
    start, before = time.perf_counter(), most[0]

    def watch():
        while True:
            most[0] = max(most[0], anonymous())
            time.sleep(0.02)

    def mark():
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    def marked(draws, steps):
        for order in epoch(draws, steps):
            mark()
            yield order

    def timed(*arguments):
        began = time.perf_counter()
        views = make(*arguments)
        made.append(time.perf_counter() - began)
        return views

    def stop(*_):
        mark()
        if not int(os.environ.get("RANK", 0)):
            seconds = np.diff(marks)[1:] / settings["steps"]  # the first round records the step and warms up
            found = {
                "set_up_s": marks[0] - start,
                "step_s": min(seconds),
                "views_s": min(made, default=None),
                "memory_gb": (most[0] - before) / 1e9,
                "mapped_too_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
                "device": f"{torch.get_num_threads()} CPU threads",
                "torch": torch.__version__,
            }
            if torch.cuda.is_initialized():
                found["device"] = torch.cuda.get_device_name()
                found["memory_gb"] = torch.cuda.max_memory_reserved() / 1e9
            Path(settings["report"]).write_text(json.dumps(found))
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    batches.Draws.epoch, pretrain.validate, batches.Source.__call__ = marked, stop, timed
    pretrain.main(pretrain.get_args(settings["flags"]))


def measure(folder, args, windows, processes, mode, half):
    """One line of the table."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    train = json.loads((ROOT / "config/pretrain.json").read_text())
    rounds = min(args.rounds + 1, COPIES * int(0.8 * windows) // args.batch // args.steps)
    if rounds < 2:
        raise UserError(f"{windows} windows make too short an epoch for two rounds of --steps {args.steps}; lower it")
    train |= {"n_epochs": 1, "n_epochs_cl": HALVES.index(half)}
    train |= {"total_steps": args.steps * rounds, "batch_size": args.batch}
    (folder / "train.json").write_text(json.dumps(train))
    limit = "0" if mode == "streamed" else "1e6"
    flags = ["-d", "made", "-t", "train.json", "--quiet", "--restart", "--memory_gb", limit]
    flags += ["-g", args.gpu] if args.gpu else []
    settings = {"flags": flags, "batch": args.batch, "steps": args.steps, "report": str(report)}
    script = ["-m", "benchmarks.scale", "--work", json.dumps(settings)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    how = {"cwd": folder, "capture_output": True, "text": True, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run([sys.executable, *launcher, *script], **how)
    if not report.exists():
        raise RuntimeError(f"{windows} windows, {processes} processes, {mode}, {half}:\n{done.stdout}\n{done.stderr}")
    found = json.loads(report.read_text())
    row = {"windows": windows, "processes": processes, "mode": mode, "half": half}
    row |= found | {"windows_per_s": args.batch / found["step_s"]}
    print(json.dumps(row), flush=True)
    return row


def table(rows):
    """Markdown: one line a size, number of processes and half, in memory beside streamed."""
    lines = [
        "| windows | processes | half | set-up s: memory, streamed | memory GB | ms/step | windows/s | loss |",
        "|-:|-:|-|-:|-:|-:|-:|-:|",
    ]
    columns = (("set_up_s", 1, ".1f"), ("memory_gb", 1, ".2f"), ("step_s", 1e3, ".4g"), ("windows_per_s", 1, ".0f"))
    cases = dict.fromkeys((row["windows"], row["processes"], row["half"]) for row in rows)
    for case in cases:
        modes = {r["mode"]: r for r in rows if (r["windows"], r["processes"], r["half"]) == case}
        cells = []
        for key, scale, form in columns:
            both = [f"{modes[m][key] * scale:{form}}" if m in modes else "-" for m in ("memory", "streamed")]
            cells.append(", ".join(both))
        loss = "-"
        if "CPU" in rows[0]["device"] and "streamed" in modes:  # steps wait for the views; two runs differ by more
            loss = f"{modes['streamed']['views_s'] / modes['streamed']['step_s']:.1%}"
        elif len(modes) == 2:
            loss = f"{1 - modes['memory']['step_s'] / modes['streamed']['step_s']:.1%}"
        lines.append(f"| {case[0]} | {case[1]} | {case[2]} | {' | '.join(cells)} | {loss} |")
    return "\n".join(lines)


def draw(rows, path):
    """Memory and milliseconds a step against the number of windows."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for number, (mode, label) in enumerate((("memory", "in memory"), ("streamed", "streamed"))):
            for half, line in zip(HALVES, ("-", "--"), strict=True):
                case = (mode, half, rows[0]["processes"])
                found = [r for r in rows if (r["mode"], r["half"], r["processes"]) == case]
                windows, ms = [r["windows"] for r in found], [1e3 * r["step_s"] for r in found]
                points = {"color": COLOURS[number], "marker": "o", "ms": 4, "ls": line}
                right.plot(windows, ms, **points, label=f"{label}, {half}")
                if half == HALVES[0]:
                    left.plot(windows, [r["memory_gb"] for r in found], **points, label=label)
        for axis, title in ((left, "memory allocated (GB)"), (right, "milliseconds a step")):
            axis.set(title=title, xlabel="windows", xscale="log"), axis.legend(fontsize=8)
        left.set_yscale("log"), right.set_ylim(bottom=0)
        plots.save(figure, path)


def main(args):
    if args.work:
        return work(json.loads(args.work))
    rows = []
    with tempfile.TemporaryDirectory(prefix="crosshar_scale_") as folder:
        folder = Path(folder)
        for windows in (size for size in args.sizes if size <= args.most):
            make_up(folder, windows)
            needed = 2.88e-6 * windows * (1 + 2 * 0.9 * COPIES)  # GB: the windows, two views of nine rows in ten
            for processes in args.processes:
                for half in HALVES:
                    for mode in args.modes:
                        if mode == "streamed" or needed <= args.memory_gb:
                            rows.append(measure(folder, args, windows, processes, mode, half))

    machine = {"machine": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d")}
    artefacts.save_json("results/scale.json", machine | {"batch": args.batch, "rows": rows})
    draw(rows, Path("results/scale.png"))
    print(f"\n{rows[0]['device']}, torch {rows[0]['torch']}, {machine['date']}, {args.batch} windows a step\n")
    print(table(rows))
    return rows


if __name__ == "__main__":
    sys.exit(run(main, get_args, several=True))
