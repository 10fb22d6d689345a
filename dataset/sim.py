"""sim: a SIMULATED target domain for machines that cannot get a second data set, made from ten of the uci users.

What another phone, worn another way, would have recorded of the same movements: per user a fixed random mounting
rotation, gain and bias errors of both sensors, a sampling rate that is a little off its nominal 50 Hz, noise, and the
opposite sign convention of gravity. The ten users are held out of uci20, the other twenty, which is the source then.
"""

import numpy as np

from dataset.windows import GRAVITY

SEED = 3431
USERS = 10
RATE_ERROR = 0.03  # the true rate is 50 Hz x (1 ± 3 %): clocks of phones differ by that much
GAIN = 0.03  # standard deviation of the gain error per axis
BIAS = (0.25, 0.03)  # standard deviation per axis: m/s², rad/s
NOISE = (0.05, 0.01)  # standard deviation per sample: m/s², rad/s


def held_out(seed=SEED, users=30):
    """The numbers (from 1) of the ten users that become the simulated domain, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(users)[:USERS] + 1)


def random_rotation(rng):
    """A rotation matrix (3, 3), uniform over SO(3), from a normalised Gaussian quaternion."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


class Phone:
    """One user's other phone, a function of (seed, user): rotation, gain (6,), bias (6,), rate relative to nominal."""

    def __init__(self, seed, user):
        self.rng = np.random.default_rng([seed, user])
        self.rotation = random_rotation(self.rng)
        self.gain = 1 + GAIN * self.rng.normal(size=6)
        self.bias = np.repeat(BIAS, 3) * self.rng.normal(size=6)
        self.rate = 1 + RATE_ERROR * self.rng.uniform(-1, 1)

    def record(self, samples):
        """What it records while another one records `samples` (n, 6) in g and rad/s: (about n * rate, 6).

        Its samples are taken for 50 Hz ones although they come at 50 Hz x rate.
        """
        turned = np.concatenate([samples[:, :3] @ self.rotation.T, samples[:, 3:] @ self.rotation.T], axis=1)
        at = np.arange(int((len(turned) - 1) * self.rate) + 1) / self.rate
        taken = np.stack([np.interp(at, np.arange(len(turned)), channel) for channel in turned.T], axis=1)
        noise = np.repeat(NOISE, 3) * self.rng.normal(size=taken.shape)
        scale = np.repeat([1 / GRAVITY, 1.0], 3)  # bias and noise are in m/s², the recording is in g
        taken = taken * self.gain + (self.bias + noise) * scale
        taken[:, :3] *= -1  # the other sign convention of acceleration, gravity included
        return taken


def simulate(experiments, windows_of, seed=SEED):
    """(uci20, sim): Windows of the twenty source users, and the simulated ones of the ten held out.

    `experiments` is a list of (user, samples, bouts), `windows_of` makes Windows of it (dataset/uci.py).
    """
    chosen = set(held_out(seed).tolist())
    phones = {user: Phone(seed, user) for user in sorted(chosen)}
    other = []
    for user, samples, bouts in experiments:
        if user in chosen:
            rate = phones[user].rate
            # a bout begins with the first sample after its old start, and ends with the last before its old end
            moved = np.stack([bouts[:, 0], np.ceil(bouts[:, 1] * rate), np.floor(bouts[:, 2] * rate)], axis=1)
            other.append((user, phones[user].record(samples), moved.astype(np.int64)))
    return windows_of([e for e in experiments if e[0] not in chosen]), windows_of(other)
