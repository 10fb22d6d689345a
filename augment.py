"""What is drawn at random or done to windows before a network sees them: copies, views, normalisation, span masking.

Pure batched tensor functions: batch first, on the device of their input, randomness from a given torch.Generator, no
loop over windows.

Axes: N windows (B in a batch), T time steps, C channels (acc xyz in m/s^2, gyro xyz in rad/s), M masked steps.
"""

import itertools
import math
import zlib
from typing import NamedTuple

import numpy as np
import torch

from bookkeeping.commands import UserError

COPIES = 6  # every augmentation but `none` turns N windows into 6N


def make_generator(device, *key):
    """A torch.Generator on `device` seeded by the words of `key` (whole numbers and strings), each combination anew."""
    seed = int(np.random.SeedSequence(words_of(key)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def words_of(key):
    """Whole numbers and strings as the whole numbers that numpy.random.SeedSequence takes."""
    return [zlib.crc32(word.encode()) if isinstance(word, str) else int(word) for word in key]


class PerRow:
    """Random numbers for rows, an int64 tensor (n,): those of a row depend on (key, row) alone.

    However many rows are drawn together, and on which device: a batch gets the numbers that its rows get when all are
    drawn at once. A row's numbers are hashes of a counter (splitmix64), at most 2^20 of them.
    """

    def __init__(self, rows, *key):
        self.counter, self.device = rows[:, None] << 20, rows.device
        self.key = int(np.random.SeedSequence(words_of(key)).generate_state(1, np.uint64)[0] >> 1)

    def bits(self, count):
        """(n, count) int64, all 64 bits random. Constants above 2^63 are negative here; products wrap around."""
        x = self.counter + torch.arange(count, device=self.device)
        self.counter = self.counter + count
        x.mul_(0x9E3779B97F4A7C15 - (1 << 64)).add_(self.key)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor - (1 << 64))
        return x.bitwise_xor_((x >> 31).bitwise_and_((1 << 33) - 1))

    def rand(self, n, *shape):
        """Uniform over [0, 1): (n, *shape) float32."""
        return fraction(self.bits(math.prod(shape)) >> 40).view(n, *shape)

    def randn(self, n, *shape):
        """Normal by Box and Muller, a pair from each hash: (n, *shape) float32."""
        count = math.prod(shape)
        bits = self.bits((count + 1) // 2)
        radius, angle = (1 - fraction(bits >> 40)).log_().mul_(-2).sqrt_(), fraction(bits).mul_(2 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].reshape(n, *shape)


def fraction(bits):
    """The lowest 24 bits as a float32 in [0, 1)."""
    return (bits & 0xFFFFFF).float().mul_(2**-24)


def rand(generator, *shape):
    """Uniform over [0, 1) from a torch.Generator or from PerRow, on its device."""
    if isinstance(generator, PerRow):
        return generator.rand(*shape)
    return torch.rand(*shape, generator=generator, device=generator.device)


def randn(generator, *shape):
    """Normal numbers, likewise."""
    if isinstance(generator, PerRow):
        return generator.randn(*shape)
    return torch.randn(*shape, generator=generator, device=generator.device)


def instance_norm(x, eps=1e-5):
    """Each channel of each window to zero mean and unit (biased) variance over time; x (..., T, C)."""
    centred = x - x.mean(-2, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-2, keepdim=True) + eps)


# ------------------------------------------------------------------- stage (i): physically-informed augmentation


JITTER = 0.05  # standard deviation of the jittered copies' noise


def copy_count(method):
    """How many copies of each window the augmentation `method` makes, the original included."""
    return 1 if method == "none" else COPIES


class Copies:
    """The windows `data` (N, T, C) enlarged by differently mounted copies (paper, step i), made as they are asked for.

    Row c * N + i is copy c of window i: for channel_aug in the order of itertools.permutations, for the others five
    altered copies and the original last. What is drawn depends on (seed, method) alone and is drawn on the CPU, so that
    every stage and every device makes the same copies. `data` is a tensor, or gives windows as one does (batches.py).
    """

    def __init__(self, data, method, seed):
        self.data, self.method, self.seed = data, method, seed
        generator = make_generator("cpu", seed, method)
        T = data.shape[1]
        if method == "channel_aug":
            drawn = [torch.tensor([*order, *(a + 3 for a in order)]) for order in itertools.permutations(range(3))]
        elif method in ("none", "jitter"):
            drawn = [torch.zeros(copy_count(method))]
        else:
            draw, original = {
                "rotation_random": (random_rotation, torch.eye(3)),
                "scaling": (axis_factors, torch.ones(6)),
                "permutation": (lambda generator: segment_order(T, generator), torch.arange(T)),
            }[method]
            drawn = [*(draw(generator) for _ in range(COPIES - 1)), original]
        self.drawn = torch.stack(drawn).to(data.device)  # (copies, ...)

    def __len__(self):
        return copy_count(self.method) * len(self.data)

    def __getitem__(self, rows):
        """The windows (n, T, C) of a slice of rows or of an int64 tensor of them (n,)."""
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        x = self.originals(rows)
        return self.altered(x, rows.to(x.device))

    def originals(self, rows):
        """The windows that `rows` (n,) are copies of: (n, T, C), where the data give them."""
        return self.data[rows % len(self.data)]

    def altered(self, x, rows):
        """The copies `rows` (n,) of their windows x (n, T, C), all on one device."""
        copy = rows // len(self.data)
        if self.method == "none":
            return x
        if self.method == "jitter":  # Gaussian noise on every sample of all copies but the original
            noise = randn(PerRow(rows, self.seed, self.method), *x.shape)
            return x + JITTER * (copy < COPIES - 1)[:, None, None] * noise
        drawn = self.drawn[copy]  # what the copy of each row is altered by
        if self.method == "channel_aug":
            return x.gather(2, drawn[:, None].expand(x.shape))
        if self.method == "rotation_random":
            return rotate(x, drawn)
        if self.method == "scaling":
            return x * drawn[:, None].to(x.dtype)
        return x.gather(1, drawn[:, :, None].expand(x.shape))


def augment_copies(x, method, seed):
    """All rows of Copies at once: x (N, T, C) -> (copies * N, T, C)."""
    return Copies(x, method, seed)[:]


def random_rotation(generator):
    """A rotation drawn uniformly from SO(3) as a (3, 3) matrix, from a uniformly distributed unit quaternion."""
    q = torch.randn(4, generator=generator, dtype=torch.float64)
    w, x, y, z = q / q.norm()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=torch.float32)


