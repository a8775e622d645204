import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smdtrack.geometry import angle_from_moments, dot, flat, flat_pair, wide


def true_angle(before: torch.Tensor, after: torch.Tensor) -> float:
    """Float64 brute force by Kahan's formula on unit vectors: 2 atan2(||u - v||, ||u + v||), another formula."""
    u, v = before.double().flatten(), after.double().flatten()
    u, v = u / u.norm(), v / v.norm()
    return float(2 * torch.atan2((u - v).norm(), (u + v).norm()))


def turned(weight: torch.Tensor, angle: float, growth: float = 1.0) -> torch.Tensor:
    across = torch.randn_like(weight, dtype=torch.float64)
    w = weight.double()
    across -= w * (across * w).sum() / w.square().sum()
    across *= w.norm() / across.norm()
    return (growth * (math.cos(angle) * w + math.sin(angle) * across)).to(weight.dtype)


def angle_by_moments(before: torch.Tensor, after: torch.Tensor) -> float:
    """The angle as a sampled step computes it: from three inner products."""
    before, after = wide([before, after])
    change = after - before
    return float(angle_from_moments(dot(before, before), dot(before, change), dot(change, change)))


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (512, 512, 3, 3), (8, 1, 3, 3), (1000, 2359)])
@pytest.mark.parametrize("angle", [1e-4, 1e-3, 1e-2, 0.5])
def test_angle_is_within_1e_6_of_float64(shape, angle):
    torch.manual_seed(0)
    before = torch.randn(shape) * 0.02
    after = turned(before, angle, 1 - angle / 2)
    assert angle_by_moments(before, after) == pytest.approx(true_angle(before, after), rel=1e-6)


def test_the_usual_formula_fails_where_ours_does_not():
    torch.manual_seed(0)
    before = torch.randn(512, 512, 3, 3) * 0.02
    after = turned(before, 1e-4)
    usual = torch.acos(torch.cosine_similarity(before.flatten(), after.flatten(), dim=0).clamp(-1, 1))
    assert abs(float(usual) / 1e-4 - 1) > 0.5
    assert angle_by_moments(before, after) == pytest.approx(1e-4, rel=1e-3)  # 1e-4 itself is rounded in fp32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_matches_float64_on_the_same_numbers(dtype):
    torch.manual_seed(1)
    before = torch.randn(64, 32, 3, 3).to(dtype)
    after = turned(before, 0.03)
    assert angle_by_moments(before, after) == pytest.approx(true_angle(before, after), rel=1e-6)


def test_channels_last_and_transposed_layouts_give_the_same_numbers():
    torch.manual_seed(2)
    before = torch.randn(70, 40, 5, 5)
    after = turned(before, 0.01)
    expected = angle_by_moments(before, after)
    last = before.to(memory_format=torch.channels_last)
    assert flat(last).data_ptr() == last.data_ptr()
    assert angle_by_moments(last, after.to(memory_format=torch.channels_last)) == pytest.approx(expected, rel=1e-7)
    assert angle_by_moments(last, after) == pytest.approx(expected, rel=1e-7)
    strided = torch.randn(10, 20, 2)[:, :, 0]
    assert float(dot(strided, strided)) == pytest.approx(float(strided.double().square().sum()), rel=1e-6)


def test_dot_over_two_million_elements_is_within_1e_6():
    torch.manual_seed(4)
    weight = torch.rand(2_400_000) + 0.5
    assert float(dot(weight, weight)) == pytest.approx(float(weight.double() @ weight.double()), rel=1e-6)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        dot(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="one shape"):
        flat_pair(torch.ones(2, 3), torch.ones(2, 4))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), angle=st.floats(1e-4, 1.0))
def test_angle_is_scale_invariant_and_symmetric(seed, scale, angle):
    torch.manual_seed(seed)
    before = torch.randn(4, 3, 3, dtype=torch.float64)
    after = turned(before, angle)
    assert angle_by_moments(before, after) == pytest.approx(angle, rel=1e-6)
    assert angle_by_moments(scale * before, scale * after) == pytest.approx(angle, rel=1e-6)
    assert angle_by_moments(after, before) == pytest.approx(angle, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("angle", [1e-4, 1e-2])
def test_cuda_matches_float64(angle):
    torch.manual_seed(0)
    before = torch.randn(512, 512, 3, 3) * 0.02
    after = turned(before, angle, 1 - angle / 2)
    assert angle_by_moments(before.cuda(), after.cuda()) == pytest.approx(true_angle(before, after), rel=1e-6)
