"""The command line of every script: flags and their types, a user's mistake in one line, interruption, warnings."""

import argparse
import os
import re
import shlex
import signal
import sys
import time

AUGMENTATIONS = ("channel_aug", "rotation_random", "jitter", "scaling", "permutation", "none")
AUGMENTATION = "channel_aug"  # where -am is not given
LABEL_RATE = 0.1  # where -lr is not given


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file, key or flag and says what to do."""


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one `error:` line and exit status 2, without the usage block."""

    def error(self, message):
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")


def one_line(text):
    return " ".join(str(text).split())


def on_interrupt(handler):
    """Have Ctrl-C and SIGTERM call `handler`; a command started in the background (nohup, &) still ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def run(main, get_args, several=False):
    """Run a script's main(get_args()): a user's mistake gives one line and status 2, Ctrl-C and SIGTERM give 130.

    `several`: whether torchrun may start it as several processes.
    """

    def interrupt(*_):
        raise KeyboardInterrupt

    on_interrupt(interrupt)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # where it is not UTF-8, an arrow is a question mark and no traceback
    try:
        try:
            args = get_args()
            check_processes(several)
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
        if process_count() > 1:  # an exit in order would wait for a message to the others
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(130)
        sys.exit(130)


def warn(message):
    """One `warning:` line on stderr, from the first process of a torchrun command alone."""
    if not process_number():
        print(f"warning: {message}", file=sys.stderr)


def _variable(name, default):
    """A whole number of the environment; `default` without it, and where it is none (check_processes says so)."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def check_processes(several):
    """Raise UserError where torchrun's variables are set without torchrun, or it runs what does not take `several`."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    there = {name: os.environ[name] for name in launcher if os.environ.get(name)}
    if process_count() == 1 and not process_number() and all(there.get(n, "0").isdecimal() for n in launcher[:2]):
        return
    if len(there) < len(launcher) or not all(there[name].isdecimal() for name in launcher[:4]):
        missing = ", ".join(name for name in launcher if name not in there) or "whole numbers"
        raise UserError(
            f"WORLD_SIZE or RANK is set in the environment, but not as torchrun does ({missing} missing): "
            "unset them, or start with torchrun"
        )
    if not several:
        if process_number():
            time.sleep(30)  # the first process says it, whereupon torchrun ends the others
        raise UserError("torchrun is for pretrain.py, whose training several processes can share; leave it out here")


def process_number():
    """Which of the processes that torchrun started this is, from 0; 0 without it."""
    return _variable("RANK", 0)


def process_count():
    """How many processes torchrun started; 1 without it."""
    return _variable("WORLD_SIZE", 1)


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


def a_source(text):
    """An argparse type: one data set or several (uci,motion), as uci+motion."""
    names = [a_name(name) for name in re.split("[,+]", text)]
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names a data set twice")
    return "+".join(names)


REPEATED = {  # the flags that a command in a message takes over: (flag, what it is without it, scripts that read it)
    "dataset": ("-d", None, "pretrain embedding classifier cross_dataset_test"),
    "dataset_version": ("-dv", "20_120", "pretrain embedding classifier cross_dataset_test"),
    "model_version": ("-mv", "v1", "pretrain embedding classifier cross_dataset_test"),
    "save_model": ("-s", "model", "pretrain embedding classifier cross_dataset_test"),
    "model_file": ("-f", None, "embedding classifier cross_dataset_test"),
    "train_cfg": ("-t", None, "pretrain embedding classifier cross_dataset_test"),
    "mask_cfg": ("-a", "config/mask.json", "pretrain"),
    "augument_method": ("-am", None, "pretrain embedding classifier"),
    "label_index": ("-l", 0, "classifier cross_dataset_test"),
    "label_rate": ("-lr", None, "classifier"),
    "seed": ("--seed", None, "pretrain embedding classifier cross_dataset_test"),
    "gpu": ("-g", None, "pretrain embedding classifier cross_dataset_test"),
}


def again(script, flags):
    """The command that runs a stage's script, for messages: `flags` ({name: value}, vars(args)) as the user gave them.

    Those that mean nothing there are left out: -t and --seed are of pretraining or of the classifier, and what the
    other stages call -f, or -s without it, is what pretrain.py calls -s.
    """
    pretraining = script in ("pretrain", "embedding")
    flags = dict(flags)
    if script == "pretrain":
        flags["save_model"] = flags.get("model_file") or flags.get("save_model")
    if (flags.get("default_train_cfg") == "config/pretrain.json") != pretraining:
        flags |= {"train_cfg": None, "seed": None}
    command = ["python", f"{script}.py"]
    for name, (flag, default, scripts) in REPEATED.items():
        if script in scripts.split() and flags.get(name) not in (None, default):
            command += [flag, str(flags[name])]
    return shlex.join(command)


def add_abstain(parser):
    """The flag of the scripts that test on a target."""
    share = a_number(float, lambda x: 0 <= x <= 1, "a probability from 0 to 1")
    parser.add_argument(
        "--abstain",
        metavar="THRESHOLD",
        type=share,
        help="print coverage and scores of the windows whose top probability is at least this",
    )


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
    add("-d", "--dataset", type=a_source, default="uci", help="source data set, or several: uci,motion (default uci)")
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
    add(
        "-lr",
        "--label_rate",
        type=rate,
        help=f"share of the training windows whose labels are seen (default {LABEL_RATE})",
    )
    add("-am", "--augument_method", "--augment_method", choices=AUGMENTATIONS, help=f"default {AUGMENTATION}")
    seed = a_number(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 4294967295")
    add("--seed", type=seed, help="random seed, over the training configuration's")
    add("--deterministic", action="store_true", help="only operations that repeat bit for bit, also on a GPU (slower)")
    parser.set_defaults(default_train_cfg=train_cfg)
    return parser
