"""What a training step reads: the windows' views, and everything random of an epoch, both drawn ahead of the steps.

Axes as in augment.py; n training rows (windows with their copies), B of them in a step, 2B visits (both views).
"""

import itertools
import math
import os
from typing import NamedTuple

import numpy as np
import torch

from augment import Copies, Masks, PerRow, draw_masks, make_generator, two_views
from bookkeeping.machine import available_memory
from models import draw_keep

SECTION = 1 << 17  # visits drawn at once: all of an epoch up to 65 000 rows, and some 150 MB however many there are


class Draw(NamedTuple):
    """Everything random of some steps, one row a step."""

    order: torch.Tensor  # (steps, B) int64: the rows of a step
    masks: Masks  # of its 2B visits, first the weak views, then the strong ones
    keep: dict  # the class token's dropout factors at those visits

    def map(self, change):
        """`change` done to every tensor that is not empty."""
        order, masks, keep = self

        def do(part):
            return change(part) if part.numel() else part

        return Draw(do(order), Masks(*map(do, masks)), {name: do(part) for name, part in keep.items()})

    def tensors(self):
        return [self.order, *self.masks, *self.keep.values()]


def section_steps(B):
    """How many steps of B rows are drawn at once."""
    return max(1, SECTION // (2 * B))


def shuffled(sizes, steps, B, generator):
    """The rows of `steps` batches of B: (steps, B) int64, of sources of `sizes` rows, stacked, equal shares of each.

    A source's rows come in a random order, those of a small one again and again; B and S sources may leave a remainder,
    which goes to the first ones.
    """
    parts, start, device = [], 0, generator.device
    for number, size in enumerate(sizes):
        share = B // len(sizes) + (number < B % len(sizes))
        rounds = max(1, -(-steps * share // size))
        rows = torch.cat([torch.randperm(size, generator=generator, device=device) for _ in range(rounds)])
        parts.append(start + rows[: steps * share].view(steps, share))
        start += size
    return torch.cat(parts, dim=1)


def draw_epoch(sizes, B, steps, shape, mask_cfg, head, generator, add=None):
    """An epoch's randomness, section after section: rows of `shape` (T, C), `steps` batches of B. Yields Draws.

    `sizes` are the rows of each source. Each section is drawn in one batched call; `add` as in augment.span_positions.
    """
    order = shuffled(sizes, steps, B, generator)
    for part in order.split(section_steps(B)):
        visits = 2 * B * len(part)
        masks = draw_masks(visits, *shape, mask_cfg, generator, add)
        keep = draw_keep(visits, head.seq_transformer.c_token.shape[-1], head.P_FF, generator)
        by_step = [x.unflatten(0, (len(part), 2 * B)) if x.numel() else x for x in masks]
        yield Draw(part, Masks(*by_step), {name: x.unflatten(0, (len(part), 2 * B)) for name, x in keep.items()})


def share_of(draw, mine):
    """The part `mine` (a slice) of each batch, and of both views' visits, that this process trains on."""
    B = draw.order.shape[1]
    part = draw.map(lambda x: x if x is draw.order else x.unflatten(1, (2, B))[:, :, mine].flatten(1, 2))
    return part._replace(order=draw.order[:, mine])


class Draws:
    """Everything random of a training, drawn an epoch (or a section of a large one) ahead of the steps that use it.

    What step() gives stays in place, so that a step can be recorded and replayed: no number goes to the host and back.
    """

    def __init__(self, engine, sizes, shape, config, head):
        """`sizes`: the rows of each source; `shape` (T, C) of a window."""
        self.engine, self.sizes, self.shape, self.config, self.head = engine, sizes, shape, config, head
        self.B = min(config["train"]["batch_size"], sum(sizes))
        self.mine = engine.team.share(self.B)
        self.steps = sum(sizes) // self.B  # of an epoch, the last partial batch dropped
        self.index = torch.zeros(1, dtype=torch.int64, device=engine.device)

    def start(self, epoch):
        """Draw from `epoch` on: a function of (seed, epoch), whatever was drawn before."""
        self.upcoming = itertools.chain.from_iterable(map(self.drawn, itertools.count(epoch)))
        self.ahead()
        self.now = self.next

    def drawn(self, epoch):
        generator = make_generator(self.engine.device, self.config["train"]["seed"], "epoch", epoch)
        return (
            share_of(draw, self.mine)
            for draw in draw_epoch(
                self.sizes,
                self.B,
                self.steps,
                self.shape,
                self.config["mask"],
                self.head,
                generator,
                self.engine.add_spans,
            )
        )

    def epoch(self, steps):
        """Yields the rows (s, B) of the next s steps, once an epoch unless the data are many; `steps` of it in all."""
        section = section_steps(self.B)
        for start in range(0, steps, section):
            if start:
                self.ahead()
            for static, fresh in zip(self.now.tensors(), self.next.tensors(), strict=True):
                put(fresh, static[: len(fresh)])
            self.index.zero_()
            yield self.now.order[: min(section, steps - start)]

    def ahead(self):
        """Draw what epoch() will put in place next, beside what a GPU has queued."""
        with self.engine.aside():
            self.next = next(self.upcoming)

    def step(self):
        """(rows (B,), masks, dropout factors) of the next step."""
        step = self.now.map(lambda x: x.index_select(0, self.index)[0])
        self.index.add_(1)
        return step


def put(fresh, static):
    """Copy a tensor to where a step reads it. It may be made on a stream aside: its memory is free after the copy."""
    static.copy_(fresh)
    if fresh.is_cuda:
        fresh.record_stream(torch.cuda.current_stream())


# ------------------------------------------------------------------------------------------ where the views live


class FromFile:
    """Windows of a memory-mapped array (N, T, C), brought to the device as float32 when they are asked for.

    On the way to a GPU they wait in two pinned buffers in turn, so that one is filled while the other is on its way.
    """

    def __init__(self, data, device):
        self.data, self.device, self.shape = data, device, data.shape
        self.buffers, self.turn = [], 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        """The windows of `index`, an int64 tensor (n,) on the CPU: (n, T, C) on the device."""
        if self.device.type != "cuda":
            return self.read(index, torch.empty(len(index), *self.shape[1:]))
        if not self.buffers or len(self.buffers[0][0]) < len(index):
            empty = torch.empty(len(index), *self.shape[1:])
            self.buffers = [(empty.pin_memory(), torch.cuda.Event()) for _ in range(2)]
        self.turn = 1 - self.turn
        buffer, copied = self.buffers[self.turn]
        copied.synchronize()  # what this buffer held last has reached the GPU
        x = self.read(index, buffer[: len(index)]).to(self.device, non_blocking=True)
        copied.record()
        return x

    def read(self, index, windows):
        """Fill `windows` (n, T, C), forwards through the file."""
        order = index.argsort()
        windows.numpy()[order.numpy()] = self.data[index[order].numpy()]
        return windows


class Source:
    """Makes the views of `rows` (n,) of `copies`: functions of (seed, row) alone, and of the epoch after renew()."""

    def __init__(self, copies, rows, seed):
        self.copies, self.rows, self.key = copies, rows, (seed, "views")

    def __len__(self):
        return len(self.rows)

    def __call__(self, index):
        """The views (2, m, T, C) of some of the rows, `index` a slice or an int64 tensor on the rows' device."""
        return self.views(*self.read(index))

    def read(self, index):
        """The windows (m, T, C) that those rows are copies of, and the rows (m,), where the views will be made."""
        rows = self.rows[index]
        x = self.copies.originals(rows)
        return x, rows.to(x.device)

    def views(self, x, rows):
        return two_views(self.copies.altered(x, rows), PerRow(rows, *self.key))


class InMemory:
    """The views (2, n, T, C) of all rows, on the device."""

    def __init__(self, views, source=None):
        self.views, self.source = views, source

    @classmethod
    def made_by(cls, source, shape, device):
        self = cls(torch.empty(2, len(source), *shape, device=device), source)
        self.fill()
        return self

    def fill(self):
        piece = 512 if self.views.device.type == "cpu" else 16384  # what a CPU's cache holds, what fills a GPU
        for start in range(0, len(self), piece):
            self.views[:, start : start + piece] = self.source(slice(start, start + piece))

    def renew(self, seed, epoch):
        """Draw the views of an epoch anew, into the same place."""
        self.source.key = (seed, "views", epoch)
        self.fill()

    def __len__(self):
        return self.views.shape[1]

    def batches(self, order):
        """Yields once for each of the steps that `order` (steps, B) lists, when its views are there for batch()."""
        return range(len(order))

    def batch(self, order):
        """The views of a step's rows, order (B,) on the device: (2, B, T, C)."""
        return self.views.index_select(1, order)

    def between(self, start, stop):
        """The views of the rows from start to stop: (2, stop - start, T, C)."""
        return self.views[:, start:stop]


class Streamed:
    """The same for data that don't fit: views are made batch by batch, on a GPU while the step before is running.

    The numbers are those of InMemory, which makes them by the same calls. On a GPU those are recorded, for batches of
    one size: some 60 kernels, which take longer to launch than a training step to run. renew() records them anew.
    """

    def __init__(self, source, engine):
        self.source, self.engine, self.device = source, engine, engine.device
        self.inputs = self.made = self.ready = self.recorded = None
        self.taken = torch.cuda.Event() if self.device.type == "cuda" else None  # `made` may be written again

    def renew(self, seed, epoch):
        self.source.key = (seed, "views", epoch)
        self.recorded = None  # the old key is in it

    def __len__(self):
        return len(self.source)

    def batches(self, order):
        order = order.cpu()
        upcoming = self.make(order[0])
        if self.ready is None:
            self.ready = torch.empty_like(upcoming)  # it stays in place: a recorded step reads it
        for step in range(len(order)):
            put(upcoming, self.ready)
            if self.taken:
                self.taken.record()
            yield step
            if step + 1 < len(order):
                with self.engine.aside():
                    upcoming = self.make(order[step + 1])

    def make(self, index):
        """The views of a step's rows, index (B,) on the CPU: (2, B, T, C) on the device, the next call's place too."""
        if self.device.type != "cuda":
            return self.source(index)
        read = self.source.read(index)
        if self.recorded is None:
            self.inputs, self.recorded = [part.clone() for part in read], self.engine.recorded(self.record)
        torch.cuda.current_stream().wait_event(self.taken)
        for part, new in zip(self.inputs, read, strict=True):
            part.copy_(new)
        self.recorded("views")
        return self.made

    def record(self, _):
        self.made = self.source.views(*self.inputs)

    def batch(self, order):
        return self.ready

    def between(self, start, stop):
        return self.source(slice(start, stop))


def open_views(engine, data, parts, method, seed, memory_gb=None):
    """The views of some parts of the rows (arrays of row numbers), all in memory if they fit, else streamed.

    Returns one InMemory or Streamed a part. data (N, T, C) is an array or a memory map; the limit is memory_gb (10^9
    bytes) or what most of the device's free memory is.
    """
    (N, *shape), device = data.shape, engine.device
    needed = 4 * math.prod(shape) * (N + 2 * sum(map(len, parts)))
    limit = free_memory(device) if memory_gb is None else 1e9 * memory_gb
    if needed <= limit:
        copies = Copies(torch.tensor(np.asarray(data, dtype=np.float32), device=device), method, seed)
        sources = [Source(copies, torch.as_tensor(part, device=device), seed) for part in parts]
        return [InMemory.made_by(source, shape, device) for source in sources]
    room = f"all views would take {needed / 1e9:.3g} GB of the {limit / 1e9:.3g} GB there are for them"
    print(f"{room}: they are made batch by batch from the data file")
    copies = Copies(FromFile(data, device), method, seed)
    return [Streamed(Source(copies, torch.as_tensor(part), seed), engine) for part in parts]


def free_memory(device):
    """Bytes that the views may take: three quarters of a GPU's free memory, half of what the system has available.

    The other processes of a torchrun run on the same machine's CPUs have their share.
    """
    if device.type == "cuda":
        return 0.75 * torch.cuda.mem_get_info(device)[0]
    return 0.5 * available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
