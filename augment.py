"""What is drawn at random or done to windows before a network sees them: copies, views, normalisation, span masking.

Pure batched tensor functions: batch first, on the device of their input, randomness from a given torch.Generator, no
loop over windows.

Axes: N windows (B in a batch), T time steps, C channels (acc xyz in m/s^2, gyro xyz in rad/s), M masked steps.
"""

import itertools
import zlib
from typing import NamedTuple

import numpy as np
import torch

from utils import COPIES, UserError


def make_generator(device, *key):
    """A torch.Generator on `device` seeded by the words of `key` (whole numbers and strings), each combination anew."""
    words = [zlib.crc32(word.encode()) if isinstance(word, str) else int(word) for word in key]
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def instance_norm(x, eps=1e-5):
    """Each channel of each window to zero mean and unit (biased) variance over time; x (..., T, C)."""
    centred = x - x.mean(-2, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-2, keepdim=True) + eps)


# ------------------------------------------------------------------- stage (i): physically-informed augmentation


def copy_count(method):
    """How many copies of each window the augmentation `method` makes, the original included."""
    return 1 if method == "none" else COPIES


def augment_copies(x, method, seed):
    """The training set enlarged by differently mounted copies (paper, step i): x (N, T, C) -> (copies * N, T, C).

    Copy after copy: for channel_aug in the order of itertools.permutations, for the others five altered copies and the
    original last. What is drawn depends on (seed, method) alone and is drawn on the CPU, so that every stage and every
    device makes the same copies.
    """
    if method == "none":
        return x
    if method == "channel_aug":
        orders = [[*order, *(axis + 3 for axis in order)] for order in itertools.permutations(range(3))]
        return torch.cat([x[:, :, order] for order in orders])
    alters = {"rotation_random": rotate, "jitter": jitter, "scaling": scale_axes, "permutation": permute_segments}
    generator = make_generator("cpu", seed, method)
    return torch.cat([alters[method](x, generator) for _ in range(COPIES - 1)] + [x])


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


def rotate(x, generator):
    """One random rotation for the whole set, the same for acc and gyro: the device mounted another way."""
    R = random_rotation(generator).to(x.device)
    return torch.cat([x[..., :3] @ R.T, x[..., 3:] @ R.T], dim=-1)


def jitter(x, generator, sigma=0.05):
    """Gaussian noise of standard deviation sigma on every sample."""
    return x + sigma * torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)


def scale_axes(x, generator, sigma=0.1):
    """One factor N(1, sigma) per axis for the whole set, the same for acc and gyro."""
    factor = 1 + sigma * torch.randn(3, generator=generator, device=generator.device)
    return x * factor.repeat(2).to(x.device)


def permute_segments(x, generator, segments=4, longer_than=10):
    """Time cut into segments of more than `longer_than` steps, reordered in one way for the whole set."""
    T = x.shape[-2]
    if T < segments * (longer_than + 1):
        raise UserError(f"-am permutation needs windows of at least {segments * (longer_than + 1)} steps, not {T}")
    while True:
        cuts = torch.randint(longer_than, T - longer_than, (segments - 1,), generator=generator).sort().values
        edges = [0, *cuts.tolist(), T]
        if min(b - a for a, b in itertools.pairwise(edges)) > longer_than:
            break
    pieces = [torch.arange(a, b) for a, b in itertools.pairwise(edges)]
    order = torch.cat([pieces[i] for i in torch.randperm(segments, generator=generator).tolist()])
    return x[:, order.to(x.device)]


# ------------------------------------------------------------------------------ the two views (paper, step ii)


def weak_view(x, generator):
    """Scaling: a factor N(2, 1.1) per window and time step, the same for all channels; x (N, T, C)."""
    N, T, _ = x.shape
    return x * (2 + 1.1 * torch.randn(N, T, 1, generator=generator, device=x.device))


def shuffled_segments(N, T, generator, most=7):
    """For each window the time steps in a new order: (N, T) int64.

    Cut into 1..most segments (each number equally likely) at distinct places drawn from 0..T-3 (a cut at 0 makes an
    empty segment), the segments shuffled.
    """
    device = generator.device
    segments = torch.randint(1, most + 1, (N, 1), generator=generator, device=device)
    # distinct places: the first most - 1 of a random order of all T - 2
    places = torch.rand(N, T - 2, generator=generator, device=device).topk(most - 1, dim=1).indices
    unused = torch.arange(most - 1, device=device) >= segments - 1
    cuts = places.masked_fill(unused, T)
    segment = (cuts[:, :, None] <= torch.arange(T, device=device)).sum(1)  # cuts at or before a step: its segment
    rank = torch.rand(N, most, generator=generator, device=device).gather(1, segment)  # (N, T), one draw per segment
    return rank.sort(dim=1, stable=True).indices


def strong_view(x, generator, sigma=0.01):
    """Segments of time in a random order, then Gaussian jitter; x (N, T, C)."""
    N, T, C = x.shape
    order = shuffled_segments(N, T, generator)
    shuffled = x.gather(1, order[:, :, None].expand(N, T, C))
    return shuffled + sigma * torch.randn(N, T, C, generator=generator, device=x.device)


def two_views(x, generator):
    """The weak and the strong view of every window, instance-normalised: x (N, T, C) -> (2, N, T, C)."""
    return instance_norm(torch.stack([weak_view(x, generator), strong_view(x, generator)]))


# ------------------------------------------------------------------------------------------------ span masking


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


def span_positions(count, T, M, max_gram, generator):
    """The M steps that span masking chooses in each of `count` windows: (count, M) int64, ascending.

    Until M steps are chosen: a length n from 1..max_gram with p(n) proportional to 0.8^(n-1), cut to the number still
    missing; a start uniform over T, tried again if already chosen; the steps start .. min(start + n, T - 1) - 1.
    Windows go through these rounds side by side; now and then those that are done drop out (one that waits for it draws
    spans of length 0). Looking which are done makes the host wait for a GPU, so there it is done seldom.
    """
    device = generator.device
    rounds = 24 if device.type == "cuda" else 4
    weights = 0.8 ** torch.arange(max_gram, dtype=torch.float64)
    ends = (weights.cumsum(0) / weights.sum())[:-1].float().to(device)
    steps = torch.arange(T, device=device)
    chosen = torch.zeros(count, T, dtype=torch.bool, device=device)
    rows, row_ids = chosen, torch.arange(count, device=device)
    while len(rows):
        lengths = torch.bucketize(torch.rand(rounds, len(rows), 1, generator=generator, device=device), ends) + 1
        starts = torch.randint(T, (rounds, len(rows), 1), generator=generator, device=device)
        for n, start in zip(lengths, starts, strict=True):
            missing = M - rows.sum(1, keepdim=True)
            end = (start + torch.minimum(n, missing)).clamp(max=T - 1)
            free = ~rows.gather(1, start)
            rows = rows | ((steps >= start) & (steps < end) & free)
        chosen[row_ids] = rows
        left = (rows.sum(1) < M).nonzero()[:, 0]
        rows, row_ids = rows[left], row_ids[left]
    return chosen.nonzero()[:, 1].view(count, M)


def draw_masks(count, T, C, mask_cfg, generator):
    """Masks for `count` visits of windows of shape (T, C), by the masking configuration (paper, span masking)."""
    device = generator.device
    M = masked_steps(T, mask_cfg["mask_ratio"])
    positions = span_positions(count, T, M, mask_cfg["max_gram"], generator)
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
