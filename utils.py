"""The windows and the files of a run: loading, splitting and labelling windows, and the names of what a run writes."""

import inspect
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bookkeeping.artefacts import fingerprint, load_npy, load_record
from bookkeeping.commands import UserError, warn
from bookkeeping.configs import (
    ACC_UNITS,
    GRAVITY,
    acc_unit,
    data_path,
    dataset_config,
    how_to_make,
    joined_name,
    label_columns,
    label_names,
    set_entry,
    sets_of,
)

# ------------------------------------------------------------------------------------------- a run's files


class Files(NamedTuple):
    """Where a run reads and writes, by its flags: the one place that knows how artefacts are named."""

    dataset: str  # several sources as uci+motion
    version: str  # of the data: 20_120
    model_version: str = "v1"
    stem: str = "model"  # -s
    source: str | None = None  # -f: the stem of the pretrained model to read

    @property
    def pretrained(self):
        """The stem of the pretrained model that stages 2a to 3 read: -f, else -s."""
        return self.source or self.stem

    @property
    def _of_version(self):
        return "" if self.model_version == "v1" else f"_{self.model_version}"

    def data(self, *kinds):
        """The sources' files of windows, labels or, by default, windows alone: a list of paths."""
        return [data_path(name, self.version, kind) for name in sets_of(self.dataset) for kind in kinds or ("data",)]

    def pretraining(self, part, weights, stem=None):
        """saved/pretrain_base_uci_20_120/STEM_PART_6_1.pt (losses: .csv); STEM is that of -s if none is given."""
        folder = Path("saved") / f"pretrain_base{self._of_version}_{self.dataset}_{self.version}"
        return folder / f"{stem or self.stem}_{part}_{weights}.{'csv' if part == 'losses' else 'pt'}"

    def checkpoint(self, weights):
        """The masked model that stages 2a to 3 read."""
        return self.pretraining("masked", weights, self.pretrained)

    def embedding(self, kind="embed"):
        """embed/embed_uci_20_120.npy, or the labels' with the kind "label"."""
        stem = "" if self.pretrained == "model" else self.pretrained
        folder = Path("embed") if self.model_version == "v1" else Path("embed") / self.model_version
        return folder / f"{kind}{stem}_{self.dataset}_{self.version}.npy"

    def classifier(self, end="transformer.pt"):
        """saved/classifier_base_transformer_uci_20_120/STEM_transformer.pt."""
        folder = f"classifier_base{self._of_version}_transformer_{self.dataset}_{self.version}"
        return Path("saved") / folder / f"{self.stem}_{end}"


def loss_weights(train_cfg):
    """The two loss weights as they stand in file names: 6_1."""
    return f"{train_cfg['lambda1']:g}_{train_cfg['lambda2']:g}"


# ---------------------------------------------------------------------------------------------- windows


class Together:
    """The windows of several sets, one set after another, read where they are asked for: as one array (N, T, C)."""

    def __init__(self, parts):
        self.parts, self.starts = parts, np.cumsum([0, *map(len, parts)])
        self.shape, self.dtype = (int(self.starts[-1]), *parts[0].shape[1:]), np.dtype(np.float32)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """The windows of a slice of rows or of an array of them (n,): (n, T, C) float32."""
        rows = np.arange(len(self))[rows]
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        for number, part in enumerate(self.parts):
            mine = which == number
            result[mine] = part[rows[mine] - self.starts[number]]
        return result

    def __array__(self, dtype=None, copy=None):
        return np.concatenate([np.asarray(part, dtype or self.dtype) for part in self.parts])


class Converted:
    """Windows whose acceleration is in another unit, in m/s^2 where they are read: as one array (N, T, C)."""

    def __init__(self, data, factor):
        self.data, self.factor, self.shape, self.dtype = data, factor, data.shape, np.dtype(np.float32)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, rows):
        """The windows of a slice of rows or of an array of them (n,): (n, T, C) float32."""
        x = np.array(self.data[rows], self.dtype)
        x[..., :3] *= self.factor
        return x

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype, copy=False)


