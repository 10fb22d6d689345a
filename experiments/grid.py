"""The grid of experiments: which runs there are, the command lines that make each, and the config_hash of its row.

A job is what one process does: one source, variant and seed, pretrained once and tested on every target. A cell is one
row of saved/results.csv. Nothing is trained here; reproduce.py runs the jobs, table.py and figures.py read the rows.
"""

import functools
import hashlib
import itertools
import shlex
import time
from pathlib import Path
from typing import NamedTuple

import classifier
import cross_dataset_test
import embedding
import pretrain
import utils
from augment import COPIES
from bookkeeping import artefacts, configs, ledger
from bookkeeping.commands import LABEL_RATE, UserError
from experiments import baselines

RATE = LABEL_RATE  # of the paper's tables; other ones show in the classifier's stem
RUNS = Path("results/grids")  # a JSON for every grid that was run
SCRIPTS = {
    "pretrain.py": pretrain,
    "embedding.py": embedding,
    "classifier.py": classifier,
    "cross_dataset_test.py": cross_dataset_test,
    "-m experiments.baselines": baselines,
}


class Job(NamedTuple):
    source: str
    variant: str
    seed: int  # of pretraining; of a baseline's only training

    @property
    def stem(self):
        """The -s of its pretrained model: one for each variant and seed, so that jobs side by side don't meet."""
        return f"{self.variant}_s{self.seed}"

    @property
    def name(self):
        return f"{self.source}_{self.stem}"


class Cell(NamedTuple):
    job: Job
    rate: float
    seed: int  # of the classifier
    target: str
    gyroscope: bool = True  # False: the target's is taken away

    @property
    def run(self):
        """What tells repetitions of the same experiment apart."""
        return self.job.seed, self.seed


class Command(NamedTuple):
    """One call of a script: `python SCRIPT FLAGS`."""

    script: str
    flags: list

    def __str__(self):
        return shlex.join(["python", *self.script.split(), *self.flags])

    def args(self, *more):
        return SCRIPTS[self.script].get_args([*self.flags, *more])


def read_variants(path="config/variants.json"):
    """The variants by name, in the file's order, each with all its keys. Raises UserError for a malformed file."""
    entries = artefacts.read_json(configs.find_config(path), "the variants' configuration")
    words = ("never", "half", "always")
    defaults = {"title": "", "contrastive": "half", "pretrain": {}, "classifier": {}, "augment": None}
    defaults |= {"baseline": None, "model_version": "v1"}
    for name, entry in entries.items():
        if unknown := [key for key in entry if key not in defaults]:
            raise UserError(f"{path}, {name}: unknown key {unknown[0]!r}; known keys: {', '.join(defaults)}")
        if entry.get("contrastive", "half") not in words:
            raise UserError(f"{path}, {name}: 'contrastive' must be one of {', '.join(words)}")
        if entry.get("baseline") not in (None, *baselines.MODELS):
            raise UserError(f"{path}, {name}: 'baseline' must be one of {', '.join(baselines.MODELS)}")
    return {name: defaults | {"title": name} | entry for name, entry in entries.items()}


def prepared(version):
    """The data sets whose windows are here, in their canonical order, those of the simulated pair left out."""
    names = [key.removesuffix(f"_{version}") for key in configs.dataset_entries() if key.endswith(f"_{version}")]
    names = dict.fromkeys([*names, *configs.own_sets(version)])
    here = [n for n in names if all(utils.data_path(n, version, kind).is_file() for kind in ("data", "label"))]
    return [name for name in here if name not in ("uci20", "sim")]


def name_of(flags):
    """What a grid's tables and figures are called: `full`, or `full+copy_seeds=5_label_rates=0.1,1`.

    flags: {flag: its values as text}, those that differ from the default. Other flags are another name, as neither
    `+`, `=` nor `,` may stand in a name of theirs; one too long for a file ends in digits that stand for all of it.
    """
    alone = "leave_one_out" in flags
    variants = flags.get("variants", [] if alone else ["full"])
    parts = ["leave_one_out"] * alone + ["+".join(variants)] * bool(variants)
    others = {flag: values for flag, values in flags.items() if flag not in ("leave_one_out", "variants")}
    name = "_".join(parts + [f"{flag}={','.join(values)}" if values else flag for flag, values in others.items()])
    return name if len(name) <= 120 else f"{name[:110]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def as_argv(flags):
    """The same flags as one types them: ["--seeds", "5"]."""
    return [word for flag, values in flags.items() for word in (f"--{flag}", *values)]


