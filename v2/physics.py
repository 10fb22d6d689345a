"""How the same movement would have been recorded elsewhere: the augmentation of model version v2, a generative model.

Each quantity is a key of an entry of config/physics.json with its range and the reason for it; they act in the order
in which they happen: the body moves at another tempo, the device sits elsewhere on the body, the sensor errs, the
recording loses samples. A turned device needs no augmentation: invariants.py does not see it.

  amounts drawn from a range [low, high]      tempo, swing, pendulum, damping, noise, filter, drop_out
  standard deviations of an amount around 0   rotation_gain, amplitude, gyro_amplitude (of the logarithm), lever,
                                              sensor_gain, bias, jitter
  probabilities                               position (of swing, pendulum, damping and rotation_gain together),
                                              lever_share, filter_share, drop_share; turned (for raw channels)

All functions are batched; N windows, T time steps, L steps of a crop. Acceleration in g here, rotation rate in rad/s.
"""

import math

import torch
import torch.nn.functional as F

from v2.invariants import RATE, G, attitude, compose, dot, rotation, slope, turn, unit

# key: (form, value that turns it off); a "range" is [low, high], a "sd" or "share" one number
KEYS = {
    "tempo": ("range", [1, 1]),
    "crop": ("steps", 120),
    "position": ("share", 0),
    "rotation_gain": ("sd", 0),
    "swing": ("range", [0, 0]),
    "pendulum": ("range", [0, 0]),
    "damping": ("range", [0, 0]),
    "lever": ("sd", 0),
    "lever_share": ("share", 0),
    "amplitude": ("sd", 0),
    "gyro_amplitude": ("sd", 0),
    "sensor_gain": ("sd", 0),
    "bias": ("sd", 0),
    "noise": ("range", [0, 0]),
    "filter": ("range", [0, 0]),
    "filter_share": ("share", 0),
    "jitter": ("sd", 0),
    "drop_out": ("range", [0, 0]),
    "drop_share": ("share", 0),
    "turned": ("share", 0),
}


def resample(x, at):
    """x (N, T, C) at the fractional steps `at` (N, L), linearly between neighbours: (N, L, C)."""
    T, C = x.shape[1:]
    at = at.clamp(0, T - 1)
    before = at.floor().long().clamp(max=T - 2)
    share = (at - before)[..., None]
    index = before[..., None].expand(-1, -1, C)
    return x.gather(1, index) * (1 - share) + x.gather(1, index + 1) * share


def smooth(x, width):
    """x (N, T, C) through a Gaussian of `width` (N, 1, 1) steps, as a soft mounting or a sampling filter acts."""
    T = x.shape[1]
    offsets = torch.arange(-4, 5, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / width[:, :, 0].clamp(min=1e-2)).square())
    weights = weights / weights.sum(1, keepdim=True)
    padded = F.pad(x.transpose(1, 2), (4, 4), mode="replicate").transpose(1, 2)
    return sum(padded[:, i : i + T] * weights[:, i, None, None] for i in range(9))


def step_frequency(v):
    """The strongest frequency of vertical acceleration v (N, T) between 1.2 and 3 Hz, where steps are: (N,) Hz."""
    T = v.shape[1]
    spectrum = torch.fft.rfft(v * torch.hann_window(T, device=v.device, dtype=v.dtype), n=256).abs()
    hertz = torch.arange(spectrum.shape[1], device=v.device) * (RATE / 256)
    return hertz[(spectrum * ((hertz > 1.2) & (hertz < 3))).argmax(1)]


def relocate(x, gain, swing, phase, pendulum, damping):
    """The window as another segment of the body would carry it: x (N, T, 6); the rest (N, 1, 1) each.

    gain: the segment turns by so much more; swing: on top it swings about the axis to the left of travel, by so many
    radians, once a stride (two steps), as arms and legs do, and only as far as the person moves; pendulum: the device
    is so many metres below the joint of that swing; damping: tissue between takes fast acceleration away (Gaussian,
    steps). Gravity stays what it is, and is seen from the new attitude.
    """
    a, w = x[..., :3], x[..., 3:]
    fixed = turn(attitude(w), a)  # in a frame that does not rotate: the movement and gravity apart
    gravity = fixed.mean(1, keepdim=True)
    up = unit(gravity, 1e-6)
    moving = smooth(fixed - gravity, damping)
    v = dot(moving, up)
    horizontal = moving - v[..., None] * up
    forward = unit((slope(v)[..., None] * horizontal).mean(1, keepdim=True), 1e-6)
    left = torch.linalg.cross(up, forward)
    activity = (moving.square().sum(-1).mean(1).sqrt() / 0.15).clamp(max=1)[:, None, None]  # 0.15 g: slow walking

    speed = math.pi * step_frequency(v)[:, None, None]  # rad/s of a stride
    time = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[None, :, None] / RATE
    angle = swing * activity * torch.sin(speed * time + phase)
    rate = swing * activity * speed * torch.cos(speed * time + phase)
    acceleration = -speed.square() * angle
    at = compose(rotation(angle * left), attitude(gain * w))
    tangent = torch.linalg.cross(left, -up)
    moving = moving + pendulum / G * (acceleration * tangent + rate.square() * up)
    return torch.cat([turn(at, moving + gravity, back=True), gain * w + turn(at, rate * left, back=True)], -1)


