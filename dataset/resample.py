"""Any sampling rate from 20 to 1000 Hz, regular or not, to 20 Hz without aliasing.

A low-pass filter (Kaiser-windowed sinc, half amplitude at 8.5 Hz) is evaluated at the output's times: what lies below
6 Hz passes within 1 %, what lies above 10.5 Hz, and would fold back at 20 Hz, is under 1 %. Averaging 50 ms slots, as
the paper's own data sets do, would let through 30 % at 15 Hz. Lost samples are filled in by a monotone interpolant, so
that no value leaves the range of its neighbours; irregular samples are then interpolated to a fine regular grid, since
filter weights on uneven samples turn high frequencies into noise.
"""

import numpy as np

from dataset.windows import RATE

CUTOFF = 8.5  # Hz, half amplitude
REACH = 0.4  # s, to either side
BETA = 4.5  # Kaiser window: stop band under 1 %
GRID = 200  # Hz, at least, of the grid for irregular samples
REGULAR = 0.02  # intervals that deviate from their median by up to this share are called regular
LOST = 1.5  # usual intervals: where there are more, samples were lost
NEAR = 9  # intervals around one that say what is usual there
LOWEST, HIGHEST = 20, 1000  # Hz
BLOCK = 2048  # output steps at a time, to bound the memory
PIECE, MARGIN = 12_000, 2.0  # steps of an irregular recording at a time, and s around them that shape them


def local_interval(steps):
    """The usual interval (n,) around each of `steps` (n,): the running median; of all where they are regular."""
    middle = float(np.median(steps))
    if len(steps) < NEAR or np.abs(steps - middle).max() <= REGULAR * middle:
        return np.full(len(steps), middle)
    from scipy.ndimage import median_filter

    return median_filter(steps, NEAR, mode="reflect")  # a loss after the first sample is no rate


def extent(time):
    """(begin, end) in s of samples at `time` (n,): a sample stands for the interval around it."""
    middle = float(np.median(np.diff(time)))
    if _regular(time, middle):
        middle = (time[-1] - time[0]) / (len(time) - 1)
    return float(time[0] - middle / 2), float(time[-1] + middle / 2)


def steps_in(begin, end):
    """Whole steps at 20 Hz from `begin` to `end` (s); a clock that is a millisecond off takes none away."""
    return int((end - begin) * RATE + 0.02)


def resample(time, samples, begin=None, steps=None):
    """Samples (n, C) at `time` (n,) in seconds, strictly increasing, to 20 Hz: (steps, C) float64.

    Step k is what a filter centred on the k-th slot of 50 ms from `begin` gives; by default the slots are those of the
    samples' own extent, so that n samples at r Hz last n / r seconds. Samples that come regularly at 20 Hz already are
    then returned as they are.
    """
    own = extent(time)
    begin, steps = (own[0], steps_in(*own)) if begin is None else (begin, steps)
    samples, at = np.asarray(samples, np.float64), begin + (np.arange(steps) + 0.5) / RATE - time[0]
    time = time - time[0]
    middle = float(np.median(np.diff(time)))
    if _regular(time, middle):
        rate = (len(time) - 1) / float(time[-1])
        if abs(rate / RATE - 1) < 1e-3 and abs(at[0]) < 1e-3 / RATE and steps == len(samples):
            return samples
        return low_pass(samples, rate, at)
    return np.concatenate([samples[:0], *(_uneven(time, samples, at[k : k + PIECE]) for k in range(0, steps, PIECE))])


def _regular(time, middle):
    """Whether samples at `time` (n,) come regularly, one each `middle` seconds."""
    interval = np.diff(time)
    mean = (time[-1] - time[0]) / len(interval)
    even = np.abs(np.cumsum(interval - mean)).max() <= 5 * REGULAR * mean
    return even and np.abs(interval - middle).max() <= REGULAR * middle


def fill(time, samples):
    """(time (m,), samples (m, C), function of a time: whether a sample was lost there) with lost samples filled in.

    An interval of several usual ones is divided into that many, the values are those of a monotone interpolant.
    """
    steps = np.diff(time)
    local = local_interval(steps)
    many = np.where(steps > LOST * local, np.round(steps / local), 1).astype(np.int64)
    if (many == 1).all():
        return time, samples, None
    from scipy.interpolate import PchipInterpolator

    first = np.repeat(np.arange(len(steps)), many)
    within = np.arange(len(first)) - np.repeat(np.cumsum(many) - many, many)
    filled = np.append(time[first] + steps[first] * within / many[first], time[-1])
    curve = PchipInterpolator(time, samples, axis=0)
    values = np.concatenate([samples[first], samples[-1:]])
    new = np.flatnonzero(within)
    values[new] = curve(filled[new])

    def bridged(at):
        return (many > 1)[np.clip(np.searchsorted(time, at, side="right") - 1, 0, len(many) - 1)]

    return filled, values, (bridged, curve)


def _uneven(time, samples, at):
    """Samples that came irregularly, or were lost in part, at the times `at` (s,): filled in, then filtered."""
    from scipy.interpolate import CubicSpline, PchipInterpolator

    near = slice(max(0, np.searchsorted(time, at[0] - MARGIN) - 2), np.searchsorted(time, at[-1] + MARGIN) + 2)
    time, values, lost = fill(time[near], samples[near])
    at, middle, rate = at - time[0], float(np.median(np.diff(time))), (len(time) - 1) / (time[-1] - time[0])
    if _regular(time, middle):
        place = at * rate
        if abs(rate / RATE - 1) < 1e-3 and np.abs(place - np.round(place)).max() < 0.02 and place[-1] < len(time):
            return values[np.round(place).astype(np.int64)]
        return low_pass(values, rate, at)
    # A cubic spline follows the signal better, but swings between samples that nearly coincide.
    kind = CubicSpline if np.diff(time).min() > middle / 4 else PchipInterpolator
    fine = max(GRID, 1 / middle)
    grid = np.arange(int((time[-1] - time[0]) * fine + 1e-6) + 1) / fine
    values = kind(time - time[0], values, axis=0)(grid)
    if lost:
        bridged, curve = lost
        here = np.flatnonzero(bridged(time[0] + grid))
        values[here] = curve(time[0] + grid[here])
    return low_pass(values, fine, at)


def low_pass(samples, rate, at):
    """The low-pass filtered signal at the times `at` (s,) in seconds after sample 0: (s, C) from (n, C) at `rate` Hz.

    The weights add up to one everywhere, so a constant passes unchanged, at the ends too.
    """
    samples = np.asarray(samples, np.float64)
    n, half = len(samples), int(np.ceil(REACH * rate))
    table = np.linspace(0, REACH, 8193)
    kernel = np.sinc(2 * CUTOFF * table) * np.i0(BETA * np.sqrt(1 - (table / REACH) ** 2))
    result = np.empty((len(at), samples.shape[1]))
    for start in range(0, len(at), BLOCK):
        now = at[start : start + BLOCK]
        index = np.round(now * rate).astype(np.int64)[:, None] + np.arange(-half, half + 1)  # (s, taps)
        weight = np.interp(np.abs(index / rate - now[:, None]), table, kernel, right=0)
        weight[(index < 0) | (index >= n)] = 0
        weight /= weight.sum(1, keepdims=True)
        result[start : start + BLOCK] = np.einsum("st,stc->sc", weight, samples[np.clip(index, 0, n - 1)])
    return result
