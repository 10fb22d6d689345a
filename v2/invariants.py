"""The representation of a window that no turning of the device changes (model version v2).

A phone at the waist, in a pocket or on an arm records the same movement in another frame of axes, and iOS writes the
acceleration with the opposite sign of Android's. Learning that from turned copies costs data and never quite succeeds,
so here it holds by construction: every channel is a length, or a component along a direction that the window itself
defines and that turns with the device.

Two directions can be told from any window:

  up       The mean acceleration of a person who ends roughly where they began is gravity's reaction, so the unit vector
           u along it points up. With the opposite sign convention acceleration and u change sign, and a . u stays.
  forward  A walker's body is pushed up and forward in a fixed phase of the step. The sum over time of vertical times
           horizontal acceleration is therefore a horizontal vector f along the direction of travel. Its sign follows
           from that phase, not from the device; under the other convention it flips together with the acceleration, and
           h . f stays. Two phases are used: f0 from the vertical acceleration itself, f1 from its rate of change.

The gyroscope's rate w does not change sign with the acceleration, so of w . u only the size is used; u x f, the axis to
the left of travel about which limbs swing, keeps its sign, and so does w . (u x f).

"Up" is taken twice. As a constant direction in the device's frame (v, h, ...): right for a trunk, but on a limb that
swings, gravity leaks into every channel. And tracked (tv, th, ...): the gyroscope is integrated over the window to a
rotation with which every sample is turned into one frame that does not rotate. There the mean is gravity, however the
limb swings, and the remainder is the true movement of that point of the body. The gyroscope's mean over the window is
taken off first: its bias (0.02 rad/s would tilt the frame by 7 degrees in 6 s), and steady turning, so that forward
stays the walker's own. What drift is left is nearly linear in time and taken off as a line.

Without a gyroscope the rate is 0: both frames are then the device's, and the channels that are rates are 0. A network
that has seen windows whose rate was set to 0 can judge those that have none.

Axes: N windows, T time steps, C channels.
"""

import math

import torch

G = 9.80665  # m/s^2
RATE = 20  # samples a second
ACC_SCALE, GYRO_SCALE = 10, 3  # inside the logarithm: 0.1 g and 0.3 rad/s are where it begins to bend
SMALL = 1e-3  # g^2; a still window has no direction of travel, its forward channels fade to zero instead of being noise
STEP = 8  # rad/s, about a step's frequency: a rate of change divided by it is of the size of what changes

STATIC = ("v", "h", "d", "f0", "f1", "wv", "wh", "p0", "p1")
CHANNELS = (*STATIC, *("t" + name for name in STATIC))


def dot(x, y):
    return (x * y).sum(-1)


def cross(x, y):
    return torch.linalg.cross(x, y)


def unit(x, eps=1e-6):
    return x / (x.norm(dim=-1, keepdim=True) + eps)


def slope(x):
    """The rate of change of x (N, T, ...) per second by central differences, 0 at both ends."""
    end = torch.zeros_like(x[:, :1])
    return torch.cat([end, (x[:, 2:] - x[:, :-2]) * (RATE / 2), end], 1)


def fourier(T, frequencies):
    """Cosines and sines (T, F) of `frequencies` (F,) in cycles a step under a Hann window that sums to 1."""
    time = torch.arange(T, device=frequencies.device)[:, None]
    window, angle = (math.pi / T * time).sin().square(), 2 * math.pi * time * frequencies
    return window * angle.cos() / window.sum(), window * angle.sin() / window.sum()


# ------------------------------------------------------------------------------ rotations as unit quaternions (w x y z)


def compose(p, q):
    """The rotation that does q first, then p."""
    (a, u), (b, v) = p.split((1, 3), -1), q.split((1, 3), -1)
    return torch.cat([a * b - dot(u, v)[..., None], a * v + b * u + cross(u, v)], -1)


def turn(q, x, back=False):
    """Vectors x turned by the rotations q, or turned back."""
    real, axis = q.split((1, 3), -1)
    axis = -axis if back else axis
    t = cross(2 * axis, x)
    return x + real * t + cross(axis, t)


def rotation(r):
    """The rotation by |r| radians about r (..., 3)."""
    half = (r.norm(dim=-1, keepdim=True) / 2).clamp(min=1e-9)  # an exporter takes + 1e-9 for + 0
    return torch.cat([half.cos(), r / 2 * half.sin() / half], -1)


def attitude(w):
    """The device's attitude relative to its first step, from its rotation rate w (N, T, 3): quaternions (N, T, 4).

    The product of all steps' small rotations, by doubling: 7 batched products for 120 steps instead of 119.
    """
    step = torch.cat([torch.zeros_like(w[:, :1]), (w[:, 1:] + w[:, :-1]) / (2 * RATE)], 1)
    q, reach = rotation(step), 1
    while reach < w.shape[1]:
        q = torch.cat([q[:, :reach], compose(q[:, :-reach], q[:, reach:])], 1)
        reach *= 2
    return q


# ----------------------------------------------------------------------------------------------------- channels


def in_frame(moving, w, up):
    """A frame's channels (N, T) by name: of acceleration without gravity, rotation rate (N, T, 3) and up (N, 1, 3)."""
    v, about_up = dot(moving, up), dot(w, up)
    horizontal, level = moving - v[..., None] * up, w - about_up[..., None] * up
    made = {"v": v, "h": horizontal.norm(dim=-1), "d": moving.norm(dim=-1)}
    made |= {"wv": about_up.abs(), "wh": level.norm(dim=-1)}
    for phase, vertical in (("0", v), ("1", slope(v) / STEP)):
        forward = unit((vertical[..., None] * horizontal).mean(1, keepdim=True), SMALL)
        made |= {"f" + phase: dot(horizontal, forward), "p" + phase: dot(w, cross(up, forward))}
    return made


def channels(x):
    """The channels of windows x (N, T, 6) in m/s^2 and rad/s: {name: (N, T)} in g and rad/s."""
    a, w = x[..., :3] / G, x[..., 3:]
    steady = w - w.mean(1, keepdim=True)
    turned, rate = turn(attitude(steady)[None], torch.stack([a, steady]))
    a = torch.cat([a, turned])  # both frames at once, as twice as many windows
    gravity, time = a.mean(1, keepdim=True), torch.linspace(-1, 1, x.shape[1], device=x.device)[:, None]
    drift = (turned * time).mean(1, keepdim=True) / time.square().mean() * time
    static, tracked = (a - gravity).unflatten(0, (2, -1))
    made = in_frame(torch.cat([static, tracked - drift]), torch.cat([w, rate]), unit(gravity))
    made = {name: both.unflatten(0, (2, -1)) for name, both in made.items()}
    return {("", "t")[frame] + name: both[frame] for frame in (0, 1) for name, both in made.items()}


def compress(y):
    """sign(y) log(1 + |y|): impacts of several g and the sway of a standing person on one scale."""
    return y.sign() * torch.log1p(y.abs())


def represent(x, names=CHANNELS):
    """Windows x (N, T, 6) in m/s^2 and rad/s -> the named channels (N, C, T), the convolution's layout."""
    made = channels(x)
    return compress(torch.stack([made[n] * (GYRO_SCALE if n.lstrip("t")[0] in "wp" else ACC_SCALE) for n in names], 1))
