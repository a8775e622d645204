"""Small networks that break what an audit likes to assume: inputs, starts, eps, noise, hooks, closures, detached paths.

Each kind draws its sizes by a seed and names the verdicts that follow from its construction. `functional_truth` checks
them against the functions themselves; it shares no code with the audit.
"""

import copy
import functools
import random
import threading
from collections import namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy
import torch
import torch.nn.functional as F
from timm.layers import SplitBatchNorm2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

#: For the functional truth; the audit gets the usual one.
NO_EPS = 1e-20


@dataclass
class Case:
    """A network with its input and what is true of it.

    Attributes:
        model: The network, with the usual eps.
        example: What the audit is given.
        expected: Verdict of some parameters.
        exact: The same network without eps; None if it has none.
        refused: Part of the message with which the audit must refuse it.
        precision: In which the audit must run.
    """

    model: nn.Module
    example: object
    expected: dict[str, str] = field(default_factory=dict)
    exact: nn.Module | None = None
    refused: str | None = None
    precision: str = "float64"


class Net(nn.Module):
    """Named parts and a forward given as a function of them."""

    def __init__(self, run, **parts):
        super().__init__()
        self._run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self._run(self, *args, **kwargs)


def conv(i, o, k=3, **options):
    return nn.Conv2d(i, o, k, padding=k // 2, **{"bias": False, **options})


def head(channels):
    return nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 5))


def tail(width):
    return nn.Sequential(nn.Tanh(), nn.Linear(width, 3))