def rotate(x, R):
    """Windows as a device mounted another way records them: x (n, T, 6), rotations R (n, 3, 3) for acc and gyro alike.

    Written out: a matrix product may round otherwise in another batch.
    """
    sensors, R = x.unflatten(2, (2, 3)), R[:, None, None].to(x.dtype)  # (n, T, 2, 3), (n, 1, 1, 3, 3)
    return sum(sensors[..., axis, None] * R[..., axis] for axis in range(3)).flatten(2)


def axis_factors(generator, sigma=0.1):
    """One factor N(1, sigma) per axis, the same for acc and gyro: (6,)."""
    return (1 + sigma * torch.randn(3, generator=generator)).repeat(2)


def segment_order(T, generator, segments=4, longer_than=10):
    """T time steps cut into segments of more than `longer_than`, in another order: (T,) int64."""
    if T < segments * (longer_than + 1):
        raise UserError(f"-am permutation needs windows of at least {segments * (longer_than + 1)} steps, not {T}")
    while True:
        cuts = torch.randint(longer_than, T - longer_than, (segments - 1,), generator=generator).sort().values
        edges = [0, *cuts.tolist(), T]
        if min(b - a for a, b in itertools.pairwise(edges)) > longer_than:
            break
    pieces = [torch.arange(a, b) for a, b in itertools.pairwise(edges)]
    return torch.cat([pieces[i] for i in torch.randperm(segments, generator=generator).tolist()])


# ------------------------------------------------------------------------------ the two views (paper, step ii)


def weak_view(x, generator):
    """Scaling: a factor N(2, 1.1) per window and time step, the same for all channels; x (N, T, C)."""
    N, T, _ = x.shape
    return x * (2 + 1.1 * randn(generator, N, T, 1))


def shuffled_segments(N, T, generator, most=7):
    """For each window the time steps in a new order: (N, T) int64.

    Cut into 1..most segments (each number equally likely) at distinct places drawn from 0..T-3 (a cut at 0 makes an
    empty segment), the segments shuffled.
    """
    device = generator.device
    segments = (most * rand(generator, N, 1)).long() + 1
    # distinct places: the first most - 1 of a random order of all T - 2
    places = rand(generator, N, T - 2).topk(most - 1, dim=1).indices
    unused = torch.arange(most - 1, device=device) >= segments - 1
    cuts = places.masked_fill(unused, T)
    segment = (cuts[:, :, None] <= torch.arange(T, device=device)).sum(1)  # cuts at or before a step: its segment
    rank = rand(generator, N, most).gather(1, segment)  # (N, T), one draw per segment
    return rank.sort(dim=1, stable=True).indices


def strong_view(x, generator, sigma=0.01):
    """Segments of time in a random order, then Gaussian jitter; x (N, T, C)."""
    N, T, C = x.shape
    order = shuffled_segments(N, T, generator)
    shuffled = x.gather(1, order[:, :, None].expand(N, T, C))
    return shuffled + sigma * randn(generator, N, T, C)


def two_views(x, generator):
    """The weak and the strong view of every window, instance-normalised: x (N, T, C) -> (2, N, T, C).

    With PerRow for a generator a window's views don't depend on which others are in x.
    """
    return instance_norm(torch.stack([weak_view(x, generator), strong_view(x, generator)]))


