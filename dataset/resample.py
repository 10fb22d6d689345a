"""Any sampling rate from 20 to 400 Hz, regular or not, to 20 Hz without aliasing.

A low-pass filter (Kaiser-windowed sinc, half amplitude at 8.5 Hz) is evaluated at the output's times: what lies below
6 Hz passes within 1 %, what lies above 10.5 Hz, and would fold back at 20 Hz, is under 1 %. Averaging 50 ms slots, as
the paper's own data sets do, would let through 30 % at 15 Hz. Irregular samples are first interpolated to a fine
regular grid, since filter weights on uneven samples turn high frequencies into noise.
"""

import numpy as np

from dataset.windows import RATE

CUTOFF = 8.5  # Hz, half amplitude
REACH = 0.4  # s, to either side
BETA = 4.5  # Kaiser window: stop band under 1 %
GRID = 200  # Hz, at least, of the grid for irregular samples
REGULAR = 0.02  # intervals that deviate from their median by up to this share are called regular
LOWEST, HIGHEST = 20, 400  # Hz
BLOCK = 4096  # output steps at a time, to bound the memory


def nominal_rate(time):
    """Samples per second from the median interval of `time` (n,) in seconds."""
    return 1 / float(np.median(np.diff(time)))


def resample(time, samples, rate=None):
    """Samples (n, C) at `time` (n,) in seconds, strictly increasing, to 20 Hz: (about 20 * duration, C) float64.

    `rate` is given for samples at that fixed rate (time is ignored then). A sample stands for the interval around it,
    so n samples at r Hz last n / r seconds; step k is what a filter centred on the k-th slot of 50 ms gives. Samples
    that come regularly at 20 Hz already are returned as they are.
    """
    if rate is None:
        interval = np.diff(time)
        middle = float(np.median(interval))
        rate = (len(time) - 1) / float(time[-1] - time[0])
        even = np.abs(np.cumsum(interval - 1 / rate)).max(initial=0) <= REGULAR / rate * 5
        if np.abs(interval - middle).max(initial=0) > REGULAR * middle or not even:
            return _irregular(time, samples, middle)
    if abs(rate / RATE - 1) < 1e-3:
        return np.asarray(samples, np.float64)
    steps = int(len(samples) / rate * RATE + 1e-6)
    return low_pass(samples, rate, (np.arange(steps) + 0.5) / RATE - 0.5 / rate)


def _irregular(time, samples, middle):
    from scipy.interpolate import CubicSpline, PchipInterpolator

    # A cubic spline follows the signal better, but swings between samples that nearly coincide.
    kind = CubicSpline if np.diff(time).min() > middle / 4 else PchipInterpolator
    fine = max(GRID, 1 / middle)
    begin, end = time[0] - middle / 2, time[-1] + middle / 2
    steps = int((end - begin) * RATE + 1e-6)
    grid = np.arange(int((time[-1] - time[0]) * fine + 1e-6) + 1) / fine
    at = begin + (np.arange(steps) + 0.5) / RATE - time[0]
    return low_pass(kind(time - time[0], samples, axis=0)(grid), fine, at)


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
