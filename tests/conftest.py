"""What all tests share: one thread, warnings of our own code as errors, golden files, a small project to run in."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bookkeeping", "fast", "v2", "experiments", "dataset")  # of our own code, beside what stands at the top

# the tensors here are tiny: a second thread only waits for the first, and on a busy machine for a long time
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"  # reference files that are not part of the repository
ENCODER = dict(feature_num=6, hidden=8, hidden_ff=12, n_layers=1, n_heads=2, seq_len=120, emb_norm=True)
PAPER = ENCODER | {"hidden": 72, "hidden_ff": 144, "n_heads": 4}  # the sizes of config/pretrain_model.json
ODD = dict(feature_num=5, hidden=21, hidden_ff=13, n_layers=1, n_heads=3, seq_len=37, emb_norm=True)
CLASSIFIER = dict(input_size=8, hidden_size=16, num_layers=1, num_heads=2, dropout_ratio=0.1, dim_feedforward=24)
TRAIN = {"seed": 5, "batch_size": 16, "lr": 0.003, "n_epochs": 4, "split_by": "window"}
PRETRAIN = TRAIN | {"batch_size": 32, "n_epochs_cl": 2, "lambda1": 6, "lambda2": 1, "views": "once"}
MASK = {"mask_ratio": 0.15, "max_gram": 10, "mask_prob": 0.8, "replace_prob": 0.0}
ACTIVITIES = ["walking", "upstairs", "downstairs", "sitting&standing"]
DATASET = {"sr": 20, "seq_len": 120, "dimension": 6}
DATASET |= {"activity_label_index": 0, "activity_label_size": 4, "activity_label": ACTIVITIES}
DATASET |= {"user_label_index": 1, "user_label_size": 3, "user_label": ["ann", "bob", "eve"]}


def pytest_configure(config):
    """A warning that our own modules cause fails the test."""
    for module in sorted(path.stem for path in ROOT.glob("*.py")):
        config.addinivalue_line("filterwarnings", f"error:::{module}$")
    for folder in FOLDERS:
        config.addinivalue_line("filterwarnings", rf"error:::{folder}(\.|$)")


@pytest.fixture
def golden():
    """Reads a reference file by name; skips the test where the reference files are not there."""

    def read(name):
        path = SHARED / "golden" / name
        if not path.is_file():
            pytest.skip(f"reference file {name} is not here")
        return np.load(path) if path.suffix == ".npz" else torch.load(path, map_location="cpu", weights_only=True)

    return read


def make_windows(count, seed=0, users=3):
    """Windows with learnable classes, one wave a class: data (count, 120, 6) float32, labels (count, 120, 2)."""
    rng = np.random.default_rng(seed)
    activity, user = np.arange(count) % 4, np.arange(count) % users
    time = np.arange(120) / 20
    phase = rng.uniform(-0.5, 0.5, (count, 1, 6))
    data = np.sin(np.pi * (0.3 + 0.4 * activity[:, None, None]) * time[None, :, None] + phase)
    data = data * rng.uniform(0.5, 2, (count, 1, 6)) + 0.1 * rng.standard_normal((count, 120, 6))
    data[:, :, 2] += 9.8
    labels = np.repeat(np.stack([activity, user], axis=1)[:, None], 120, axis=1)
    return data.astype(np.float32), labels.astype(np.float32)


class Project:
    """A folder with small configurations and data sets in which the scripts run, and how to run them."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "config").mkdir(parents=True, exist_ok=True)
        self.config("pretrain", PRETRAIN), self.config("train", TRAIN), self.config("mask", MASK)
        self.config("pretrain_model", {"base_v1": ENCODER})
        self.config("classifier", {"transformer_v1": CLASSIFIER})
        self.datasets = {}

    def config(self, name, value=None, **changes):
        """Write config/NAME.json: `value`, or what stands there with some keys changed."""
        path = self.folder / "config" / f"{name}.json"
        value = json.loads(path.read_text()) if value is None else value
        path.write_text(json.dumps(value | changes))

    def dataset(self, name, count=32, seed=0, data=None, labels=None, **entry):
        """Write a data set, generated or given, and its entry in data_config.json."""
        generated = make_windows(count, seed)
        folder = self.folder / "dataset" / name
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "data_20_120.npy", generated[0] if data is None else data)
        np.save(folder / "label_20_120.npy", generated[1] if labels is None else labels)
        self.datasets[f"{name}_20_120"] = DATASET | entry
        (self.folder / "dataset" / "data_config.json").write_text(json.dumps(self.datasets))

    def run(self, script, *flags):
        """Run main(get_args(flags)) of a script in this process, on the CPU; the current folder must be the project."""
        module = importlib.import_module(script)
        quiet = ["--quiet"] if script in ("pretrain", "classifier") else []
        return module.main(module.get_args(["-g", "cpu", *quiet, *map(str, flags)]))

    def stages(self, *flags):
        """The four scripts one after another, from `a` to `b`; returns stage 3's scores."""
        self.run("pretrain", "-d", "a", *flags)
        self.run("embedding", "-d", "a", *flags)
        self.run("classifier", "-d", "a", "-lr", 0.5, *flags)
        return self.run("cross_dataset_test", "-d", "a", "-td", "b", *flags)

    def start(self, script, *flags, prelude="", **more):
        """The script as a command of its own: a subprocess.Popen. `prelude` is Python to run in it first."""
        code = (
            f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = {script!r}\n{prelude}\n"
            f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
        )
        command = [sys.executable, "-c", code] if prelude else [sys.executable, str(ROOT / script)]
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
        return subprocess.Popen([*command, *map(str, flags)], cwd=self.folder, text=True, **piped, **more)

    def command(self, script, *flags, **more):
        """Run the script as a command to its end: (exit status, stdout, stderr)."""
        process = self.start(script, *flags, **more)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def files(self):
        """Every file under saved/, embed/ and dataset/ with its bytes: {path: bytes}."""
        found = {}
        for part in ("saved", "embed", "dataset", "config"):
            for path in sorted((self.folder / part).rglob("*")):
                if path.is_file():
                    found[str(path.relative_to(self.folder))] = path.read_bytes()
        return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project with source `a` and target `b`; the current folder is its folder."""
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    made.dataset("a", 32, seed=1)
    made.dataset("b", 12, seed=2)
    return made


@pytest.fixture(scope="session")
def all_stages(tmp_path_factory):
    """A project in which all stages ran once, for copying: (folder, its data sets, stage 3's scores)."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("all_stages")
        patch.chdir(folder)
        made = Project(folder)
        made.dataset("a", 32, seed=1)
        made.dataset("b", 12, seed=2)
        return folder, made.datasets, made.stages()


@pytest.fixture
def trained(all_stages, tmp_path, monkeypatch):
    """A small project in which all stages ran already, a fresh copy for each test; `scores` are stage 3's."""
    folder, datasets, scores = all_stages
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    made.datasets, made.scores = dict(datasets), scores
    return made
