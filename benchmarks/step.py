"""What a training step's time on a GPU goes to: time per kernel, number of kernels, and the gaps between them.

    python -m benchmarks.step -d uci --precision bf16

Records the fast path's step as pretrain.py does, replays it under torch.profiler, and prints for each half a table of
the kernels by time, their sum, and the time of a replay without the profiler: what is not kernels is gaps between them.
Writes results/step_PRECISION.json.
"""

import argparse
import sys

import torch
from torch.profiler import ProfilerActivity, profile

import fast
from benchmarks.pretrain import load_copies, make_step, timed
from bookkeeping import artefacts, configs
from bookkeeping.commands import Parser, UserError, run

REPLAYS = 20


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", default="uci", help="data set to take the windows of (default uci)")
    parser.add_argument("--windows", type=int, help="make up this many windows instead")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="tf32", help="default tf32")
    parser.add_argument("--most", type=int, default=25, help="rows of a table (default 25)")
    return parser.parse_args(argv)


def kernels(step):
    """Microseconds and count of each kernel of one step: [(name, us, count)], the slowest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(REPLAYS):
            step()
        torch.cuda.synchronize()
    events = [event for event in recorded.key_averages() if event.self_device_time_total > 0]
    rows = [(event.key, event.self_device_time_total / REPLAYS, event.count / REPLAYS) for event in events]
    return sorted(rows, key=lambda row: -row[1])


def main(args):
    if not torch.cuda.is_available():
        raise UserError("benchmarks.step needs a CUDA GPU; on a CPU use torch.profiler on pretrain.py --plain")
    cfg = configs.read_encoder_config("v1")
    engine = fast.engine(encoder=cfg, training=True, precision=args.precision)
    device = engine.device
    windows = load_copies(args, device)
    windows = windows[: int(0.8 * len(windows))]  # the training part
    result = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "precision": args.precision}
    for both, half in ((False, "masked"), (True, "masked + contrastive")):
        step = make_step(engine, both, windows)
        step()
        whole = 1e6 * min(timed(step, device, 100) / 100 for _ in range(3))
        rows = kernels(step)
        busy, count = sum(us for _, us, _ in rows), sum(n for _, _, n in rows)
        print(f"\n{half}: {whole:.0f} us a step; {count:.0f} kernels take {busy:.0f} us, gaps {whole - busy:.0f} us")
        for name, us, n in rows[: args.most]:
            print(f"{us:8.1f} us {n:6.1f} x  {name[:100]}")
        result[half] = {"step_us": whole, "kernels_us": busy, "kernels": rows}
    artefacts.save_json(f"results/step_{args.precision}.json", result)
    return result


if __name__ == "__main__":
    sys.exit(run(main, get_args))