# ------------------------------------------------------------------------------------------------ span masking


MASKED_AT_ONCE = 1 << 17  # windows


class Masks(NamedTuple):
    """Which steps of each window the model predicts, and what it sees there. Index it to pick windows."""

    positions: torch.Tensor  # (..., M) int64, ascending
    zeroed: torch.Tensor  # (...,) bool: the chosen steps are set to zero
    replaced: torch.Tensor  # (...,) bool: they are set to `values`
    values: torch.Tensor  # (..., M, C) from U(0, 1), or of size 0 where replace_prob is 0

    def pick(self, index):
        return Masks(*(part[index] if part.numel() else part for part in self))


def masked_steps(T, mask_ratio):
    """M, how many of T steps are chosen: mask_ratio * T rounded, at least 1."""
    return max(1, round(T * mask_ratio))


def span_positions(count, T, M, max_gram, generator, add=None):
    """The M steps that span masking chooses in each of `count` windows: (count, M) int64, ascending.

    Until M steps are chosen: a length n from 1..max_gram with p(n) proportional to 0.8^(n-1), cut to the number still
    missing; a start uniform over T, tried again if already chosen; the steps start .. min(start + n, T - 1) - 1.
    Windows go through these rounds side by side; now and then those that are done drop out (one that waits for it draws
    spans of length 0). Looking which are done makes the host wait for a GPU, so there it is done seldom. `add` is how
    spans are added, if not by add_spans.
    """
    if count > MASKED_AT_ONCE:  # what is made on the way is many times larger than the result
        parts = torch.arange(count).split(MASKED_AT_ONCE)
        return torch.cat([span_positions(len(part), T, M, max_gram, generator, add) for part in parts])
    device = generator.device
    rounds, add = (24 if device.type == "cuda" else 4), add or add_spans
    weights = 0.8 ** torch.arange(max_gram, dtype=torch.float64)
    ends = (weights.cumsum(0) / weights.sum())[:-1].float().to(device)
    chosen = torch.zeros(count, T, dtype=torch.bool, device=device)
    rows, row_ids = chosen, torch.arange(count, device=device)
    while len(rows):
        lengths = torch.bucketize(torch.rand(rounds, len(rows), generator=generator, device=device), ends) + 1
        starts = torch.randint(T, (rounds, len(rows)), generator=generator, device=device)
        rows = add(rows, lengths, starts, M)
        chosen[row_ids] = rows
        left = (rows.sum(1) < M).nonzero()[:, 0]
        rows, row_ids = rows[left], row_ids[left]
    return chosen.nonzero()[:, 1].view(count, M)


def add_spans(chosen, lengths, starts, M):
    """Rounds of span_positions: chosen (n, T) bool, lengths and starts (rounds, n) int64 -> (n, T), at most M a row."""
    T = chosen.shape[1]
    steps = torch.arange(T, device=chosen.device)
    for n, start in zip(lengths[:, :, None], starts[:, :, None], strict=True):
        missing = M - chosen.sum(1, keepdim=True)
        end = (start + torch.minimum(n, missing)).clamp(max=T - 1)
        free = ~chosen.gather(1, start)
        chosen = chosen | ((steps >= start) & (steps < end) & free)
    return chosen


def draw_masks(count, T, C, mask_cfg, generator, add=None):
    """Masks for `count` visits of windows of shape (T, C), by the masking configuration (paper, span masking)."""
    device = generator.device
    M = masked_steps(T, mask_cfg["mask_ratio"])
    positions = span_positions(count, T, M, mask_cfg["max_gram"], generator, add)
    zeroed = torch.rand(count, generator=generator, device=device) < mask_cfg["mask_prob"]
    if mask_cfg["replace_prob"] == 0:
        return Masks(positions, zeroed, torch.zeros_like(zeroed), torch.zeros(0, device=device))
    replaced = (torch.rand(count, generator=generator, device=device) < mask_cfg["replace_prob"]) & ~zeroed
    return Masks(positions, zeroed, replaced, torch.rand(count, M, C, generator=generator, device=device))


def hide(x, masks):
    """The windows as the model sees them: the chosen steps zeroed, replaced or left visible; x (B, T, C)."""
    B, T, C = x.shape
    visible = torch.ones(B, T, 1, device=x.device, dtype=x.dtype)
    gone = (~masks.zeroed).to(x.dtype)[:, None].expand(masks.positions.shape)
    x = x * visible.scatter_(1, masks.positions[:, :, None], gone[:, :, None])
    if masks.values.numel():
        index = masks.positions[:, :, None].expand(-1, -1, C)
        x = torch.where(masks.replaced[:, None, None], x.scatter(1, index, masks.values), x)
    return x


def take_steps(x, positions):
    """The given steps of each window: x (B, T, F), positions (B, M) -> (B, M, F)."""
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[-1]))
