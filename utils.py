"""Command line, paths of artefacts, and loading and splitting windows: what all four scripts share.

Nothing here imports torch at the top, so that `--help` and a mistyped flag answer at once.
"""

import argparse
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np

AUGMENTATIONS = ("channel_aug", "rotation_random", "jitter", "scaling", "permutation", "none")
COPIES = 6  # every augmentation but `none` turns N windows into 6N


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file, key or flag and says what to do."""


# ---------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one `error:` line and exit status 2, without the usage block."""

    def parse_args(self, args=None, namespace=None):
        if args is None:  # run as a command: until run() takes over there is nothing to be lost, only a long import

            def leave(*_):
                os.write(2, b"interrupted\n")
                os._exit(130)

            on_interrupt(leave)
        return super().parse_args(args, namespace)

    def error(self, message):
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")


def one_line(text):
    return " ".join(str(text).split())


def on_interrupt(handler):
    """Have Ctrl-C and SIGTERM call `handler`; a command started in the background (nohup, &) still ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def run(main, args):
    """Run a script's main(args) as a command: a user's mistake gives one line and status 2, Ctrl-C and SIGTERM 130."""

    def interrupt(*_):
        raise KeyboardInterrupt

    on_interrupt(interrupt)
    try:
        try:
            main(args)
        except BaseException:
            on_interrupt(signal.SIG_IGN)  # what is left is to say why; torchrun sends SIGTERM just then
            raise
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:  # OSError: a file that no check foresaw; it names the file
        who = f" in process {process_number()}" if process_number() else ""
        print(f"error{who}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if not process_number():  # torchrun stops the processes that are left when one has died
            why = ": another process has ended, or torchrun was stopped; the same command continues the run"
            print("interrupted" + (why if process_count() > 1 else ""), file=sys.stderr)
        sys.exit(130)


def warn(message):
    """One `warning:` line on stderr, from the first process of a torchrun command alone."""
    if not process_number():
        print(f"warning: {message}", file=sys.stderr)


def process_number():
    """Which of the processes that torchrun started this is, from 0; 0 without it."""
    return int(os.environ.get("RANK", 0))


def process_count():
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def a_number(kind, test, wanted):
    """An argparse type: a number of `kind` for which `test` holds; `wanted` is the text for the error."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not test(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return convert


