"""The eleven groups of cases that make detection hard, each a small network with its functional truth."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smdtrack.invariance import audit
from tests.invariance.truth import functional_truth

IMAGE = (3, 12, 12)


class Net(nn.Module):
    """Named parts and a forward given as a function of them."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._run = forward

    def forward(self, x):
        return self._run(self, x)


def verdicts(model, shape=IMAGE):
    result = audit(model, input_size=shape)
    found = {weight.name: weight.verdict for weight in result.weights}
    assert found == functional_truth(model, shape)
    return result


def head(channels=8):
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 5))


def tail(channels=8):
    """Layers after the weight under test that do not normalise."""
    return nn.Sequential(nn.Tanh(), head(channels))


def conv(inputs=3, outputs=8, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, **{"bias": False, **options})


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.flatten(1).std(1).view(-1, 1, 1, 1), self.bias)


# 1. Scope


@pytest.mark.parametrize(
    ("layers", "name", "cause"),
    [
        ([conv(), nn.BatchNorm2d(8)], "0.weight", "batch_norm"),
        ([conv(), conv(8, 8, groups=8), nn.BatchNorm2d(8)], "1.weight", "batch_norm"),
        ([StandardizedConv(3, 8, 3)], "0.weight", "other"),
        ([conv(), nn.InstanceNorm2d(8)], "0.weight", "other"),
    ],
    ids=["conv", "depthwise", "weight standardisation", "instance norm"],
)
def test_scope_is_the_filter(layers, name, cause):
    weight = verdicts(nn.Sequential(*layers, tail()))[name]
    assert (weight.verdict, weight.scope, weight.filter_dim, weight.cause) == ("invariant", "filter", 0, cause)


def test_scope_of_a_linear_layer_is_the_filter():
    weight = verdicts(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)), (6,))["0.weight"]
    assert (weight.verdict, weight.scope, weight.filter_dim, weight.norm) == ("invariant", "filter", 0, "1")


def test_filters_of_a_transposed_convolution_lie_along_dim_1():
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), tail())
    weight = verdicts(model)["0.weight"]
    assert (weight.scope, weight.filter_dim, weight.norm) == ("filter", 1, "1")


@pytest.mark.parametrize(
    ("layers", "shape", "name", "cause", "norm"),
    [
        ([conv(), nn.GroupNorm(2, 8), tail()], IMAGE, "0.weight", "other", "1"),
        ([nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)], (6,), "0.weight", "other", "1"),
        ([nn.Linear(6, 8, bias=False), nn.RMSNorm(8), nn.Tanh(), nn.Linear(8, 3)], (6,), "0.weight", "other", "1"),
        ([conv(8, 8, groups=8), conv(8, 8, 1), nn.BatchNorm2d(8), tail()], (8, 9, 9), "0.weight", "batch_norm", "2"),
        ([conv(), nn.PixelShuffle(2), nn.BatchNorm2d(2), tail(2)], IMAGE, "0.weight", "batch_norm", "2"),
    ],
    ids=["group norm", "layer norm", "rms norm", "depthwise, pointwise", "pixel shuffle"],
)
def test_scope_is_the_whole_tensor(layers, shape, name, cause, norm):
    weight = verdicts(nn.Sequential(*layers), shape)[name]
    assert (weight.verdict, weight.scope, weight.filter_dim) == ("invariant", "tensor", None)
    assert (weight.cause, weight.norm) == (cause, norm)


def test_jointly_invariant_weights_are_not_invariant_alone():
    two = Net(lambda m, x: m.tail(m.bn(m.a(x) + m.b(x))), a=conv(), b=conv(), bn=nn.BatchNorm2d(8), tail=tail())
    assert verdicts(two).invariant == ()
    with_bias = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))
    assert verdicts(with_bias, (6,)).invariant == ()
    through_relu = nn.Sequential(conv(bias=True), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), tail())
    assert verdicts(through_relu).invariant == ("2.weight",)


# 2. Unused


def test_parameters_without_influence_are_unused_not_invariant():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
            self.unused = nn.Linear(6, 6)

        def forward(self, x):
            return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)

    result = verdicts(Attention(), (5, 6))
    assert {weight.name for weight in result.weights if weight.verdict == "unused"} == {
        "k.bias",
        "unused.weight",
        "unused.bias",
    }
    result = verdicts(nn.Sequential(conv(bias=True), nn.BatchNorm2d(8), tail()))
    assert result["0.bias"].verdict == "unused"
    assert result["0.weight"].verdict == "invariant"


# 3. Degenerate