def command_of(flags):
    return shlex.join(["python", "reproduce.py", *as_argv(flags)])


def record_run(flags):
    """Note that this grid is being run, for --table and --figures without its flags."""
    artefacts.save_json(RUNS / f"{name_of(flags)}.json", {"flags": flags, "time": time.time()})


def recorded_runs():
    """The flags of the grids that were run here, the last one first."""
    found = []
    for path in RUNS.glob("*.json"):
        record = artefacts.read_json(path, "the record of a grid")
        flags = record.get("flags") if isinstance(record, dict) else None
        lists = isinstance(flags, dict) and all(isinstance(values, list) for values in flags.values())
        if not lists or not all(isinstance(word, str) for values in flags.values() for word in values):
            raise UserError(f"{path} was not written by reproduce.py; remove it")
        when = record.get("time")
        found.append((when if isinstance(when, float) else 0.0, str(path), flags))
    return [flags for _, _, flags in sorted(found, key=lambda run: run[:2], reverse=True)]


class Grid:
    """The experiments that the flags ask for.

    runs: pairs (seed of pretraining, seed of the classifier); epochs: the schedule's length for a source, or None for
    the configuration's; flags: as in name_of, None for the rows that are there (of a shell loop); the other names are
    those of the flags.
    """

    def __init__(
        self,
        sources,
        targets,
        variants,
        rates,
        runs,
        *,
        version="20_120",
        label_index=0,
        gpu=None,
        epochs=None,
        classifier_epochs=None,
        without_gyroscope=False,
        leave_one_out=False,
        flags=None,
    ):
        self.name = "rows" if flags is None else name_of(flags)
        self.command = command_of({"table": []} if flags is None else flags)
        self.all_variants = read_variants()
        self.sources, self.targets, self.rates, self.runs = sources, targets, rates, runs
        groups = {"all": [], "all_v2": []}  # the paper's method and its ablations; version v2's
        for variant, entry in self.all_variants.items():
            groups["all" if entry["model_version"] == "v1" else "all_v2"].append(variant)
        self.variants = list(dict.fromkeys(each for v in variants for each in groups.get(v, [v])))
        for variant in self.variants:
            if variant not in self.all_variants:
                there = ", ".join(self.all_variants)
                raise UserError(f"--variants {variant}: config/variants.json has {there}, or all, or all_v2")
        self.version, self.label_index, self.gpu = version, label_index, gpu
        self.without_gyroscope, self.leave_one_out = without_gyroscope, leave_one_out
        self.epochs, self.classifier_epochs = epochs or {}, classifier_epochs
        self.config_path = functools.lru_cache(None)(self._config_path)
        self.pretrain_config = functools.lru_cache(None)(self._pretrain_config)
        self.classes = functools.lru_cache(None)(self._classes)

    def title(self, variant):
        return self.all_variants[variant]["title"]

    def label(self, dataset):
        """A data set's name for tables and figures, which says so where its windows are simulated."""
        simulated = configs.dataset_config(dataset, self.version).get("simulated")
        return dataset + (" (simulated)" if simulated else "")

    def pair(self, source, target):
        return f"{self.label(source)} → {self.label(target)}"

    def is_baseline(self, variant):
        return self.all_variants[variant]["baseline"] is not None

    def is_v2(self, variant):
        """Whether the variant's -mv is run by v2/, which needs no pretrained model and no embedding."""
        return configs.method_of(self.all_variants[variant]["model_version"]) == "v2"

    def jobs(self):
        """All jobs, the longest first, so that none is left alone at the end."""
        jobs = [Job(s, v, seed) for v in self.variants for s in self.sources for seed in self._seeds(v)]
        jobs = [job for job in jobs if self.targets_of(job.source)]
        return sorted(jobs, key=self.work, reverse=True)

    def targets_of(self, source):
        """The targets that are none of the source's sets."""
        return [target for target in self.targets if target not in utils.sets_of(source)]

    def _seeds(self, variant):
        return dict.fromkeys(seed for seed, _ in self.variant_runs(variant))

    def labels_only(self, variant):
        """Whether a variant learns nothing from windows without labels: a baseline, or version v2."""
        return self.is_baseline(variant) or self.is_v2(variant)

    def variant_runs(self, variant):
        """The runs of a variant; one that is not pretrained has a single seed, the classifier's."""
        if self.labels_only(variant):
            return list(dict.fromkeys((seed, seed) for _, seed in self.runs))
        return self.runs

    def cells(self, job):
        """The rows of a job: label rate by label rate, seed by seed, target by target."""
        seeds = [seed for first, seed in self.variant_runs(job.variant) if first == job.seed]
        targets = self.targets_of(job.source)
        kinds = (True, False) if self.without_gyroscope and self.is_v2(job.variant) else (True,)
        return [Cell(job, *cell) for cell in itertools.product(self.rates, seeds, targets, kinds)]

    def work(self, job):
        """About how long a job takes, in windows that go through a network."""
        count = sum(utils.counts_of(job.source, self.version))
        if self.is_v2(job.variant):  # by time on two cores: three label rates take no longer than one of v1's
            return 100 * len(self.rates) * 1000
        copies = 1 if self.all_variants[job.variant]["augment"] == "none" else COPIES
        classifier = 100 * sum(self.rates) * count * copies
        if self.is_baseline(job.variant):
            return classifier
        cfg = self.pretrain_config(job)["train"]  # an epoch with both losses takes about twice as long
        return count * copies * (cfg["n_epochs"] + cfg["n_epochs_cl"]) + classifier

    # ------------------------------------------------------------------------------------------ command lines

    def _common(self, job):
        flags = ["-d", job.source]
        flags += ["-dv", self.version] if self.version != "20_120" else []
        model = self.all_variants[job.variant]["model_version"]
        flags += ["-mv", model] if model != "v1" else []
        return flags + (["-g", str(self.gpu)] if self.gpu is not None else [])

    def _column(self):
        return ["-l", str(self.label_index)] if self.label_index else []

    def _config_flags(self, job, stage):
        path = self.config_path(job.source, job.variant, stage)
        return ["-t", path] if path else []

    def _config_path(self, source, variant, stage):
        """The -t of a stage (pretrain, train): None where the default configuration fits, else a file written here."""
        entry, path = self.all_variants[variant], f"config/{stage}.json"
        keys, dead = configs.PRETRAIN_KEYS, configs.DEAD_KEYS
        epochs = self.epochs.get(source)
        if stage == "train":
            keys, dead, epochs = configs.TRAIN_KEYS, configs.DEAD_CLASSIFIER_KEYS, self.classifier_epochs
        default = configs.read_config(path, keys, dead)
        config = default | ({"n_epochs": epochs} if epochs else {})
        if stage == "pretrain":
            config |= entry["pretrain"]
            total = config["n_epochs"]
            shares = {"never": 0, "always": total, "half": total - total // 2}
            if total != default["n_epochs"] or entry["contrastive"] != "half" or config["n_epochs_cl"] is None:
                config["n_epochs_cl"] = shares[entry["contrastive"]]
        else:
            config |= entry["classifier"]
        if config == default:
            return None
        own = Path("results/configs") / f"{stage}_{variant}_{config['n_epochs']}.json"
        artefacts.save_json(own, config)
        return str(own)

    def classifier_stem(self, cell):
        """The -s of a classifier: the pretrained stem, and what differs from its seed, the activity, the usual rate."""
        stem = cell.job.stem + (f"_c{cell.seed}" if cell.seed != cell.job.seed else "")
        stem += f"_l{self.label_index}" if self.label_index else ""  # one stem holds one label column's classifier
        return stem + (f"_lr{cell.rate:g}" if cell.rate != RATE else "")

    def _stems(self, cell):
        stem = self.classifier_stem(cell)
        pretrained = stem != cell.job.stem and not self.is_v2(cell.job.variant)
        return ["-s", stem] + (["-f", cell.job.stem] if pretrained else [])

    def pretrain(self, job):
        augment = self.all_variants[job.variant]["augment"]
        flags = [*self._common(job), "-s", job.stem, "--seed", str(job.seed), *self._config_flags(job, "pretrain")]
        return Command("pretrain.py", flags + (["-am", augment] if augment else []))

    def embedding(self, job):
        return Command("embedding.py", [*self._common(job), "-s", job.stem, *self._config_flags(job, "pretrain")])

    def classifier(self, cell):
        flags = [*self._common(cell.job), *self._column(), *self._stems(cell), "-lr", f"{cell.rate:g}"]
        return Command("classifier.py", [*flags, "--seed", str(cell.seed), *self._config_flags(cell.job, "train")])

    def test(self, cell):
        flags = [*self._common(cell.job), "-td", cell.target, *self._column(), *self._stems(cell)]
        return Command("cross_dataset_test.py", flags + ([] if cell.gyroscope else ["--no_gyroscope"]))

    def baseline(self, cell, targets):
        """Training of a baseline and its tests on `targets`."""
        entry = self.all_variants[cell.job.variant]
        flags = [*self._common(cell.job), *self._column(), "-b", entry["baseline"], "-s", self.classifier_stem(cell)]
        flags += ["-lr", f"{cell.rate:g}", "--seed", str(cell.seed), *self._config_flags(cell.job, "train")]
        flags += ["-am", entry["augment"]] if entry["augment"] else []
        return Command("-m experiments.baselines", [*flags, "--targets", *targets])

    # --------------------------------------------------------------- what the commands will write, and its hash

    def _classes(self, source):
        return configs.label_names(configs.dataset_config(source, self.version), self.label_index)[1]

    def _pretrain_config(self, job):
        """What pretrain.py will record as its configuration, as far as its result depends on it."""
        return configs.read_pretraining(self.pretrain(job).args())

    def classifier_config(self, cell):
        """Likewise for classifier.py."""
        v2, model = self.is_v2(cell.job.variant), self.all_variants[cell.job.variant]["model_version"]
        return {
            "label_index": self.label_index,
            "label_rate": cell.rate,
            "augment_method": "physics" if v2 else self.pretrain_config(cell.job)["augment_method"],
            "train": configs.read_train_config(self.classifier(cell).args()),
            "model": configs.read_classifier_config(model),
            "classes": self.classes(cell.job.source),
        }

    def key(self, cell):
        """The config_hash that the cell's row has or will have."""
        if self.is_baseline(cell.job.variant):
            trained_with = baselines.training(self.baseline(cell, [cell.target]).args())
        else:
            pretrained = None if self.is_v2(cell.job.variant) else self.pretrain_config(cell.job)
            trained_with = ledger.training(pretrained, self.classifier_config(cell))
        return ledger.config_hash(trained_with, cell.job.source, cell.target, self.version, cell.gyroscope)

    def weights(self, job):
        """The loss weights as they stand in the pretrained files' names."""
        return utils.loss_weights(self.pretrain_config(job)["train"])

    def files(self, job, stem=None):
        """Where the job's runs read and write; `stem` is that of a classifier."""
        model = self.all_variants[job.variant]["model_version"]
        return utils.Files(job.source, self.version, model, stem or job.stem, source=job.stem)

    def checkpoint(self, job):
        """The masked model's path."""
        return self.files(job).checkpoint(self.weights(job))

    def classifier_path(self, cell, end="transformer.pt"):
        return self.files(cell.job, self.classifier_stem(cell)).classifier(end)

    def predictions(self, cell):
        """The .npz of the cell's predictions."""
        if self.is_baseline(cell.job.variant):
            return baselines.stem_path(self.baseline(cell, [cell.target]).args(), f"_{cell.target}.npz")
        return self.classifier_path(cell, f"transformer_{cell.target}{'' if cell.gyroscope else '_acc'}.npz")
