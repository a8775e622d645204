"""Random small networks of everything that makes, breaks or hides scale invariance, for a comparison with the truth."""

import random

import torch
from timm.layers import BatchNormAct2d, RmsNorm2d, ScaledStdConv2d, SEModule, StdConv2d
from torch import nn


class Residual(nn.Module):
    def __init__(self, body, after=None):
        super().__init__()
        self.body, self.after = body, after or nn.Identity()

    def forward(self, x):
        return self.after(x + self.body(x))


class Concatenated(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Summed(nn.Module):
    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        return self.one(x) + self.other(x)


class Gated(nn.Module):
    def __init__(self, body, gate):
        super().__init__()
        self.body, self.gate = body, gate

    def forward(self, x):
        return self.body(x) * self.gate(x).sigmoid()


class LayerScale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x):
        return x * self.gamma


class Unused(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels))

    def forward(self, x):
        return x


class Shared(nn.Module):
    """One convolution used twice, each use with or without a norm of its own behind it."""

    def __init__(self, conv, first, second):
        super().__init__()
        self.conv, self.first, self.second = conv, first, second

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x)).relu()))


def random_network(seed, width=6):
    """Returns a network on (3, 12, 12) images, drawn by a seed; torch's generator must be seeded, too."""
    draw = random.Random(seed)

    def conv(channels, bias=None):
        bias = draw.random() < 0.4 if bias is None else bias
        kind = draw.choice(["3x3", "3x3", "1x1", "depthwise", "grouped", "std", "scaled std", "transposed"])
        if kind == "std":
            return StdConv2d(channels, channels, 3, padding=1, bias=bias)
        if kind == "scaled std":
            return ScaledStdConv2d(channels, channels, 3, padding=1, bias=bias)
        if kind == "transposed":
            return nn.ConvTranspose2d(channels, channels, 3, padding=1, bias=bias)
        size = 1 if kind == "1x1" else 3
        groups = {"depthwise": channels, "grouped": 2}.get(kind, 1)
        return nn.Conv2d(channels, channels, size, padding=size // 2, groups=groups, bias=bias)

    def norm(channels):
        kind = draw.choice(["bn", "bn", "bn", "bn", "bn act", "bn plain", "bn fresh", "gn", "ln", "in", "rms", "none"])
        return {
            "bn": lambda: nn.BatchNorm2d(channels),
            "bn act": lambda: BatchNormAct2d(channels),
            "bn plain": lambda: nn.BatchNorm2d(channels, affine=False),
            "bn fresh": lambda: nn.BatchNorm2d(channels, track_running_stats=False),
            "gn": lambda: nn.GroupNorm(2, channels),
            "ln": lambda: nn.GroupNorm(1, channels),
            "in": lambda: nn.InstanceNorm2d(channels, affine=draw.random() < 0.5),
            "rms": lambda: RmsNorm2d(channels),
            "none": nn.Identity,
        }[kind]()

    def between():
        return draw.choice([nn.Identity, nn.Identity, nn.ReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU])()

    def plain(channels):
        return nn.Sequential(conv(channels), between(), norm(channels), between())

    def block(channels, depth=0):
        others = ["residual", "zero-init", "layer scale", "sum", "gate", "se", "pool", "unused", "shared"]
        kind = draw.choice(["plain"] * 4 + others) if depth < 2 else "plain"
        if kind == "residual":
            return Residual(block(channels, depth + 1), norm(channels))
        if kind == "zero-init":
            last = nn.BatchNorm2d(channels)
            nn.init.zeros_(last.weight)
            return Residual(nn.Sequential(conv(channels), last), nn.ReLU())
        if kind == "layer scale":
            return Residual(nn.Sequential(block(channels, depth + 1), LayerScale(channels)))
        if kind == "sum":
            return nn.Sequential(Summed(conv(channels), conv(channels)), norm(channels), between())
        if kind == "gate":
            return nn.Sequential(Gated(conv(channels), conv(channels)), norm(channels))
        if kind == "se":
            return draw.choice(
                [
                    lambda: nn.Sequential(conv(channels), SEModule(channels, rd_channels=2), norm(channels)),
                    lambda: nn.Sequential(conv(channels), norm(channels), SEModule(channels, rd_channels=2)),
                ]
            )()
        if kind == "pool":
            pool = draw.choice([nn.MaxPool2d, nn.AvgPool2d])(3, 1, 1)
            return nn.Sequential(conv(channels), pool, norm(channels), between())
        if kind == "unused":
            return nn.Sequential(plain(channels), Unused(channels))
        if kind == "shared":
            return Shared(conv(channels), norm(channels), norm(channels))
        return plain(channels)

    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=draw.random() < 0.5), norm(width), between()]
    layers += [block(width) for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.3:
        layers += [Concatenated(block(width, 2), block(width, 2)), norm(2 * width), nn.Conv2d(2 * width, width, 1)]
    # Without the tanh the mean of a normalised map is a constant, and nothing before it is read.
    pool = nn.AdaptiveAvgPool2d(draw.choice([1, 2]))
    head = [nn.Tanh(), pool, nn.Flatten(), nn.LazyLinear(5, bias=draw.random() < 0.8)]
    if draw.random() < 0.2:
        head += [nn.BatchNorm1d(5)]
    network = nn.Sequential(*layers, *head)
    network(torch.randn(4, 3, 12, 12))
    return network