def test_one_tap_filters_are_degenerate():
    model = nn.Sequential(conv(8, 8, 1, groups=8), nn.BatchNorm2d(8), tail())
    weight = verdicts(model, (8, 6, 6))["0.weight"]
    assert (weight.verdict, weight.cause, weight.norm, weight.scope) == ("degenerate", "batch_norm", "1", None)


def test_a_kernel_that_sees_one_tap_becomes_ordinary_at_a_larger_input():
    model = nn.Sequential(conv(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8), tail())
    assert verdicts(model, (8, 1, 1))["0.weight"].verdict == "degenerate"
    assert verdicts(model, (8, 6, 6))["0.weight"].verdict == "invariant"


def test_a_tap_that_is_nearly_zero_is_degenerate_although_the_rest_of_eps_shows():
    model = nn.Sequential(conv(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8), tail())
    with torch.no_grad():
        model[0].weight[2, 0, 1, 1] = 1e-5
    assert audit(model, input_size=(8, 1, 1))["0.weight"].verdict == "degenerate"


def test_degenerate_and_unused_tensors_of_one_model_are_told_apart():
    one_tap = conv(8, 8, 1, groups=8, bias=True)
    model = nn.Sequential(one_tap, nn.BatchNorm2d(8), nn.Tanh(), conv(8, 8, bias=True), tail())
    found = {weight.name: weight.verdict for weight in verdicts(model, (8, 6, 6)).weights}
    assert (found["0.weight"], found["0.bias"], found["3.weight"], found["3.bias"]) == (
        "degenerate",
        "unused",
        "sensitive",
        "sensitive",
    )


# 4. One-dimensional


def test_a_gamma_without_activation_before_conv_and_bn_is_invariant():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), conv(8, 8, 1), nn.BatchNorm2d(8), tail())
    result = verdicts(model)
    assert result["1.weight"].verdict == "invariant"
    assert result["1.bias"].verdict == "unused"
    assert result["3.weight"].verdict == "sensitive"


# 5. Activations between


@pytest.mark.parametrize(
    ("activation", "bias", "expected"),
    [
        (nn.ReLU, False, "invariant"),
        (nn.ReLU, True, "sensitive"),
        (nn.GELU, False, "sensitive"),
        (nn.SiLU, False, "sensitive"),
    ],
)
def test_an_activation_between_conv_and_bn(activation, bias, expected):
    model = nn.Sequential(conv(bias=bias), activation(), nn.BatchNorm2d(8), tail())
    if bias:
        nn.init.zeros_(model[0].bias)  # pointwise invariant, and only there
    assert verdicts(model)["0.weight"].verdict == expected


# 6. What stands between


def test_pooling_and_concatenation_keep_it():
    pooled = nn.Sequential(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(8), tail())
    assert verdicts(pooled)["0.weight"].norm == "2"
    joined = Net(
        lambda m, x: m.tail(m.bn(torch.cat([m.a(x), m.b(x)], 1))),
        a=conv(outputs=4),
        b=conv(outputs=4),
        bn=nn.BatchNorm2d(8),
        tail=tail(),
    )
    result = verdicts(joined)
    assert [(result[name].verdict, result[name].norm) for name in ("a.weight", "b.weight")] == [("invariant", "bn")] * 2


def test_a_residual_or_a_gate_before_bn_destroys_it_and_a_gate_after_is_harmless():
    def gate(m, x):
        return x * m.se(x.mean((2, 3), keepdim=True)).sigmoid()

    residual = Net(lambda m, x: m.tail(m.bn(x + m.a(x))), a=conv(8, padding=1), bn=nn.BatchNorm2d(8), tail=tail())
    assert verdicts(residual, (8, 8, 8)).invariant == ()
    parts = {"a": conv(), "se": conv(8, 8, 1), "bn": nn.BatchNorm2d(8), "tail": tail()}
    before = Net(lambda m, x: m.tail(m.bn(gate(m, m.a(x)))), **parts)
    assert verdicts(before)["a.weight"].verdict == "sensitive"
    after = Net(lambda m, x: m.tail(gate(m, m.bn(m.a(x)))), **parts)
    assert verdicts(after)["a.weight"].verdict == "invariant"


# 7. Normalised queries and keys