def check_accepted(dataset, version):
    """Raise UserError for a set with problems that its checks found and nobody accepted; warn of accepted ones.

    Windows that were put in the place of those that were checked are taken as they are.
    """
    for name in sets_of(dataset):
        checks, path = set_entry(name, version).get("checks"), data_path(name, version)
        if not checks or not checks["problems"] or not path.is_file() or fingerprint(path) != checks["fingerprint"]:
            continue
        first, count = checks["problems"][0], len(checks["problems"])
        found = f"dataset/{name}: {first}" + (f" (the first of {count} problems)" if count > 1 else "")
        if not checks["accepted"]:
            look = f"look with: python dataset/prepare.py --check {name}"
            raise UserError(f"{found}; {look}, then mend it, or take it as it is with --accept {name}")
        warn(f"{found}; accepted, but what is computed from it may be wrong")


def load_windows(dataset, version, look=False):
    """Open the windows of -d: data (N, T, 6), memory-mapped; labels (N, T, K) numbers; the config entry.

    Of several sets one after another, with the label columns that all have by name, their ids those of the entry's
    union of names. Raises UserError as load_set does and, unless it is only to `look`, as check_accepted does.
    """
    names, entry = sets_of(dataset), dataset_config(dataset, version)
    sets = [load_set(name, version) for name in names]
    if not look:
        check_accepted(dataset, version)  # after, as preparing writes what it found before its windows can be read
    if len(names) == 1:
        return sets[0]
    labels = [in_columns(entry, name, *found[1:]) for name, found in zip(names, sets, strict=True)]
    return Together([data for data, _, _ in sets]), np.concatenate(labels), entry


def in_columns(entry, name, labels, own):
    """A set's labels (N, T, K) with the columns and ids of `entry`, which describes it together with others."""
    result = []
    for column, index in label_columns(entry).items():
        there = label_columns(own)[column]
        old, new = (label_names(config, i)[1] for config, i in ((own, there), (entry, index)))
        old = [joined_name(name, column, word) for word in old]
        if column != "activity" or not unlabelled(labels, own):
            window_labels(labels, there, old, data_path(name, entry["version"], "label"))  # refuses what is no id
        ids = np.array([new.index(word) for word in old] + [-1])  # -1, no label, stays that
        result.append(ids[labels[:, :, there].astype(np.int64)])
    return np.stack(result, 2).astype(np.float32)


def counts_of(dataset, version):
    """How many windows each set of -d has."""
    return [len(load_npy(data_path(name, version), "")) for name in sets_of(dataset)]


def load_set(dataset, version):
    """Open the windows of one set: data (N, T, 6), memory-mapped; labels (N, T, K) numbers; its config entry.

    A set whose entry says "gyroscope": false has NaN for the rotation rate of whole windows. Raises UserError for
    whatever is missing or malformed: shapes, types, other NaN, infinities, ids that don't fit.
    """
    config = dataset_config(dataset, version)
    paths = [data_path(dataset, version, kind) for kind in ("data", "label")]
    hint = how_to_make(dataset, version)
    data, labels = (load_npy(path, hint) for path in paths)
    record = load_record(paths[0])  # none beside a released file
    if record and record.get("label_fingerprint") != fingerprint(paths[1]):
        raise UserError(f"{paths[0]} and {paths[1]} are not of one preparation; {hint}")
    steps, channels = config.get("seq_len"), config.get("dimension")
    if data.ndim != 3 or data.shape[1:] != (steps, channels):
        raise UserError(f"{paths[0]} has shape {data.shape}, not (windows, {steps}, {channels}); {hint}")
    if labels.ndim != 3 or labels.shape[:2] != data.shape[:2] or labels.shape[2] < 1:
        raise UserError(f"{paths[1]} has shape {labels.shape}, not ({len(data)}, {steps}, columns); {hint}")
    if data.size == 0:
        raise UserError(f"{paths[0]} holds no windows; {hint}")
    most = np.finfo(np.float32).max
    for start in range(0, len(data), 4096):  # in pieces: a memory-mapped file may be larger than memory
        piece = data[start : start + 4096]
        if config.get("gyroscope") is False:  # then, and only then, a whole window's rotation rate may be NaN
            blind = np.isnan(piece[:, :, 3:]).all((1, 2))
            piece = np.where(blind[:, None, None] & (np.arange(channels) >= 3), 0, piece)
        if not (piece.max() <= most and piece.min() >= -most):  # NaN is neither
            raise UserError(f"{paths[0]} holds NaN, infinity or numbers beyond float32; {hint}")
        if not np.isfinite(labels[start : start + 4096]).all():
            raise UserError(f"{paths[1]} holds NaN or infinity; {hint}")
    factor = acc_unit(config, f"{dataset}_{version}")
    return data if factor == 1 else Converted(data, factor), labels, config


