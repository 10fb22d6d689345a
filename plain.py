"""The plain engine: every operation as models.py and augment.py write it, on one device, in float32.

A script computes through an engine: fast.engine() for speed, or this one (--plain), which gives the same numbers up to
rounding and is what the fast ones are tested against. Without the folder fast/ scripts run on `import plain as fast`.
"""

import contextlib

import torch

import augment
import models
import utils
from bookkeeping import artefacts
from bookkeeping.commands import UserError


class Alone:
    """The team of one process; of several that train one model together it is fast.parallel.Processes."""

    rank, size, first = 0, 1, True

    def __init__(self, device):
        self.device = device

    def share(self, B):
        """The slice of each batch of B rows that is this process's."""
        return slice(0, B)

    def gather(self, x):
        """Everybody's x (2, b, ...), in the order of the batch: (2, B, ...)."""
        return x

    def average(self, tensors):
        """Put the mean over the processes into the tensors."""

    def wait(self):
        """Until all are here."""

    def leave(self):
        """Part from the others."""


class Plain:
    """What computes: the operations of a training step and of the encoder, and the processes that share them.

    `note` is a line for the user on why it is no faster one, "" where that was asked for.
    """

    name = "plain"

    def __init__(self, team, precision="fp32", note=""):
        self.team, self.device, self.precision, self.note = team, team.device, precision, note

    hide = staticmethod(augment.hide)
    add_spans = staticmethod(augment.add_spans)

    def forward(self, model, head, x, positions, keep, both):
        """Masked windows x (2B, T, C) -> the chosen steps rebuilt (2B, M, C), the class tokens (2, B, P) or None."""
        reconstruction, h = model(x, positions)
        if not both:
            return reconstruction, None
        keeps = [{name: part.chunk(2)[i] for name, part in keep.items()} if keep else None for i in range(2)]
        return reconstruction, torch.stack([head.class_output(*view) for view in zip(h.chunk(2), keeps, strict=True)])

    def contrast(self, head, classes):
        """NT-Xent of the views' class tokens (2, B, P), each projected alone: BatchNorm's statistics are the view's."""
        return models.nt_xent(*map(head.projection_head, classes))

    def encoder(self, transformer):
        """A function like models.Transformer, (B, T, C) -> (B, T, D), without gradients, of the weights as they are."""
        return transformer

    def dropout(self, classifier, generator):
        """What draws a classifier's dropout in an epoch; None: its modules do."""
        return None

    def logits(self, classifier, h, dropout=None):
        """A classifier's logits (B, classes) of representations h (B, T, D)."""
        return classifier(h)

    def recorded(self, step, modules=(), optimizer=None, sums=()):
        """step(key), to be called again and again on tensors that stay in place; a GPU's engine replays its kernels."""
        return step

    def aside(self):
        """A context whose work may run beside what a GPU has queued."""
        return contextlib.nullcontext()

    def how(self, made_from):
        """What else than its configuration a training state belongs to: by rounding, engines differ."""
        parents = {str(path): artefacts.fingerprint(path) for path in made_from}
        found = {"made_from": parents, "device": self.device.type, "path": self.name}
        return found | ({"processes": self.team.size} if self.team.size > 1 else {})


def engine(gpu=None, deterministic=False, *, encoder=None, training=False, precision=None, on_gpu="fp32", plain=False):
    """The plain engine on the device of -g; the arguments are those of fast.engine. Raises UserError."""
    if precision not in (None, "fp32"):
        raise UserError(f"--precision {precision}: the plain path computes in float32; leave it out")
    if deterministic:
        utils.set_deterministic()
    return Plain(Alone(utils.pick_device(gpu)))
