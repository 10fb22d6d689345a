"""What a training step reads: the windows' views, and everything random of an epoch, both drawn ahead of the steps.

Axes as in augment.py; n training rows (windows with their copies), B of them in a step, 2B visits (both views).
"""

from typing import NamedTuple

import torch

from augment import Masks, draw_masks
from models import draw_keep

SECTION = 1 << 17  # visits drawn at once: all of an epoch up to 65 000 rows, and some 150 MB however many there are


class Draw(NamedTuple):
    """Everything random of some steps, one row a step."""

    order: torch.Tensor  # (steps, B) int64: the rows of a step
    masks: Masks  # of its 2B visits, first the weak views, then the strong ones
    keep: dict  # the class token's dropout factors at those visits

    def step(self, index):
        """What step `index`, a (1,) tensor on the device, uses: no number goes to the host and back."""
        order, masks, keep = self
        at = lambda part: part.index_select(0, index)[0] if part.numel() else part  # noqa: E731
        return at(order), Masks(*map(at, masks)), {name: at(part) for name, part in keep.items()}


def section_steps(B):
    """How many steps of B rows are drawn at once."""
    return max(1, SECTION // (2 * B))


def draw_epoch(n, B, steps, shape, mask_cfg, head, generator, mine=slice(None)):
    """An epoch's randomness, section after section: n rows of `shape` (T, C), `steps` batches of B. Yields Draws.

    Each section is drawn in one batched call. `mine` is the part of each batch that this process trains on.
    """
    order = torch.randperm(n, generator=generator, device=generator.device)[: steps * B].view(steps, B)
    for part in order.split(section_steps(B)):
        visits = 2 * B * len(part)
        masks = draw_masks(visits, *shape, mask_cfg, generator)
        keep = draw_keep(visits, head.seq_transformer.c_token.shape[-1], head.P_FF, generator)
        pick = lambda x: x.unflatten(0, (-1, 2, B))[:, :, mine].flatten(1, 2) if x.numel() else x  # noqa: E731
        yield Draw(part[:, mine], Masks(*map(pick, masks)), {name: pick(x) for name, x in keep.items()})


def copy_into(static, new):
    """Copy a Draw's tensors into another's, which stay where they are: a recorded step reads them there."""
    pairs = [(static.order, new.order), *zip(static.masks, new.masks, strict=True)]
    for old, fresh in pairs + [(static.keep[name], new.keep[name]) for name in new.keep]:
        old[: len(fresh)].copy_(fresh)
        if fresh.is_cuda:  # made on a stream of its own (fast.aside): its memory is free when this copy is done
            fresh.record_stream(torch.cuda.current_stream())


class InMemory:
    """The views (2, n, T, C) of all rows, on the device."""

    def __init__(self, views):
        self.views = views

    def __len__(self):
        return self.views.shape[1]

    def batches(self, order):
        """Once for each step, before it: `order` (steps, B) are the rows of the steps to come."""
        return range(len(order))

    def batch(self, order):
        """The views of the step's rows, order (B,) on the device: (2, B, T, C)."""
        return self.views.index_select(1, order)

    def between(self, start, stop):
        """The views of the rows from start to stop."""
        return self.views[:, start:stop]
