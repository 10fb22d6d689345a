"""Version v2's network: convolutions over time and over the spectrum, in several members side by side.

Axes: B windows, E members, C channels, T steps, F frequencies, D features of a member, K classes. The members are
independent networks that start from other weights and see other windows; one grouped convolution computes all of them.
What they agree on carries over better than what one of them has found: their probabilities are averaged.
"""

import torch
import torch.nn.functional as F
from torch import nn

from v2.invariants import fourier

FREQUENCIES, POINTS = 32, 128  # the first 32 frequencies of a 128-point transform: to 4.8 Hz at 20 Hz
SIZE = 40  # inside the logarithm: a wave of amplitude 0.05 is where it begins to bend
SPECTRAL = (32, 64)  # features of the convolution over frequencies, and of the spectrum as a whole


def grouped(members, inside, out, kernel=1):
    """A convolution over time for each member, (B, E * inside, 1, T) -> (B, E * out, 1, T); 1: a Linear per step.

    In two dimensions, because there channels may lie innermost: grouped, that takes half the time on a CPU, and a
    quarter on a GPU, where cuDNN makes Fourier transforms of the others' backward.
    """
    conv = nn.Conv2d(members * inside, members * out, (1, kernel), padding=(0, kernel // 2), groups=members)
    return conv.to(memory_format=torch.channels_last)


class Network(nn.Module):
    """Logits (B, E, K) of channels (B, C, T), or of each member's own channels (B, E, C, T).

    In time: convolutions with BatchNorm and ReLU, pooling between them, the mean over steps. Beside it the amplitude
    spectrum, which says what the tempo and the harmonics of a step are whatever their phase: a convolution over
    frequencies and a Linear. Dropout and a Linear see both.
    """

    def __init__(self, cfg, classes):
        super().__init__()
        E = self.members = cfg["members"]
        sizes, (narrow, wide) = [len(cfg["channels"]), *cfg["widths"]], SPECTRAL
        self.convs = nn.ModuleList(grouped(E, *pair, cfg["kernel"]) for pair in zip(sizes, sizes[1:], strict=False))
        self.norms = nn.ModuleList(nn.BatchNorm2d(E * out) for out in sizes[1:])
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.over_frequencies = grouped(E, sizes[0], narrow, 3) if cfg["spectrum"] else None
        self.spectral = grouped(E, narrow * FREQUENCIES // 2, wide) if cfg["spectrum"] else None
        self.dropout = nn.Dropout(cfg["dropout"])
        self.head = grouped(E, sizes[-1] + wide * cfg["spectrum"], classes)

    def encode(self, x):
        """Features (B, E * D, 1, T / 4) of channels (B, E * C, 1, T)."""
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(F.max_pool2d(x, (1, 2)) if number else x)))
        return x

    def spectrum(self, x):
        """Features (B, E, 64) of the amplitude spectrum of channels (B, E * C, 1, T).

        Two products with cosines and sines are the transform, in operations that every runtime has. Their window's sum
        is fixed, so that a wave has the same size in a long window as in a short one.
        """
        cosine, sine = fourier(x.shape[-1], torch.arange(FREQUENCIES, device=x.device) / POINTS)
        x = SIZE * (x - x.mean(-1, keepdim=True))
        size = ((x @ cosine).square() + (x @ sine).square() + 1e-12).sqrt()
        h = F.max_pool2d(F.relu(self.over_frequencies(torch.log1p(size))), (1, 2))
        h = self.spectral(h.flatten(1)[..., None, None])  # of (B, E * 32 * F / 2, 1, 1)
        return F.relu(h).unflatten(1, (self.members, -1))[..., 0, 0]

    def forward(self, x):
        if x.ndim == 3:
            x = x[:, None].expand(-1, self.members, -1, -1)
        x = x.flatten(1, 2)[:, :, None]
        h = self.encode(x).mean((2, 3)).unflatten(1, (self.members, -1))
        if self.spectral:
            h = torch.cat([h, self.spectrum(x)], 2)
        return self.head(self.dropout(h).flatten(1)[..., None, None]).unflatten(1, (self.members, -1))[..., 0, 0]
