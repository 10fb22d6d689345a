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
swings, gravity leaks into every channel. And tracked (tv, th, ...): the gyroscope is integrated over the 6 s to a
rotation R(t) with which every sample is turned into one frame that does not rotate. There the mean is gravity, however
the limb swings, and the remainder is the true movement of that point of the body. The gyroscope's mean over the window
is taken off first: its bias (0.02 rad/s would tilt the frame by 7 degrees in 6 s), and steady turning, so that forward
stays the walker's own. What drift is left is nearly linear in time and taken off as a line.

Axes: N windows, T time steps, C channels. Acceleration in g, rotation rate in rad/s inside; input in m/s^2 and rad/s.
"""

import math

import torch

G = 9.80665  # m/s^2
RATE = 20  # samples a second
ACC_SCALE, GYRO_SCALE = 10, 3  # inside the logarithm: 0.1 g and 0.3 rad/s are where it begins to bend
SMALL = 1e-3  # g^2; a still window has no direction of travel, its forward channels fade to zero instead of being noise

STATIC = ("v", "h", "d", "wv", "wh", "w")  # the six of a frame that is constant in the device
FORWARD = ("f0", "f1", "p0", "p1")
TRACKED = ("tv", "th", "td", "twv", "twh")  # the same after turning every sample into a frame that does not rotate
TRACKED_FORWARD = ("tf0", "tf1", "tp0", "tp1")
OTHER = ("n", "tilt")  # |a| - mean |a|, needs no direction; how far up is from its mean direction in the device
CHANNELS = (*STATIC, *FORWARD, *TRACKED, *TRACKED_FORWARD, *OTHER)
GYRO = {"wv", "wh", "w", "p0", "p1", "twv", "twh", "tp0", "tp1"}
SETS = {
    "all": CHANNELS,
    "static": STATIC,
    "no_forward": (*STATIC, *TRACKED, *OTHER),
    "no_tracked": (*STATIC, *FORWARD, *OTHER),
    "no_gyro": ("v", "h", "d", "f0", "f1", "n"),
    "raw": ("ax", "ay", "az", "gx", "gy", "gz"),  # not invariant: v1's input, instance-normalised, for comparison
}


def dot(x, y):
    return (x * y).sum(-1)


def unit(x, eps):
    return x / (x.norm(dim=-1, keepdim=True) + eps)


def slope(x):
    """The rate of change of x (N, T, ...) per second by central differences, 0 at both ends."""
    d = torch.zeros_like(x)
    d[:, 1:-1] = (x[:, 2:] - x[:, :-2]) * (RATE / 2)
    return d


# ------------------------------------------------------------------------------ rotations as unit quaternions (w x y z)


def compose(p, q):
    """The rotation that does q first, then p."""
    a, b, c, d = p.unbind(-1)
    e, f, g, h = q.unbind(-1)
    parts = [
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    ]
    return torch.stack(parts, -1)


def turn(q, x, back=False):
    """Vectors x turned by the rotations q, or turned back."""
    axis = (-q[..., 1:] if back else q[..., 1:]).expand_as(x)
    t = 2 * torch.linalg.cross(axis, x)
    return x + q[..., :1] * t + torch.linalg.cross(axis, t)


def rotation(r):
    """The rotation by |r| radians about r (..., 3)."""
    angle = r.norm(dim=-1, keepdim=True)
    return torch.cat([torch.cos(angle / 2), r * 0.5 * torch.sinc(angle / (2 * math.pi))], -1)


def attitude(w):
    """The device's attitude relative to its first step, from its rotation rate w (N, T, 3): quaternions (N, T, 4).

    The product of all steps' small rotations, by doubling: 7 batched products for 120 steps instead of 119.
    """
    step = torch.zeros_like(w)
    step[:, 1:] = 0.5 * (w[:, 1:] + w[:, :-1]) / RATE
    q, reach = rotation(step), 1
    while reach < w.shape[1]:
        q = torch.cat([q[:, :reach], compose(q[:, :-reach], q[:, reach:])], 1)
        reach *= 2
    return q


# ----------------------------------------------------------------------------------------------------- channels


def in_frame(moving, w, up):
    """The channels of a frame: acceleration without gravity (N, T, 3), rotation rate (N, T, 3), up (N, 1, 3)."""
    v = dot(moving, up)
    horizontal = moving - v[..., None] * up
    about_up = dot(w, up)
    made = {
        "v": v,
        "h": horizontal.norm(dim=-1),
        "d": moving.norm(dim=-1),
        "wv": about_up.abs(),
        "wh": (w - about_up[..., None] * up).norm(dim=-1),
    }
    for phase, vertical in (("0", v), ("1", slope(v) / 8)):  # 8 rad/s, about a step's frequency: comparable sizes
        forward = unit((vertical[..., None] * horizontal).mean(1, keepdim=True), SMALL)
        made["f" + phase] = dot(horizontal, forward)
        made["p" + phase] = dot(w, torch.linalg.cross(up.expand_as(forward), forward))
    return made


def channels(x):
    """All channels of windows x (N, T, 6) in m/s^2 and rad/s: {name: (N, T)} in g and rad/s."""
    a, w = x[..., :3] / G, x[..., 3:]
    mean = a.mean(1, keepdim=True)
    made = in_frame(a - mean, w, unit(mean, 1e-6)) | {"w": w.norm(dim=-1)}

    w = w - w.mean(1, keepdim=True)
    q = attitude(w)
    fixed = turn(q, a)
    mean = fixed.mean(1, keepdim=True)
    up = unit(mean, 1e-6)
    time = torch.linspace(-1, 1, x.shape[1], device=x.device, dtype=x.dtype)[None, :, None]
    drift = (fixed * time).mean(1, keepdim=True) / time.square().mean() * time
    made |= {"t" + name: part for name, part in in_frame(fixed - mean - drift, turn(q, w), up).items()}

    size = a.norm(dim=-1)
    made["n"] = size - size.mean(1, keepdim=True)
    in_device = turn(q, up.expand_as(a), back=True)
    made["tilt"] = (in_device - unit(in_device.mean(1, keepdim=True), 1e-6)).norm(dim=-1)
    return made


def compress(y, scale):
    """sign(y) log(1 + scale |y|): impacts of several g and the sway of a standing person on one scale."""
    return y.sign() * torch.log1p(scale * y.abs())


def represent(x, names=CHANNELS, compressed=True):
    """Windows x (N, T, 6) in m/s^2 and rad/s -> the named channels (N, C, T), the convolution's layout."""
    if names == SETS["raw"]:
        centred = x - x.mean(1, keepdim=True)
        return (centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-5)).transpose(1, 2)
    made = channels(x)
    if not compressed:
        return torch.stack([made[name] * (0.3 if name in GYRO else 1) for name in names], 1)
    return torch.stack([compress(made[name], GYRO_SCALE if name in GYRO else ACC_SCALE) for name in names], 1)