def check_gravity(dataset, version, data, refuse=False):
    """Warn where a set's windows at rest don't show gravity, 9.8 m/s^2 within 15 %: another unit, or taken away.

    data (N, T, C) as load_windows gives it. `refuse`: raise UserError, for a model that goes by its size.
    """
    for name, part in zip(sets_of(dataset), getattr(data, "parts", [data]), strict=True):
        size = np.linalg.norm(part[np.unique(np.linspace(0, len(part) - 1, 4096).astype(int))][..., :3], axis=2)
        still = size.std(1) <= 0.02 * size.mean(1)
        rest = float(np.median(size[still].mean(1))) if still.any() else GRAVITY
        if abs(rest / GRAVITY - 1) <= 0.15:
            continue
        unit = next((u for u in ACC_UNITS if abs(rest * ACC_UNITS[u] / GRAVITY - 1) <= 0.15), None)
        todo = (
            f'it seems to be in {unit}: add "acc_unit": "{unit}"' if unit else 'say its unit ("acc_unit": m/s2, g, mg)'
        )
        found = f"{data_path(name, version)}: the acceleration at rest is {rest:.3g}, not about 9.8 m/s2; {todo}"
        where = set_entry(name, version).get("file", "dataset/data_config.json")
        found += f" to {name}_{version} in {where}" + ("" if unit else ", or leave the set out")
        if refuse:
            raise UserError(found)
        warn(found)


def unlabelled(labels, config):
    """Whether labels (N, T, K) are those of a set without any: -1 throughout in the activity's column."""
    index = label_columns(config).get("activity")
    if index is None or labels.ndim != 3 or index >= labels.shape[2] or labels.size == 0:
        return False
    return labels[0, 0, index] == -1 and bool((labels[:, :, index] == -1).all())


def window_labels(labels, index, names, where):
    """One id per window from a label column: (N,) int64, -1 for a window whose label changes within it.

    Raises UserError if an id is no whole number or outside 0 .. len(names) - 1; `where` names the file.
    """
    if index >= labels.shape[2]:
        raise UserError(f"-l {index}: {where} has only {labels.shape[2]} label columns")
    column = np.asarray(labels[:, :, index])
    low, high = column.min(), column.max()
    if low >= 1 and high == len(names):
        raise UserError(f"{where}: the ids of column {index} start at 1; subtract 1, ids count from 0")
    if low < 0 or high >= len(names) or (column != np.floor(column)).any():
        raise UserError(
            f"{where}: column {index} holds {low:g} to {high:g}, not ids from 0 to {len(names) - 1} "
            f"(its entry says {len(names)})"
            + ("; -1 is no label: an unlabelled set is for pretrain.py and predict.py" if low == -1 else "")
        )
    return np.where((column == column[:, :1]).all(1), column[:, 0].astype(np.int64), -1)


def in_classes(ids, own, names):
    """Ids (N,) of a set whose classes are called `own` as those of a model's `names`; None for other classes.

    The same classes in another order are mapped by name; -1, no label, stays.
    """
    if sorted(own) != sorted(names):
        return None
    return np.array([*map(names.index, own), -1])[ids]