def test_separate_normed_queries_and_keys_are_invariant_but_a_fused_qkv_is_not():
    class Attention(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.fused = fused
            names = ("qkv",) if fused else ("q", "k", "v")
            for name in names:
                setattr(self, name, nn.Linear(6, 18 if fused else 6, bias=False))
            self.q_norm, self.k_norm = nn.LayerNorm(6), nn.LayerNorm(6)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
            return (self.q_norm(q) @ self.k_norm(k).transpose(1, 2)).softmax(-1) @ v

    separate = verdicts(Attention(fused=False), (5, 6))
    assert separate.invariant == ("q.weight", "k.weight")
    assert (separate["q.weight"].norm, separate["k.weight"].norm) == ("q_norm", "k_norm")
    assert verdicts(Attention(fused=True), (5, 6)).invariant == ()


# 8. How the batch norm is used


def test_frozen_batch_norm_makes_nothing_invariant():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Tanh(), conv(8, 8), nn.BatchNorm2d(8), tail())
    model[1].eval()
    assert audit(model, input_size=IMAGE).invariant == ("3.weight",)


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"momentum": None}, {"affine": False}])
def test_bookkeeping_of_batch_norm_does_not_matter(options):
    weight = verdicts(nn.Sequential(conv(), nn.BatchNorm2d(8, **options), tail()))["0.weight"]
    assert (weight.verdict, weight.cause, weight.norm) == ("invariant", "batch_norm", "1")


def test_batch_norm_without_running_statistics_normalises_in_eval_mode_too():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False), tail())
    model[1].eval()
    assert audit(model, input_size=IMAGE).invariant == ("0.weight",)


@pytest.mark.parametrize("normed", [True, False])
def test_a_tied_convolution_is_invariant_only_if_all_its_uses_are_normed(normed):
    def run(m, x):
        y = m.conv(m.bn1(m.conv(x)))
        return m.tail(m.bn2(y) if normed else y)

    model = Net(run, conv=conv(8), bn1=nn.BatchNorm2d(8), bn2=nn.BatchNorm2d(8), tail=tail())
    assert verdicts(model, (8, 9, 9))["conv.weight"].verdict == ("invariant" if normed else "sensitive")


# 9. SyncBatchNorm


def test_sync_batch_norm_is_judged_without_talking_to_other_processes(tmp_path):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(conv(), nn.BatchNorm2d(8), tail()))
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        weight = audit(model, input_size=IMAGE)["0.weight"]
    finally:
        torch.distributed.destroy_process_group()
    assert (weight.verdict, weight.cause, weight.norm) == ("invariant", "batch_norm", "1")
    assert isinstance(model[1], nn.SyncBatchNorm)


def test_timms_sync_batch_norm_keeps_its_activation():
    import timm
    from timm.layers import convert_sync_batchnorm

    plain = timm.create_model("test_resnet")
    result = audit(convert_sync_batchnorm(copy.deepcopy(plain)), input_size=(3, 48, 48))
    assert result.weights == audit(plain, input_size=(3, 48, 48)).weights


# 10. Tricks that hide it from autograd


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.tanh(F.linear(x, self.weight / self.weight.norm().detach())))


class StraightThrough(Detached):
    def forward(self, x):
        signs = self.weight.sign()
        return self.out(torch.tanh(F.linear(x, self.weight + (signs - self.weight).detach())))


class Quantised(Detached):
    def forward(self, x):
        rounded = (8 * self.weight).round() / 8
        return self.out(torch.tanh(F.linear(x, self.weight + (rounded - self.weight).detach())))


def test_invariance_hidden_from_autograd_is_seen_by_the_function():
    detached = verdicts(Detached(), (6,))["weight"]
    assert (detached.verdict, detached.cause) == ("invariant", "other")
    assert detached.cosine > 1e-3
    assert verdicts(StraightThrough(), (6,))["weight"].verdict == "degenerate"
    assert verdicts(Quantised(), (6,))["weight"].verdict == "sensitive"


# 11. Precision, layout, wrappers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_precision_of_the_model_does_not_matter(dtype):
    model = nn.Sequential(conv(bias=True), nn.BatchNorm2d(8), tail()).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = audit(model, input_size=IMAGE)
    assert result.invariant == ("0.weight",)
    assert result["0.weight"].cosine < 1e-12
    assert result["0.bias"].verdict == "unused"


def test_casts_within_the_model_do_not_matter():
    model = Net(
        lambda m, x: m.tail(m.bn(m.conv(x).float()).to(torch.bfloat16).to(m.conv.weight.dtype)),
        conv=conv(),
        bn=nn.BatchNorm2d(8),
        tail=tail(),
    )
    assert audit(model, input_size=IMAGE)["conv.weight"].cosine < 1e-12


def test_channels_last_and_wrappers_do_not_matter():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), tail()).to(memory_format=torch.channels_last)
    expected = audit(model, input_size=IMAGE).weights
    compiled = audit(torch.compile(model), input_size=IMAGE)
    assert compiled.invariant == ("_orig_mod.0.weight",)
    parallel = audit(nn.DataParallel(model), input_size=IMAGE)
    assert parallel.invariant == ("module.0.weight",)
    assert [weight.verdict for weight in parallel.weights] == [weight.verdict for weight in expected]
