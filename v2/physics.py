"""How the same movement would have been recorded elsewhere: the augmentation of model version v2, a generative model.

Each quantity is a key of config/physics.json with its value and the reason for it. They act in the order in which they
happen: the body moves at another tempo, the device sits on another segment and elsewhere on it, the gyroscope is
missing. A turned device needs no augmentation: invariants.py does not see it.

All functions are batched; N windows (N, T, 6) of acceleration in m/s^2 with gravity and rotation rate in rad/s, L steps
of an altered window. Randomness comes from PyTorch's default generator, so that a step can be recorded and replayed.
"""

import math

import torch

from v2.invariants import RATE, attitude, compose, cross, dot, fourier, rotation, slope, turn, unit

SLOWEST, FASTEST = 1.2, 3  # Hz: where steps are
WALKING = 1.5  # m/s^2, root mean square: slow walking; who moves less swings his limbs less


def resample(x, at):
    """x (N, T, C) at the fractional steps `at` (N, L), linearly between neighbours: (N, L, C)."""
    before = at.floor().long().clamp(0, x.shape[1] - 2)
    share = (at - before)[..., None]
    index = before[..., None].expand(-1, -1, x.shape[2])
    return x.gather(1, index) * (1 - share) + x.gather(1, index + 1) * share


def retime(x, steps, tempo, start):
    """`steps` steps of x (N, T, 6) from `start` (N, 1) on at a tempo (N, 1); faster movement turns faster, too."""
    last = x.shape[1] - 1
    at = start + tempo * torch.arange(steps, device=x.device)
    y = resample(x, last - (last - at).abs())  # beyond its end the recording runs backwards
    return torch.cat([y[..., :3], y[..., 3:] * tempo[..., None]], -1)


def step_frequency(v):
    """The strongest frequency of vertical acceleration v (N, T) where steps are: (N,) Hz."""
    hertz = torch.arange(SLOWEST, FASTEST, RATE / 256, device=v.device)
    cosine, sine = fourier(v.shape[1], hertz / RATE)
    return hertz[((v @ cosine).square() + (v @ sine).square()).argmax(1)]


def relocate(x, swing, phase):
    """The window as another segment of the body would carry it: x (N, T, 6), the rest (N, 1, 1) each.

    The segment swings about the axis to the left of travel, by `swing` radians, once a stride (two steps), as arms and
    legs do, and only as far as the person moves. Gravity stays what it is, and is seen from the new attitude.
    """
    a, w = x[..., :3], x[..., 3:]
    q = attitude(w)
    fixed = turn(q, a)  # in a frame that does not rotate: the movement and gravity apart
    gravity = fixed.mean(1, keepdim=True)
    moving, up = fixed - gravity, unit(gravity)
    v = dot(moving, up)
    horizontal = moving - v[..., None] * up
    forward = unit((slope(v)[..., None] * horizontal).mean(1, keepdim=True))
    left = cross(up, forward)
    activity = (moving.square().sum(-1).mean(1).sqrt() / WALKING).clamp(max=1)[:, None, None]

    speed = math.pi * step_frequency(v)[:, None, None]  # rad/s of a stride
    at = speed * torch.arange(x.shape[1], device=x.device)[None, :, None] / RATE + phase
    angle, rate = swing * activity * torch.sin(at), swing * activity * speed * torch.cos(at)
    there = compose(rotation(angle * left), q)
    return torch.cat([turn(there, fixed, back=True), w + turn(there, rate * left, back=True)], -1)


def shift(x, lever):
    """The window recorded `lever` (N, 1, 3) metres away on the same rigid segment: a + dw/dt x r + w x (w x r)."""
    w = x[..., 3:]
    return torch.cat([x[..., :3] + cross(slope(w), lever) + cross(w, cross(w, lever)), w], -1)


def augment(x, cfg):
    """x (N, T, 6) as another device, person, position would record it: (N, L, 6), where L steps fit at any tempo."""
    N, T, _ = x.shape
    slow, fast = cfg["tempo"]
    L = int(T / max(1, fast))

    def uniform(high=1.0):
        return high * torch.rand(N, 1, 1, device=x.device)

    def happens(share):
        return (uniform() < share).to(x.dtype)

    tempo = slow * (fast / slow) ** uniform()[:, 0]  # evenly on a logarithmic scale
    x = retime(x, L, tempo, uniform()[:, 0] * (T - 1 - (L - 1) * tempo))
    x = relocate(x, happens(cfg["moved"]) * uniform(cfg["swing"]), uniform(2 * math.pi))
    x = shift(x, happens(cfg["moved"]) * cfg["lever"] * torch.randn(N, 1, 3, device=x.device))
    return torch.cat([x[..., :3], x[..., 3:] * (1 - happens(cfg["no_gyroscope"]))], -1)
