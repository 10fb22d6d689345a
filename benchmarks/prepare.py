"""Time and memory of preparing hhar at its real size, on generated files: python -m benchmarks.prepare

Writes Phones_accelerometer.csv and Phones_gyroscope.csv of over 13 million rows each in the layout of the real set
(2.4 GB in --folder; nothing is fetched), with what makes the real one awkward: out-of-order rows, duplicates, stretches
without the gyroscope, null labels, four models at 50 to 200 Hz. Then it runs dataset/prepare.py on them in a process of
its own and prints a table: seconds, peak memory, windows. `--rows N` makes smaller files, `--zip` packs them first.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import polars

PREPARE = Path(__file__).resolve().parents[1] / "dataset" / "prepare.py"
USERS = "abcdefghi"
RATES = {"nexus4": 200, "s3": 150, "s3mini": 100, "samsungold": 50}  # Hz
ACTIVITIES = ("stand", "sit", "walk", "stairsup", "stairsdown", "bike", "null")
FILES = {"Phones_accelerometer.csv": 9.81, "Phones_gyroscope.csv": 0.0}


def get_args(argv=None):
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=13_100_000, help="rows of each of the two files")
    parser.add_argument("--folder", help="where the files are written, and kept (default: a temporary folder)")
    parser.add_argument("--zip", action="store_true", help="pack them like the archive and prepare from the zip")
    return parser.parse_args(argv)


def device_rows(rng, rate, seconds, start, level, gaps):
    """Rows of one user's device and sensor: creation time in ns (n,), xyz (n, 3), activity index (n,).

    `gaps` is a list of (from, to) seconds without any row. One row in 500 is repeated, one in 300 comes 20 rows late.
    """
    n = int(rate * seconds)
    at = np.arange(n) / rate + rng.uniform(-0.2, 0.2, n) / rate
    block = at // 100  # an activity lasts 100 s, the null label between two of them 10 s
    activity = np.where(at % 100 < 90, block % 6, 6).astype(np.int64)
    xyz = rng.normal(0, 1.5 if level else 0.15, (n, 3)) + np.array([0, 0, level])
    keep = np.ones(n, bool)
    for low, high in gaps:
        keep &= (at < low) | (at >= high)
    order = np.flatnonzero(keep)
    order = np.sort(np.concatenate([order, rng.choice(order, len(order) // 500)]))  # duplicates
    late = rng.choice(len(order), len(order) // 300, replace=False)
    key = np.arange(len(order), dtype=float)
    key[late] += 20.5
    order = order[np.argsort(key, kind="stable")]
    return start + (at[order] * 1e9).astype(np.int64), xyz[order], activity[order]


def write_files(folder, rows, seed=0):
    """Write both CSV files with about `rows` rows each (never fewer), and return their sizes in bytes."""
    rng = np.random.default_rng(seed)
    per_second = 2 * sum(RATES.values())
    sizes = {}
    for name, level in FILES.items():
        gyro = level == 0.0
        rates = {model: rate for model, rate in RATES.items() if not (gyro and model == "samsungold")}
        seconds = 1.005 * rows / len(USERS) / (2 * sum(rates.values()) if gyro else per_second)
        seconds *= 1.0 + (30 / 900 if gyro else 0)  # makes up for the gyroscope's missing stretches
        with open(folder / name, "wb") as handle:
            handle.write(b"Index,Arrival_Time,Creation_Time,x,y,z,User,Model,Device,gt\n")
            for user in USERS:
                for model, rate in rates.items():
                    for number in (1, 2):
                        start = 1424696631913248572 + 10**13 * USERS.index(user) + number * 10**7
                        gaps = [(t, t + 30) for t in range(600, int(seconds), 900)] if gyro else []
                        at, xyz, activity = device_rows(rng, rate, seconds, start, level, gaps)
                        n = len(at)
                        columns = {"Index": np.arange(n), "Arrival_Time": at // 10**6, "Creation_Time": at}
                        columns |= dict(zip("xyz", xyz.astype(np.float32).T, strict=True))
                        text = {"User": user, "Model": model, "Device": f"{model}_{number}"}
                        frame = polars.DataFrame(columns).with_columns(
                            *(polars.lit(value).alias(key) for key, value in text.items()),
                            polars.Series("gt", np.array(ACTIVITIES, dtype=object)[activity], dtype=polars.String),
                        )
                        handle.write(frame.write_csv(include_header=False).encode())
        sizes[name] = os.path.getsize(folder / name)
    return sizes


def pack(folder):
    """The files in a zip inside a zip, as the archive comes; returns its path."""
    inner, outer = folder / "Activity recognition exp.zip", folder / "heterogeneity+activity+recognition.zip"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in FILES:
            archive.write(folder / name, f"Activity recognition exp/{name}")
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(inner, inner.name)
    return outer


def main(args):
    """Generate, prepare, report; returns the figures that it prints."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not all((folder / name).exists() for name in FILES):
            print(f"writing two files of {args.rows:,} rows ...", flush=True)
            sizes = write_files(folder, args.rows)
        else:
            sizes = {name: os.path.getsize(folder / name) for name in FILES}
        print(", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items()), flush=True)
        raw = pack(folder) if args.zip else folder
        work = Path(temporary) / "project"
        (work / "dataset").mkdir(parents=True)
        command = [sys.executable, str(PREPARE), "-d", "hhar", "--raw", str(raw.resolve())]
        began = time.perf_counter()
        status = subprocess.run(command, cwd=work).returncode
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2  # kB -> GB
        data = work / "dataset" / "hhar" / "data_20_120.npy"
        windows = len(np.load(data, mmap_mode="r")) if data.exists() else 0
    result = {"status": status, "seconds": round(seconds, 1), "peak_gb": round(peak, 2), "windows": windows}
    result |= {"cores": len(os.sched_getaffinity(0)), "bytes": sum(sizes.values())}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(get_args())