def a_name(text):
    """An argparse type: a plain name that cannot leave its folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"{text[:120]!r} is not a plain name (at most 100 letters, digits, '_', '-', '.'; no path)"
        )
    return text


def add_abstain(parser):
    """The flag of the scripts that test on a target."""
    share = a_number(float, lambda x: 0 <= x <= 1, "a probability from 0 to 1")
    parser.add_argument("--abstain", metavar="THRESHOLD", type=share, help="print coverage and scores of the windows "
                        "whose top probability is at least this")  # fmt: skip


def a_device(text):
    """An argparse type: a GPU index, or `cpu`."""
    return text if text == "cpu" else a_number(int, lambda n: n >= 0, "a GPU's index (0, 1, ...) or cpu")(text)


def make_parser(description, train_cfg="config/pretrain.json"):
    """The parser of the four scripts: the released code's flags, and --seed. `train_cfg` is the default of -t.

    Flags whose value may also come from an artefact's JSON have no default here: None means "not given".
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-mv", "--model_version", type=a_name, default="v1", help="entry of the model configs (default v1)")
    add("-d", "--dataset", type=a_name, default="uci", help="source data set (default uci)")
    add("-td", "--target_dataset", type=a_name, default="uci", help="target data set of stage 3 (default uci)")
    add("-dv", "--dataset_version", type=a_name, default="20_120", help="rate_length of the windows (default 20_120)")
    add("-g", "--gpu", type=a_device, help="index of the GPU, or cpu (default: the first GPU, else the CPU)")
    add("-f", "--model_file", type=a_name, help="stem of the pretrained model to read; pretrain.py starts from it")
    add("-t", "--train_cfg", help=f"training configuration (default {train_cfg})")
    add("-a", "--mask_cfg", default="config/mask.json", help="masking configuration (default config/mask.json)")
    index = a_number(int, lambda n: n >= 0, "a column's index (0, 1, ...)")
    add("-l", "--label_index", type=index, default=0, help="label column to classify (default 0, the activity)")
    add("-s", "--save_model", type=a_name, default="model", help="stem of the saved model's name (default model)")
    rate = a_number(float, lambda x: 0 < x <= 1, "a share above 0 and up to 1")
    add("-lr", "--label_rate", type=rate, help="share of the training windows whose labels are seen (default 0.1)")
    add("-am", "--augument_method", "--augment_method", choices=AUGMENTATIONS, help="default channel_aug")
    seed = a_number(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 4294967295")
    add("--seed", type=seed, help="random seed, over the training configuration's")
    add("--deterministic", action="store_true", help="only operations that repeat bit for bit, also on a GPU (slower)")
    parser.set_defaults(default_train_cfg=train_cfg)
    return parser


def pick_device(gpu):
    """The torch.device for -g: None is the first GPU, else the CPU. Raises UserError for a GPU that is not there."""
    import torch

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
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


# ---------------------------------------------------------------------------------------------- artefacts' paths


def _version(args):
    return "" if args.model_version == "v1" else f"_{args.model_version}"


def pretrain_stem(args, stem, dataset=None):
    """saved/pretrain_base_D_DV/STEM, to which _masked_6_1.pt and the like are added."""
    folder = f"pretrain_base{_version(args)}_{dataset or args.dataset}_{args.dataset_version}"
    return Path("saved") / folder / stem


def embedding_paths(args):
    """(embed, label) .npy paths of the source set under the pretrained stem in use."""
    stem = pretrained_name(args)
    folder = Path("embed") if args.model_version == "v1" else Path("embed") / args.model_version
    end = f"{'' if stem == 'model' else stem}_{args.dataset}_{args.dataset_version}.npy"
    return folder / f"embed{end}", folder / f"label{end}"


def classifier_path(args):
    """saved/classifier_base_transformer_D_DV/NAME_transformer.pt."""
    folder = f"classifier_base{_version(args)}_transformer_{args.dataset}_{args.dataset_version}"
    return Path("saved") / folder / f"{args.save_model}_transformer.pt"


def pretrained_name(args):
    """The stem of the pretrained model that stages 2a to 3 read: -f, else -s."""
    return args.model_file or args.save_model


def loss_weights(train_cfg):
    """The two loss weights as they stand in file names: 6_1."""
    return f"{train_cfg['lambda1']:g}_{train_cfg['lambda2']:g}"


# ---------------------------------------------------------------------------------------------- windows


def load_windows(dataset, version):
    """Open the windows of a data set: data (N, T, 6), memory-mapped; labels (N, T, K) numbers; its config entry.

    Raises UserError for whatever is missing or malformed: shapes, types, NaN, infinities, ids that don't fit.
    """
    from artefacts import fingerprint, load_npy, load_record
    from configs import dataset_config

    config = dataset_config(dataset, version)
    folder = Path("dataset") / dataset
    paths = [folder / f"{kind}_{version}.npy" for kind in ("data", "label")]
    hint = f"make it with: python dataset/prepare.py -d {dataset}"
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
        if not (piece.max() <= most and piece.min() >= -most):  # NaN is neither
            raise UserError(f"{paths[0]} holds NaN, infinity or numbers beyond float32; {hint}")
        if not np.isfinite(labels[start : start + 4096]).all():
            raise UserError(f"{paths[1]} holds NaN or infinity; {hint}")
    return data, labels, config


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
            f"(dataset/data_config.json says {len(names)})"
        )
    return np.where((column == column[:, :1]).all(1), column[:, 0].astype(np.int64), -1)


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


def agreed(flag, given, recorded, where, default=None):
    """A setting that an artefact's JSON records: that value, unless the user's flag says otherwise, an error.

    `recorded` is None where there is no JSON (a released file): then the flag counts, or `default`.
    """
    if recorded is None:
        return default if given is None else given
    if given is not None and given != recorded:
        raise UserError(f"{flag} {given} contradicts {where}, made with {recorded}; leave {flag} out, or make it again")
    return recorded


def differing(old, new, prefix=""):
    """Names of the keys in which two nested configurations differ, with both values."""
    names = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differing(a, b, f"{prefix}{key}.")
        elif a != b or (key in old) != (key in new):
            then, now = (a if key in old else "absent"), (b if key in new else "absent")
            names.append(f"{prefix}{key} ({then} then, {now} now)")
    return names


def check_same(where, recorded, now):
    """Raise UserError if an artefact's JSON recorded other settings than those of `now` (a nested dict)."""
    keys = differing({key: recorded.get(key, now[key]) for key in now}, now)
    if keys:
        raise UserError(f"{where} was made with other settings: {', '.join(keys)}; restore them, or make it again")