class Sizes:
    """Random sizes of one case."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.width = self.draw.choice([6, 8, 10])
        self.batch = self.draw.choice([6, 8, 12])

    def images(self, batch=None, channels=3):
        return torch.randn(batch or self.batch, channels, 10, 10)

    def rows(self, width, batch=None):
        return torch.randn(batch or self.batch, width)


KINDS = {}


def kind(build):
    KINDS[build.__name__] = build
    return build


# Starts that are not generic


@kind
def identity_convolution(s):
    c = conv(s.width, s.width)
    nn.init.dirac_(c.weight)
    model = Net(lambda m, x: m.h(m.bn(x + m.c(x))), c=c, bn=nn.BatchNorm2d(s.width), h=head(s.width))
    return Case(model, s.images(channels=s.width), {"c.weight": "sensitive"})


@kind
def identity_linear(s):
    layer = nn.Linear(s.width, s.width, bias=False)
    (nn.init.eye_ if s.draw.random() < 0.5 else nn.init.orthogonal_)(layer.weight)
    model = Net(lambda m, x: m.o(m.n(x + m.l(x))), l=layer, n=nn.LayerNorm(s.width), o=tail(s.width))
    return Case(model, s.rows(s.width), {"l.weight": "sensitive", "n.weight": "sensitive"})


@kind
def orthogonal_parametrisation(s):
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 2))
    return Case(model, s.rows(6), {"0.parametrizations.weight.original": "sensitive"})


@kind
def fresh_frozen_batch_norm(s):
    w = s.width
    model = nn.Sequential(conv(3, w), FrozenBatchNorm2d(w), nn.ReLU(), conv(w, w), nn.GroupNorm(2, w), head(w))
    return Case(model, s.images(), {"0.weight": "sensitive", "3.weight": "invariant"})


@kind
def batch_norm_in_eval_mode(s):
    w = s.width
    model = nn.Sequential(conv(3, w), nn.BatchNorm2d(w), nn.ReLU(), conv(w, w), nn.BatchNorm2d(w), head(w))
    model[1].eval()
    return Case(model, s.images(), {"0.weight": "sensitive", "3.weight": "invariant"})


@kind
def warm_up_buffer(s):
    def run(m, x):
        y = m.c(x)
        return m.h(m.bn(y) + m.alpha * y)

    model = Net(run, c=conv(3, s.width), bn=nn.BatchNorm2d(s.width), h=head(s.width))
    model.register_buffer("alpha", torch.zeros(()))
    return Case(model, s.images(), {"c.weight": "sensitive", "bn.weight": "sensitive"})


@kind
def initialised_by_the_first_batch(s):
    class ActNorm(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))
            self.register_buffer("initialised", torch.tensor(0))

        def forward(self, x):
            if not self.initialised:
                with torch.no_grad():
                    self.shift.copy_(-x.mean((0, 2, 3), keepdim=True)[0])
                    self.scale.copy_(1 / x.std((0, 2, 3), keepdim=True)[0])
                    self.initialised.fill_(1)
            return (x + self.shift) * self.scale

    model = nn.Sequential(conv(3, s.width), ActNorm(s.width), head(s.width))
    return Case(model, s.images(), {"0.weight": "sensitive"})


# The caller's own batch


@kind
def split_batch_norm(s):
    splits = s.draw.choice([2, 3])
    model = nn.Sequential(conv(3, s.width), SplitBatchNorm2d(s.width, num_splits=splits), head(s.width))
    return Case(model, s.images(4 * splits), {"0.weight": "invariant", "1.weight": "sensitive"})


@kind
def segments_in_the_batch(s):
    segments = s.draw.choice([3, 8])

    def run(m, x):
        y = m.a(x)
        return m.o(y.view(-1, segments, *y.shape[1:]).mean((1, 3, 4)))

    body = nn.Sequential(conv(3, s.width), nn.BatchNorm2d(s.width), nn.ReLU())
    model = Net(run, a=body, o=nn.Linear(s.width, 3))
    return Case(model, s.images(2 * segments), {"a.0.weight": "invariant"})


@kind
def ghost_batch_norm(s):
    chunks = s.draw.choice([4, 8])
    w = s.width
    model = Net(
        lambda m, x: m.o(torch.cat([m.bn(part) for part in m.l(x).chunk(chunks)])),
        l=nn.Linear(6, w),
        bn=nn.BatchNorm1d(w),
        o=tail(w),
    )
    return Case(model, s.rows(6, 8 * chunks), {"l.weight": "invariant", "l.bias": "unused"})


@kind
def graph(s):
    nodes = s.draw.choice([20, 30])

    def run(m, x, edges):
        h = m.l(x)
        return m.o(m.b(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])))

    model = Net(run, l=nn.Linear(6, s.width, bias=False), b=nn.BatchNorm1d(s.width), o=tail(s.width))
    return Case(model, (s.rows(6, nodes), torch.randint(0, nodes, (2, 3 * nodes))), {"l.weight": "invariant"})


@kind
def mixture_of_experts(s):
    experts = s.draw.choice([4, 8])

    def run(m, x):
        weights, chosen = m.gate(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(m.experts):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                y = y.index_add(0, rows, weights[rows, None] * expert(x[rows]))
        return m.o(y)

    def expert():
        return nn.Sequential(nn.Linear(8, 8, bias=False), nn.LayerNorm(8), nn.Tanh())

    model = Net(run, gate=nn.Linear(8, experts), experts=nn.ModuleList(expert() for _ in range(experts)), o=tail(8))
    expected = {f"experts.{index}.0.weight": "invariant" for index in range(experts)}
    return Case(model, s.rows(8, 256), {**expected, "gate.weight": "sensitive"})


@kind
def triplets(s):
    model = Net(
        lambda m, x: m.o(m.bn(m.l(x)).view(-1, 3, s.width).diff(dim=1)),
        l=nn.Linear(6, s.width, bias=False),
        bn=nn.BatchNorm1d(s.width),
        o=tail(s.width),
    )
    return Case(model, s.rows(6, 12), {"l.weight": "invariant", "bn.bias": "unused"})


@kind
def list_of_images(s):
    model = Net(
        lambda m, images: m.h(m.bn(m.c(torch.stack(images)))),
        c=conv(3, s.width),
        bn=nn.BatchNorm2d(s.width),
        h=head(s.width),
    )
    return Case(model, ([torch.randn(3, 10, 10) for _ in range(s.batch)],), {"c.weight": "invariant"})


@kind
def nested_dictionary(s):
    def run(m, batch, targets):
        y = m.h(m.bn(m.c(batch.pop("image"))))
        return {"loss": sum((y[i] * t["weight"]).sum() for i, t in enumerate(targets)), "logits": y}

    model = Net(run, c=conv(3, s.width), bn=nn.BatchNorm2d(s.width), h=head(s.width))
    targets = [{"weight": torch.rand(5), "label": torch.tensor(i)} for i in range(s.batch)]
    example = ({"image": s.images(), "names": ["a"] * s.batch}, targets)
    return Case(model, example, {"c.weight": "invariant"})


Pair = namedtuple("Pair", ["one", "other"])


@dataclass
class Record:
    pair: Pair
    title: str


@kind
def records_as_input(s):
    model = Net(
        lambda m, record: m.o(m.bn(m.l(record.pair.one)) - m.bn(m.l(record.pair.other))),
        l=nn.Linear(6, s.width, bias=False),
        bn=nn.BatchNorm1d(s.width),
        o=tail(s.width),
    )
    return Case(model, (Record(Pair(s.rows(6), s.rows(6)), "x"),), {"l.weight": "invariant"})


@kind
def zeros_as_example(s):
    model = nn.Sequential(conv(3, s.width), nn.BatchNorm2d(s.width), head(s.width))
    return Case(model, torch.zeros(s.draw.choice([1, 8]), 3, 10, 10), {"0.weight": "invariant"})


@kind
def one_item_as_example(s):
    model = nn.Sequential(nn.Linear(6, s.width, bias=False), nn.BatchNorm1d(s.width), tail(s.width))
    return Case(model, s.rows(6, 1), {"0.weight": "invariant"})


@kind
def input_changed_in_place(s):
    model = Net(lambda m, x: m.o(m.bn(m.l(x.mul_(2).add_(1)))), l=nn.Linear(6, 8), bn=nn.BatchNorm1d(8), o=tail(8))
    return Case(model, s.rows(6), {"l.weight": "invariant", "l.bias": "unused"})


@kind
def masked_attention(s):
    def run(m, x, mask):
        scores = m.qn(m.q(x)) @ m.kn(m.k(x)).transpose(1, 2) + mask
        return m.o(scores.softmax(-1) @ m.v(x))

    parts = {key: nn.Linear(6, 6, bias=False) for key in "qkv"}
    model = Net(run, **parts, qn=nn.LayerNorm(6), kn=nn.LayerNorm(6), o=tail(6))
    masked = s.draw.choice([-1e9, -torch.inf])
    mask = torch.zeros(s.batch, 1, 5).masked_fill(torch.arange(5) > 2, masked)
    expected = {"q.weight": "invariant", "k.weight": "invariant", "v.weight": "sensitive"}
    return Case(model, (torch.randn(s.batch, 5, 6), mask), expected)


@kind
def masked_outputs(s):
    masked = s.draw.choice([-1e9, -torch.inf])

    def run(m, x):
        y = m.o(m.bn(m.l(x)))
        return {"logits": y.masked_fill(torch.arange(3) == 1, masked), "small": 1e-6 * m.small(x)}

    model = Net(run, l=nn.Linear(6, 8, bias=False), bn=nn.BatchNorm1d(8), o=tail(8), small=nn.Linear(6, 2))
    return Case(model, s.rows(6), {"l.weight": "invariant", "o.1.weight": "sensitive", "small.weight": "sensitive"})


# Noise


@kind
def layer_drop(s):
    chance = s.draw.choice([lambda: float(torch.rand(())), random.random, numpy.random.rand])

    def run(m, x):
        for layer in m.layers:
            if chance() < 0.5:
                x = x + layer(x)
        return m.o(x)

    layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6, bias=False), nn.LayerNorm(6)) for _ in range(3))
    expected = {f"layers.{i}.0.weight": "invariant" for i in range(3)}
    return Case(Net(run, layers=layers, o=tail(6)), s.rows(6), expected)


@kind
def own_random_generator(s):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.bn, self.o = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), tail(8)
            self.generator = torch.Generator().manual_seed(3) if s.draw.random() < 0.5 else None
            self.numbers = numpy.random.default_rng(3)

        def forward(self, x):
            if self.generator is not None:
                return self.o(self.bn(self.l(x + 0.1 * torch.randn(x.shape, generator=self.generator).to(x))))
            return self.o(self.bn(self.l(x + 0.1 * torch.from_numpy(self.numbers.normal(size=x.shape)).to(x))))

    return Case(Noisy(), s.rows(6), {"l.weight": "invariant"})


@kind
def counted_calls(s):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.bn, self.o, self.calls = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), tail(8), 0

        def forward(self, x):
            self.calls += 1
            return self.o(self.bn(self.l(x))) * self.calls

    return Case(Counting(), s.rows(6), {"l.weight": "invariant", "o.1.weight": "sensitive"})


_CALLS = [0]


@kind
def forward_that_does_not_repeat(s):
    def run(m, x):
        _CALLS[0] += 1
        return m.o(m.bn(m.l(x))) * _CALLS[0]

    model = Net(run, l=nn.Linear(6, 8), bn=nn.BatchNorm1d(8), o=tail(8))
    return Case(model, s.rows(6), refused="does not repeat")


# Scales and eps


@kind
def cosine_classifier(s):
    model = Net(
        lambda m, x: m.scale * F.linear(F.normalize(x, dim=1), F.normalize(m.l.weight, dim=1)),
        l=nn.Linear(6, 4, bias=False),
    )
    model.scale = nn.Parameter(torch.tensor(s.draw.choice([100.0, 1e-3, 2.7])))
    return Case(model, s.rows(6), {"l.weight": "invariant", "scale": "sensitive"})


def weight_standardised(eps):
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            std = w.view(len(w), -1).std(dim=1).view(-1, 1, 1, 1) + eps
            return F.conv2d(x, w / std.expand_as(w), self.bias, self.stride, self.padding)

    return Standardised


@kind
def weight_standardisation(s):
    seed = s.draw.random()

    def build(eps):
        torch.manual_seed(int(1e6 * seed))
        kind = weight_standardised(eps)
        return nn.Sequential(kind(3, s.width, 3), nn.ReLU(), kind(s.width, s.width, 3), head(s.width))

    expected = {"0.weight": "invariant", "2.weight": "invariant", "0.bias": "sensitive"}
    return Case(build(1e-5), s.images(), expected, build(NO_EPS))


@kind
def root_mean_square_norm(s):
    form = s.draw.choice(["attribute", "buffer", "constant", "power", "lower bound", "norm"])

    class Rms(nn.Module):
        def __init__(self, width, eps):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps
            self.register_buffer("tiny", torch.tensor(eps), persistent=False)

        def forward(self, x):
            square = x.pow(2).mean(-1, keepdim=True)
            if form == "attribute":
                return self.weight * x * torch.rsqrt(square + self.variance_epsilon)
            if form == "buffer":
                return self.weight * x / (square + self.tiny).sqrt()
            if form == "constant":
                return self.weight * (x / torch.sqrt(square + self.variance_epsilon))
            if form == "power":
                return self.weight * x * (square + self.variance_epsilon) ** -0.5
            if form == "lower bound":
                return self.weight * x / square.clamp(min=self.variance_epsilon).sqrt()
            return self.weight * x / (x.norm(dim=-1, keepdim=True) + self.variance_epsilon)

    seed = int(1e6 * s.draw.random())

    def build(eps):
        torch.manual_seed(seed)
        layer = nn.Linear(6, 8, bias=False)
        nn.init.normal_(layer.weight, std=0.02)
        return nn.Sequential(layer, Rms(8, eps), tail(8)).float()

    return Case(build(1e-6), s.rows(6), {"0.weight": "invariant", "1.weight": "sensitive"}, build(NO_EPS))


@kind
def batch_norm_with_a_large_eps(s):
    eps = s.draw.choice([1, 0.1, 0.8])

    def build(eps):
        torch.manual_seed(s.width)
        return nn.Sequential(conv(3, s.width), nn.BatchNorm2d(s.width, eps=eps), head(s.width))

    return Case(build(eps), s.images(), {"0.weight": "invariant"}, build(NO_EPS))


@kind
def constants_that_are_no_eps(s):
    model = Net(lambda m, x: m.o(torch.log(m.l(x).square() + 1e-3) + 1e-3), l=nn.Linear(6, 8, bias=False), o=tail(8))
    return Case(model, s.rows(6), {"l.weight": "sensitive"})


# Hooks, closures, attributes


@kind
def hook_that_normalises(s):
    model = nn.Sequential(nn.Linear(6, 8, bias=False), tail(8))
    if s.draw.random() < 0.5:
        model[0].register_forward_hook(lambda module, args, out: out / out.square().mean(1, keepdim=True).sqrt())
    else:

        def normalise(module, args):
            return (args[0] / args[0].square().mean(1, keepdim=True).sqrt(),)

        model[1].register_forward_pre_hook(normalise)
    return Case(model, s.rows(6), {"0.weight": "invariant"})


@kind
def closures_over_modules(s):
    class Closed(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.c, self.bn, self.h = conv(3, s.width), nn.BatchNorm2d(s.width), head(s.width)
            bn = self.bn
            self.norm = {
                "self": lambda x: self.bn(x),
                "cell": lambda x: bn(x),
                "default": lambda x, layer=bn: layer(x),
                "method": self.bn.forward,
                "partial": functools.partial(lambda layer, x: layer(x), self.bn),
                "list": [lambda x: self.bn(x)],
            }[form]

        def forward(self, x):
            return self.h((self.norm[0] if isinstance(self.norm, list) else self.norm)(self.c(x)))

    model = Closed(s.draw.choice(["self", "cell", "default", "method", "partial", "list"]))
    return Case(model, s.images(), {"c.weight": "invariant", "bn.weight": "sensitive"})


@kind
def forward_replaced_on_the_instance(s):
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), tail(8))
    plain = model.forward
    model.forward = lambda x: 2 * plain(x)
    return Case(model, s.rows(6), {"0.weight": "invariant", "2.1.weight": "sensitive"})


_GLOBAL = {}


@kind
def closure_through_a_global(s):
    model = Net(lambda m, x: m.o(_GLOBAL["bn"](m.l(x))), l=nn.Linear(6, 8, bias=False), bn=nn.BatchNorm1d(8), o=tail(8))
    _GLOBAL["bn"] = model.bn
    return Case(model, s.rows(6), refused="original")


@kind
def locks_and_kept_activations(s):
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.bn, self.o = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), tail(8)
            self.lock, self.event, self.kept, self.last = threading.Lock(), threading.Event(), [], {}

        def forward(self, x):
            with self.lock:
                y = self.bn(self.l(x))
                self.kept.append(y)
                self.last["y"] = y
            return self.o(y)

    model = Keeping()
    model(s.rows(6))
    return Case(model, s.rows(6), {"l.weight": "invariant"})


@kind
def plain_object_as_output(s):
    model = Net(
        lambda m, x: SimpleNamespace(logits=m.o(m.bn(m.l(x))), meta={"n": len(x)}),
        l=nn.Linear(6, 8, bias=False),
        bn=nn.BatchNorm1d(8),
        o=tail(8),
    )
    return Case(model, s.rows(6), {"l.weight": "invariant"})


# Unusual parameters and modules


@kind
def sparse_embedding(s):
    embedding = nn.Embedding(20, 6, sparse=True, max_norm=s.draw.choice([None, 1.0]))
    model = Net(
        lambda m, t: m.o(m.bn(m.l(m.e(t).mean(1)))),
        e=embedding,
        l=nn.Linear(6, 8, bias=False),
        bn=nn.BatchNorm1d(8),
        o=tail(8),
    )
    return Case(model, torch.randint(0, 20, (s.batch, 5)), {"l.weight": "invariant"})


@kind
def integer_parameter(s):
    model = Net(
        lambda m, x: m.o(m.bn(m.l(x[:, m.order]))), l=nn.Linear(6, 8, bias=False), bn=nn.BatchNorm1d(8), o=tail(8)
    )
    model.order = nn.Parameter(torch.randperm(6), requires_grad=False)
    return Case(model, s.rows(6), {"l.weight": "invariant", "order": "sensitive"})


@kind
def scripted_submodule(s):
    body = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    model = Net(
        lambda m, x: m.o(m.bn(m.l(m.b(x)))), b=body, l=nn.Linear(6, 8, bias=False), bn=nn.BatchNorm1d(8), o=tail(8)
    )
    return Case(model, s.rows(6), {"l.weight": "invariant", "b.0.weight": "sensitive"})


@kind
def only_in_float32(s):
    def run(m, x):
        if x.dtype != torch.float32:
            raise TypeError(f"expected dtype float32, not {x.dtype}")
        return m.o(m.bn(m.l(x)))

    model = Net(run, l=nn.Linear(6, 8, bias=False), bn=nn.BatchNorm1d(8), o=tail(8))
    return Case(model, s.rows(6, 16), {"l.weight": "invariant", "o.1.weight": "sensitive"}, precision="float32")


# Detached paths


@kind
def simsiam(s):
    def run(m, x):
        z = [m.encoder(view) for view in (x, x.flip(1))]
        return [m.predictor(part) for part in z], [part.detach() for part in z]

    encoder = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
    model = Net(run, encoder=encoder, predictor=nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), tail(4)))
    expected = {"encoder.0.weight": "invariant", "encoder.3.weight": "sensitive", "predictor.0.weight": "invariant"}
    return Case(model, s.rows(6), expected)


@kind
def byol(s):
    def run(m, x):
        online = m.predictor(m.online(x))
        with torch.no_grad():
            target = m.target(x)
        return online, target

    def encoder():
        layers = [nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()]
        for _ in range(s.draw.choice([1, 4])):
            layers += [nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(8, 8))

    online = encoder()
    target = copy.deepcopy(online)
    target.requires_grad_(False)
    expected = {f"{part}.0.weight": "invariant" for part in ("online", "target")}
    expected |= {f"{part}.{len(online) - 1}.weight": "sensitive" for part in ("online", "target")}
    return Case(Net(run, online=online, target=target, predictor=tail(8)), s.rows(6), expected)


@kind
def vector_quantised(s):
    def run(m, x):
        z = m.encoder(x)
        nearest = torch.cdist(z, m.codes.weight).argmin(1)
        q = m.codes(nearest)
        return m.decoder(z + (q - z).detach()), F.mse_loss(q, z.detach()), F.mse_loss(q.detach(), z)

    encoder = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
    model = Net(run, encoder=encoder, codes=nn.Embedding(5, 4), decoder=tail(4))
    return Case(model, s.rows(6), {"encoder.0.weight": "invariant", "encoder.3.weight": "sensitive"})


@kind
def iterative_refinement(s):
    def run(m, x):
        features, flow, flows = m.encoder(x), torch.zeros(len(x), 2, dtype=x.dtype), []
        for _ in range(3):
            flow = flow.detach()
            flow = flow + m.update(torch.cat([features, flow], 1))
            flows.append(flow)
        return flows

    encoder = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh())
    update = nn.Sequential(nn.Linear(10, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2))
    expected = {"encoder.0.weight": "invariant", "update.0.weight": "sensitive", "update.3.weight": "sensitive"}
    return Case(Net(run, encoder=encoder, update=update), s.rows(6), expected)


@kind
def detached_probe(s):
    def run(m, x):
        features = m.body(x)
        return {"z": m.z(features), "probe": m.probe(features.detach())}

    body = nn.Sequential(conv(3, s.width), nn.BatchNorm2d(s.width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Net(run, body=body, z=tail(s.width), probe=tail(s.width))
    expected = {"body.0.weight": "invariant", "body.1.weight": "sensitive", "probe.1.weight": "sensitive"}
    return Case(model, s.images(), expected)


@kind
def norm_detached(s):
    form = s.draw.choice(["weight", "sign", "rounded"])

    def run(m, x):
        w = m.l.weight
        if form == "weight":
            w = w / w.norm().detach()
        elif form == "sign":
            w = w + (w.sign() - w).detach()
        else:
            w = w + ((8 * w).round() / 8 - w).detach()
        return m.o(F.linear(x, w))

    model = Net(run, l=nn.Linear(6, 8, bias=False), o=tail(8))
    verdict = {"weight": "invariant", "sign": "degenerate", "rounded": "sensitive"}[form]
    return Case(model, s.rows(6), {"l.weight": verdict, "o.1.weight": "sensitive"})


def case(name, seed):
    """Returns one case; torch's generator is seeded by it."""
    torch.manual_seed(seed)
    random.seed(seed)
    return KINDS[name](Sizes(f"{name} {seed}"))