def shift(x, lever):
    """The window recorded `lever` (N, 1, 3) metres away on the same rigid segment: a + dw/dt x r + w x (w x r)."""
    w = x[..., 3:]
    r = lever.expand_as(w)
    extra = torch.linalg.cross(slope(w), r) + torch.linalg.cross(w, torch.linalg.cross(w, r))
    return torch.cat([x[..., :3] + extra / G, w], -1)


def amplify(x, acc, gyro):
    """Movement of another size: acceleration about its mean (gravity) and rotation rate times (N, 1, 1) each."""
    mean = x[..., :3].mean(1, keepdim=True)
    return torch.cat([mean + (x[..., :3] - mean) * acc, x[..., 3:] * gyro], -1)


def retime(x, steps, tempo, start, wander=0):
    """`steps` steps of x (N, T, 6) from `start` (N, 1) on at a tempo (N, 1); faster movement turns faster, too."""
    last = x.shape[1] - 1
    at = start + tempo * torch.arange(steps, device=x.device, dtype=x.dtype) + wander
    at = last - (last - at.abs()).abs()  # beyond an end the recording runs backwards
    y = resample(x, at)
    return torch.cat([y[..., :3], y[..., 3:] * tempo[..., None]], -1)


def augment(x, cfg, generator):
    """x (N, T, 6) in m/s^2 and rad/s as another device, person, position would record it: (N, crop, 6), same units."""
    N, T, _ = x.shape
    L, device = min(cfg["crop"], T), x.device
    uniform = lambda *shape: torch.rand(N, *shape, generator=generator, device=device)  # noqa: E731
    normal = lambda *shape: torch.randn(N, *shape, generator=generator, device=device)  # noqa: E731
    one = (1, 1)

    def between(key):
        low, high = cfg[key]
        return low + (high - low) * uniform(*one)

    def happens(key):
        return (uniform(*one) < cfg[key]).to(x.dtype)

    x = torch.cat([x[..., :3] / G, x[..., 3:]], -1)
    slow, fast = cfg["tempo"]
    tempo = slow * (fast / slow) ** uniform(1)
    wander = cfg["jitter"] * 0.3 * normal(L).cumsum(1) if cfg["jitter"] else 0
    x = retime(x, L, tempo, uniform(1) * (T - 1 - (L - 1) * tempo).clamp(min=0), wander)

    if cfg["position"]:
        on = happens("position")
        gain, swing = torch.exp(on * cfg["rotation_gain"] * normal(*one)), on * between("swing")
        x = torch.where(
            on > 0,
            relocate(x, gain, swing, 2 * math.pi * uniform(*one), between("pendulum"), on * between("damping")),
            x,
        )
    if cfg["lever_share"]:
        x = shift(x, happens("lever_share") * cfg["lever"] * normal(1, 3))
    x = amplify(x, torch.exp(cfg["amplitude"] * normal(*one)), torch.exp(cfg["gyro_amplitude"] * normal(*one)))

    error = torch.cat([1 + cfg["sensor_gain"] * normal(1, 6), cfg["bias"] * normal(1, 6)], 1)
    strength = torch.cat([between("noise") * uniform(*one), 3 * between("noise") * uniform(*one)], 2)  # mostly weak
    x = x * error[:, :1] + error[:, 1:] + strength.repeat_interleave(3, 2) * normal(L, 6)
    if cfg["filter_share"]:
        on = happens("filter_share")
        x = torch.where(on > 0, smooth(x, on * between("filter")), x)
    if cfg["drop_share"]:
        step, begin = torch.arange(L, device=device)[None, :, None], uniform(*one) * L
        gap = (step >= begin) & (step < begin + 1 + between("drop_out")) & (happens("drop_share") > 0)
        held = x.gather(1, begin.long().clamp(max=L - 1).expand(-1, 1, 6))
        x = torch.where(gap, held, x)  # a sensor that delivers nothing new repeats its last sample
    if cfg["turned"]:
        q = unit(normal(1, 4), 1e-12).expand(-1, L, -1)
        x = torch.cat([turn(q, x[..., :3]), turn(q, x[..., 3:])], -1)
    return torch.cat([x[..., :3] * G, x[..., 3:]], -1)
