"""Where the time of `python pretrain.py -d uci` goes on a GPU, from its start to its end.

    python -m benchmarks.whole -d uci --runs 3                        with the caches as they are
    python -m benchmarks.whole -d uci --runs 3 --first                as the first time: Triton compiles every kernel
    python -m benchmarks.whole -d uci -t short.json --shared 49152    as on a GPU with so little shared memory a block

Each run is a process of its own that runs pretrain.py's main under a clock: GPU time where steps and validation are
meant, and `between` what the GPU waits for meanwhile. Prints seconds; writes results/whole.json.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bookkeeping import artefacts
from bookkeeping.commands import Parser, UserError, run

HALVES = ("masked", "masked + contrastive")


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-d", "--dataset", default="uci", help="data set (default uci)")
    add("-t", "--train_cfg", default="config/pretrain.json", help="training configuration (default %(default)s)")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="bf16", help="default bf16")
    add("--runs", type=int, default=1, help="so many times (default 1)")
    add("--first", action="store_true", help="with an empty cache of Triton's")
    add("--shared", type=int, nargs="+", default=[0], help="bytes of shared memory a block to pretend (default none)")
    add("--work", help=argparse.SUPPRESS)  # in the processes that this command starts: when, and the limit
    return parser.parse_args(argv)


def clocked(spent, owner, name, part):
    """Have a function add what it takes, queued work included, to spent[part]."""
    import torch

    function = getattr(owner, name)

    def timed(*args, **more):
        start = time.perf_counter()
        result = function(*args, **more)
        torch.cuda.synchronize()
        spent[part] = spent.get(part, 0) + time.perf_counter() - start
        return result

    setattr(owner, name, timed)


def on_the_gpu(recorded, events):
    """pretrain.recorded whose steps and validations leave an event before and after in `events`, [(part, event)]."""
    import torch

    def mark(part):
        events.append((part, torch.cuda.Event(enable_timing=True)))
        events[-1][1].record()

    def watched(function, name, once):
        def call(both):
            if both not in function.graphs:
                mark(None)  # its time is that of `capture`
                function.graphs[both] = function.record(both)
            part = f"{name}, {HALVES[both]}"
            if not (once and events and events[-1][0] == part):
                mark(part)
            function(both)
            if not once:
                mark("between")

        return call

    def replacement(*args):
        step, check, found = recorded(*args)
        return watched(step, "steps", True), watched(check, "validation", False), found

    return replacement


def work(args):
    """One run under the clock; prints what it found as JSON."""
    begun, limit = map(float, args.work.split())
    import torch

    import fast
    import pretrain
    from fast import graphs

    spent, events, compiled = {"import": time.time() - begun}, [], []
    if not torch.cuda.is_available():
        raise UserError("benchmarks.whole needs a CUDA GPU")
    import triton

    triton.knobs.compilation.listener = lambda times, cache_hit, **_: cache_hit or compiled.append(times.total)
    if limit:
        triton.compiler.compiler.max_shared_mem = lambda device: limit
    clocked(spent, fast, "engine", "engine, kernels tried")
    clocked(spent, pretrain, "load_views", "windows and views")
    clocked(spent, pretrain, "make_networks", "networks")
    clocked(spent, graphs.Captured, "record", "capture")
    clocked(spent, pretrain, "save", "saving")
    pretrain.recorded = on_the_gpu(pretrain.recorded, events)
    flags = ["-d", args.dataset, "-t", args.train_cfg, "--precision", args.precision, "-s", "whole", "--restart"]
    result = pretrain.main(pretrain.get_args([*flags, "--quiet"]))
    for (part, event), (_, after) in itertools.pairwise(events):
        if part:
            spent[part] = spent.get(part, 0) + event.elapsed_time(after) / 1e3
    spent["rest"] = time.time() - begun - sum(spent.values())
    kernels = {"compiled": len(compiled), "compile_s": sum(compiled) / 1e6}
    print(json.dumps({"spent": spent, "ended": time.time(), "last": result["history"][-1], **kernels}))


def one_run(args, limit, cache):
    """What one run found; `cache` is a folder for what Triton compiles, or None."""
    begun = time.time()
    own = {"TRITON_CACHE_DIR": cache} if cache else {}
    flags = ["-d", args.dataset, "-t", args.train_cfg, "--precision", args.precision, "--work", f"{begun} {limit}"]
    command = [sys.executable, "-m", "benchmarks.whole", *flags]
    done = subprocess.run(command, env=os.environ | own, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    *notes, found = done.stdout.splitlines()
    total, found = time.time() - begun, json.loads(found)
    found["spent"]["exit"] = begun + total - found.pop("ended")
    return found | {"limit": limit, "precision": args.precision, "total": total, "notes": notes[:1]}


def main(args):
    if args.work:
        return work(args)
    rows = []
    for limit in args.shared:
        for _ in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(one_run(args, limit, folder if args.first else None))
            spent = ", ".join(f"{part} {seconds:.2f}" for part, seconds in rows[-1]["spent"].items())
            kernels = f"{rows[-1]['compiled']} kernels compiled in {rows[-1]['compile_s']:.1f} s"
            print(f"{args.precision}, limit {limit or 'none'}: {rows[-1]['total']:.1f} s: {spent}; {kernels}")
            print("  ", *rows[-1]["notes"], rows[-1]["last"], flush=True)
    Path("results").mkdir(exist_ok=True)
    artefacts.save_json("results/whole.json", rows)
    return rows


if __name__ == "__main__":
    sys.exit(run(main, get_args))