#: Kinds whose truth follows from the construction alone: their forward depends on more than parameters and a seed, or
#: runs in float32 only, or must be refused.
BY_CONSTRUCTION = {
    "counted_calls",
    "forward_that_does_not_repeat",
    "closure_through_a_global",
    "own_random_generator",
    "only_in_float32",
    "initialised_by_the_first_batch",
    "scripted_submodule",
    "sparse_embedding",
    "integer_parameter",
}

_SEEDS = range(8)


def _in_double(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value.clone()
    if isinstance(value, dict):
        return {key: _in_double(item) for key, item in value.items()}
    if isinstance(value, Record):
        return Record(Pair(*(_in_double(item) for item in value.pair)), value.title)
    if isinstance(value, (list, tuple)):
        return type(value)(_in_double(item) for item in value)
    return value


def _floats(value):
    if isinstance(value, torch.Tensor):
        return [value.double()] if value.is_floating_point() else []
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, (dict, list, tuple)):
        items = value.values() if isinstance(value, dict) else value
        return [part for item in items for part in _floats(item)]
    return []


def functional_truth(case):
    """Returns the verdict of each expected parameter by its definition: change it, compare the outputs.

    Uses up the case: its own network is moved to a generic point in float64.
    """
    model = (case.exact or case.model).double()
    for module in model.modules():
        if isinstance(getattr(module, "eps", None), float):
            module.eps = NO_EPS
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and not (tensor.numel() == 1 and tensor == NO_EPS):
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.mul_(1 + 0.1 * noise.abs()).add_(0.1 * noise.flip(0) if tensor.dim() else 0.01)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args = case.example if isinstance(case.example, tuple) else (case.example,)
    if torch.is_tensor(case.example) and (case.example == 0).all():
        args = (torch.randn(8, *case.example.shape[1:], generator=generator),)
    elif torch.is_tensor(case.example) and len(case.example) == 1:
        args = (torch.randn(4, *case.example.shape[1:], generator=generator),)

    def outputs(seed):
        for name, buffer in model.named_buffers():
            buffer.data.copy_(buffers[name])
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        return _floats(model(*_in_double(args)))

    def felt(parameter, value):
        saved = parameter.data
        largest = 0.0
        for seed in _SEEDS:
            parameter.data = saved
            before = outputs(seed)
            parameter.data = value
            for one, other in zip(before, outputs(seed), strict=True):
                scale = one[one.isfinite() & (one.abs() < 1e5)].abs().max()
                change = (one - other).abs().nan_to_num(nan=0.0) / torch.clamp(one.abs().nan_to_num(), min=scale)
                largest = max(largest, float(change.max()))
        parameter.data = saved
        return largest > 1e-9

    verdicts = {}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in case.expected:
            value = parameters[name].data
            positive = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
            other = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if felt(parameters[name], 1.9 * value) or felt(parameters[name], 0.3 * value):
                verdicts[name] = "sensitive"
            elif felt(parameters[name], value * positive):
                verdicts[name] = "invariant"
            else:
                verdicts[name] = "degenerate" if felt(parameters[name], other) else "unused"
    return verdicts
