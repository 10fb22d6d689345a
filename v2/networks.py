"""Version v2's networks: a small convolutional encoder on invariant channels, in several members side by side.

Axes: B windows, E members, C channels, T steps, D features of a member, K classes. The members are independent
networks that start from other weights and see other draws of the augmentation; one grouped convolution computes all of
them. What they agree on carries over better than what one of them has found: their probabilities are averaged.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    """Three convolutions with BatchNorm and ReLU, pooling after the first two: (B, E, C, T) -> (B, E, D, T / 4)."""

    def __init__(self, cfg):
        super().__init__()
        self.members, self.channels = cfg["members"], len(cfg["channels"])
        sizes, kernel = [self.channels, *cfg["widths"]], cfg["kernel"]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for inside, out in zip(sizes[:-1], sizes[1:], strict=True):
            E = self.members
            self.convs.append(nn.Conv1d(E * inside, E * out, kernel, padding=kernel // 2, groups=E))
            nn.init.kaiming_normal_(self.convs[-1].weight, nonlinearity="relu")
            self.norms.append(nn.BatchNorm1d(E * out))

    def forward(self, x):
        h = x.flatten(1, 2)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = F.relu(norm(conv(h)))
            if number < len(self.convs) - 1:
                h = F.max_pool1d(h, 2)
        return h.unflatten(1, (self.members, -1))


class PerMember(nn.Module):
    """A convolution over steps for each member: (B, E, D, T) -> (B, E, out, T); kernel 1 is a Linear per step."""

    def __init__(self, members, inside, out, kernel=1):
        super().__init__()
        self.members = members
        self.conv = nn.Conv1d(members * inside, members * out, kernel, padding=kernel // 2, groups=members)

    def forward(self, h):
        return self.conv(h.flatten(1, 2)).unflatten(1, (self.members, -1))


class Network(nn.Module):
    """Encoder and classifier: mean over steps, dropout, Linear; logits (B, E, K) of channels (B, E, C, T)."""

    def __init__(self, cfg, classifier_cfg, classes):
        super().__init__()
        self.encoder = Encoder(cfg)
        self.dropout = nn.Dropout(classifier_cfg["dropout"])
        self.head = PerMember(cfg["members"], cfg["widths"][-1], classes)

    def forward(self, x):
        return self.head(self.dropout(self.encoder(x).mean(3, keepdim=True)))[..., 0]


class Masked(nn.Module):
    """Encoder and decoder: the channels (B, E, C, T) reconstructed from windows some of whose steps are hidden."""

    def __init__(self, cfg):
        super().__init__()
        self.encoder = Encoder(cfg)
        E, D, C = cfg["members"], cfg["widths"][-1], len(cfg["channels"])
        self.inner, self.outer = PerMember(E, D, 64, 3), PerMember(E, 64, C, 5)

    def forward(self, x):
        """(reconstruction (B, E, C, T), features (B, E, D, T / 4))"""
        h = self.encoder(x)
        inner = F.relu(self.inner(h)).flatten(1, 2)
        inner = F.interpolate(inner, x.shape[-1], mode="linear").unflatten(1, (x.shape[1], -1))
        return self.outer(inner), h


class Projection(nn.Module):
    """The contrastive head: features (B, E, D, T / 4) -> unit vectors (E, B, 32)."""

    def __init__(self, cfg):
        super().__init__()
        self.first = PerMember(cfg["members"], cfg["widths"][-1], 64)
        self.second = PerMember(cfg["members"], 64, 32)

    def forward(self, h):
        z = self.second(F.relu(self.first(h.mean(3, keepdim=True))))[..., 0]
        return F.normalize(z, dim=2).transpose(0, 1)


def nt_xent(z1, z2, temperature=0.2):
    """NT-Xent of two views' projections (E, B, P), the mean over windows for each member: (E,)."""
    E, B, _ = z1.shape
    z = torch.cat([z1, z2], 1)
    similarity = z @ z.transpose(1, 2) / temperature
    similarity = similarity.masked_fill(torch.eye(2 * B, dtype=torch.bool, device=z.device), -1e9)
    partner = torch.arange(2 * B, device=z.device).roll(B).repeat(E)
    return F.cross_entropy(similarity.flatten(0, 1), partner, reduction="none").view(E, -1).mean(1)


def hidden_steps(x, generator, spans=3, shortest=3, longest=11):
    """Which steps masked modelling hides in channels x (B, E, C, T): (B, E, 1, T) bool, a few spans of all channels."""
    B, E, _, T = x.shape
    step = torch.arange(T, device=x.device)
    hidden = torch.zeros(B, E, 1, T, dtype=torch.bool, device=x.device)
    for _ in range(spans):
        start = torch.randint(T, (B, E, 1, 1), generator=generator, device=x.device)
        length = torch.randint(shortest, longest + 1, (B, E, 1, 1), generator=generator, device=x.device)
        hidden |= (step >= start) & (step < start + length)
    return hidden
