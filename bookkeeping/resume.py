"""Interrupted training goes on where it stopped: the whole state of a run, kept beside what the run will write.

An epoch is a function of (seed, epoch) and of the state at its start, so states are taken between epochs only, and a
resumed run gives the same bits as an undisturbed one (on the CPU; on CUDA to rounding).
"""

import contextlib
import io
import json
import math
import signal
import threading
import time
from pathlib import Path

import torch

from bookkeeping.artefacts import atomic, check_unpacks, check_writable, differing, fits
from bookkeeping.commands import UserError

COPY_SECONDS = 1  # how much work an interruption may cost
WRITE_SECONDS = 15  # and a kill that leaves no time to write


def copied(value):
    """A deep copy of nested dicts, lists and tensors, the tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(item) for item in value]
    return value


@contextlib.contextmanager
def undisturbed():
    """Ignore SIGTERM meanwhile: torchrun sends it to the processes that are left as soon as one has died."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check(state, parts, n_epochs):
    """Raise ValueError unless a state has the parts, the best ones so far and the history of a run of `n_epochs`."""
    epoch, best, history = (state[name] for name in ("epoch", "best", "history"))
    numbers = {"*": (int, float)}
    if not fits(epoch, int) or not 0 < epoch <= n_epochs or not fits(best.get("loss", 0.0), float):
        raise ValueError("no such epoch or loss")
    if not history or not fits(history, [numbers]) or any(row.keys() != history[0].keys() for row in history):
        raise ValueError("no such history")
    if best.get("loss", math.inf) == math.inf:  # nothing is the best one yet, or the last one is
        return
    if not fits(best["epoch"], int):
        raise ValueError("no such best epoch")
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            shapes = [{key: tensor.shape for key, tensor in s.items()} for s in (part.state_dict(), best[name])]
            if shapes[0] != shapes[1]:
                raise ValueError(f"the best {name} is another network's")


def check_optimizer(optimizer, fresh, state):
    """Raise ValueError unless an Adam that has loaded `state` is one that can go on; `fresh` is its own before."""
    for old, new in zip(fresh["param_groups"], state["param_groups"], strict=True):
        same = {key for key in old if not isinstance(old[key], torch.Tensor)}
        if old.keys() != new.keys() or any(
            type(old[key]) is not type(new[key]) or old[key] != new[key] for key in same
        ):
            raise ValueError("another optimiser's settings")
    for parameter, found in optimizer.state.items():
        shapes = {key: value.shape for key, value in found.items()}
        if shapes != {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
            raise ValueError("another optimiser's state")


class Resume:
    """The state file of one run. `config` is all that the result depends on; another one's state is refused.

    Of several processes that train together one `writes`. Raises UserError at once if the file's folder
    cannot be written to: the artefacts go there too.
    """

    def __init__(self, path, config, restart=False, writes=True):
        self.path, self.writes = Path(path), writes
        self.config = json.loads(json.dumps(config | {"torch": torch.__version__}))
        self.kept = None
        self.last_copy = self.last_write = time.monotonic()
        check_writable(self.path)
        if restart and writes:
            self.path.unlink(missing_ok=True)

    def load(self):
        """The state of an interrupted run, or None. Raises UserError if it cannot be read or is another run's."""
        if not self.path.exists():
            return None
        try:
            check_unpacks(self.path)
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            config, state = dict(json.loads(state["config"])), dict(state["state"])
        except Exception as error:  # torch raises anything from KeyError to UnpicklingError
            raise UserError(f"{self.path} is not a readable training state; start afresh with --restart") from error
        if config != self.config:
            keys = ", ".join(differing(config, self.config))
            raise UserError(
                f"{self.path} was left by a run with another configuration: {keys}; "
                "repeat the command of that run, or start afresh with --restart"
            )
        return state

    def restore(self, parts, n_epochs, unit="epochs"):
        """Load an interrupted run's state into `parts` ({name: network or optimiser}): (epoch, best, history).

        Of a fresh run (0, {"loss": inf}, []).
        """
        if not (state := self.load()):
            return 0, {"loss": math.inf}, []
        try:
            check(state, parts, n_epochs)
            for name, part in parts.items():
                before = copied(part.state_dict())
                part.load_state_dict(state[name])
                if isinstance(part, torch.optim.Optimizer):
                    check_optimizer(part, before, state[name])
        except Exception as error:  # torch raises anything on what is no state of the part
            raise UserError(f"{self.path} is not a readable training state; start afresh with --restart") from error
        print(f"continuing from {self.path}: {state['epoch']} of {n_epochs} {unit} are done")
        return state["epoch"], state["best"], state["history"]

    def after_epoch(self, parts, **more):
        """Call between epochs: copies the state of `parts` and what else is given now and then, and writes it."""
        if not self.writes:
            return
        now = time.monotonic()
        if self.kept is None or now - self.last_copy >= COPY_SECONDS:
            self.kept, self.last_copy = copied({n: part.state_dict() for n, part in parts.items()} | more), now
        if now - self.last_write >= WRITE_SECONDS:
            self.write()

    def write(self):
        """Write the state last copied, atomically."""
        buffer = io.BytesIO()
        torch.save({"config": json.dumps(self.config), "state": self.kept}, buffer)
        with atomic(self.path) as handle:
            handle.write(buffer.getbuffer())
        self.last_write = time.monotonic()

    @contextlib.contextmanager
    def guard(self):
        """Around the training loop: when it is interrupted or fails, the state goes to the file and the user knows."""
        try:
            yield
        except BaseException:
            if self.kept is not None:
                with undisturbed():
                    self.write()
                print(f"\nstate kept in {self.path}; the same command continues from there", flush=True)
            raise

    def finished(self):
        """The run is complete and its artefacts are written: the state is of no more use."""
        if self.writes:
            self.path.unlink(missing_ok=True)