def split_windows(count, copies, seed, split_by):
    """Rows of the `copies` x `count` stacked windows for (training, validation, test): shuffled, 80/10/10 %.

    Row c * count + i is copy c of window i. "window" shuffles the windows, all copies of one together; "copy" shuffles
    the rows, as the released code does: NumPy's RandomState seeded, arange shuffled, cut.
    """
    items = count if split_by == "window" else count * copies
    order = np.arange(items)
    np.random.RandomState(seed).shuffle(order)
    cuts = [int(items * 0.8), int(items * 0.8) + int(items * 0.1)]
    parts = np.split(order, cuts)
    if split_by == "window":
        parts = [with_copies(part, count, copies) for part in parts]
    return parts


def split_sources(counts, copies, seed, split_by):
    """split_windows of each source alone, for sources of `counts` windows stacked one after another: their rows then.

    Yields (training, validation, test) for each source; copies of all sources lie one after another.
    """
    starts = np.cumsum([0, *counts])
    for start, count in zip(starts[:-1], counts, strict=True):
        parts = split_windows(count, copies, seed, split_by)
        yield [rows // count * starts[-1] + start + rows % count for rows in parts]


def with_copies(windows, count, copies):
    """Rows of all copies of the given windows: (copies * len,), copy after copy."""
    return (np.arange(copies)[:, None] * count + np.asarray(windows)[None]).reshape(-1)


def pick_labelled(rows, rate, count, copies, seed, split_by):
    """The share `rate` of the training rows whose labels the classifier may see: at least one window.

    Seeded again and shuffled, the first share taken, by window or by copy like the split.
    """
    items = rows[: len(rows) // copies] if split_by == "window" else rows  # the first copy's rows stand for the windows
    order = np.arange(len(items))
    np.random.RandomState(seed).shuffle(order)
    chosen = items[order[: max(1, int(len(items) * rate))]]
    return with_copies(chosen % count, count, copies) if split_by == "window" else chosen


def labelled_split(ids, names, where, rate, counts, copies, seed, split_by):
    """Rows for (labelled training, training, validation, test), each a list by source, of windows with labels `ids`.

    The `counts` windows of the sources are stacked, with `copies` of each; split and label rate are a source's own. A
    row whose label changes within it (-1) has none and is left out; `where` names the labels' file. Raises UserError
    for a single class and for too few windows; warns of classes without a labelled window.
    """
    if len(np.unique(ids[ids >= 0])) < 2:
        raise UserError(f"{where}: the label column holds a single class; nothing to classify")
    found, total = [], sum(counts)
    for count, parts in zip(counts, split_sources(counts, copies, seed, split_by), strict=True):
        train, val, test = (rows[ids[rows] >= 0] for rows in parts)
        if min(map(len, (train, val, test))) == 0:
            raise UserError(f"{where}: {count} windows are too few to train, validate and test on")
        found.append((pick_labelled(train, rate, total, copies, seed, split_by), train, val, test))
    labelled = np.concatenate([parts[0] for parts in found])
    if missing := [name for i, name in enumerate(names) if i not in ids[labelled]]:
        warn(f"no labelled window of {', '.join(missing)} at label rate {rate:g}, seed {seed}")
    return [list(parts) for parts in zip(*found, strict=True)]


# ------------------------------------------------------------------------------------------------- device


def pick_device(gpu):
    """The torch.device for -g: None is the first GPU, else the CPU. Raises UserError for a GPU that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu == "cpu" or (gpu is None and count == 0):
        return torch.device("cpu")
    if (gpu or 0) >= count:
        there = ", ".join(f"{i} ({torch.cuda.get_device_name(i)})" for i in range(count)) or "none"
        raise UserError(f"-g {gpu}: no such GPU; GPUs here: {there}; leave -g out to use the first GPU or the CPU")
    torch.cuda.set_device(gpu or 0)
    return torch.device("cuda", gpu or 0)


def set_deterministic():
    """For --deterministic: operations that give the same bits each time, also on a GPU; others raise an error.

    Call it before the GPU is first used: cuBLAS reads its workspace setting then.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


# ---------------------------------------------------------------------------------------------- optimiser


class Adam(torch.optim.Adam):
    """torch.optim.Adam without what it imports at its first use for torch.compile, which takes as long as PyTorch's own
    import: of its methods those that PyTorch wraps for that, unwrapped.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
