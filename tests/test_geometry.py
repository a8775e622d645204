import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smdtrack.geometry import angle_from_moments, angular_update, dot, flat, norm, radial_tangential


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


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (512, 512, 3, 3), (8, 1, 3, 3), (1000, 2359)])
@pytest.mark.parametrize("angle", [1e-4, 1e-3, 1e-2, 0.5, 2.0])
@pytest.mark.parametrize("growth", [1.0, 0.999, 1.3])
def test_angle_is_within_1e_6_of_float64(shape, angle, growth):
    torch.manual_seed(0)
    before = torch.randn(shape) * 0.02
    after = turned(before, angle, growth)
    expected = true_angle(before, after)
    assert float(angular_update(before, after)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("angle", [1e-4, 1e-2, 0.5])
def test_angle_from_moments_is_within_1e_6_for_updates_of_a_step(angle):
    torch.manual_seed(0)
    before = torch.randn(512, 512, 3, 3) * 0.02
    after = turned(before, angle, 1 - angle / 2)
    change = after - before
    measured = angle_from_moments(dot(before, before), dot(before, change), dot(change, change))
    assert float(measured) == pytest.approx(true_angle(before, after), rel=1e-6)


def test_the_usual_formula_fails_where_ours_does_not():
    torch.manual_seed(0)
    before = torch.randn(512, 512, 3, 3) * 0.02
    after = turned(before, 1e-4)
    usual = torch.acos(torch.cosine_similarity(before.flatten(), after.flatten(), dim=0).clamp(-1, 1))
    assert abs(float(usual) / 1e-4 - 1) > 0.5
    assert float(angular_update(before, after)) == pytest.approx(1e-4, rel=1e-3)  # 1e-4 itself is rounded in fp32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_matches_float64_on_the_same_numbers(dtype):
    torch.manual_seed(1)
    before = torch.randn(64, 32, 3, 3).to(dtype)
    after = turned(before, 0.03)
    assert float(angular_update(before, after)) == pytest.approx(true_angle(before, after), rel=1e-6)
    assert float(norm(before)) == pytest.approx(float(before.double().norm()), rel=1e-6)


def test_channels_last_and_transposed_layouts_give_the_same_numbers():
    torch.manual_seed(2)
    before = torch.randn(70, 40, 5, 5)
    after = turned(before, 0.01)
    expected = float(angular_update(before, after))
    last = before.to(memory_format=torch.channels_last)
    assert flat(last).data_ptr() == last.data_ptr()
    assert float(angular_update(last, after.to(memory_format=torch.channels_last))) == pytest.approx(expected, rel=1e-7)
    assert float(angular_update(last, after)) == pytest.approx(expected, rel=1e-7)
    strided = torch.randn(10, 20, 2)[:, :, 0]
    assert float(dot(strided, strided)) == pytest.approx(float(strided.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("filter_dim", [0, 1])
def test_per_filter_matches_each_filter_alone(filter_dim):
    torch.manual_seed(3)
    before = torch.randn(6, 5, 3, 3)
    after = before + 0.01 * torch.randn_like(before)
    angles = angular_update(before, after, filter_dim)
    radial, tangential = radial_tangential(before, after, filter_dim)
    for index in range(before.shape[filter_dim]):
        one, other = before.select(filter_dim, index), after.select(filter_dim, index)
        assert float(angles[index]) == pytest.approx(true_angle(one, other), rel=1e-6)
        assert float(norm(before, filter_dim)[index]) == pytest.approx(float(one.double().norm()), rel=1e-6)
        along = float((one.double() * other.double()).sum() / one.double().norm())
        assert float(radial[index]) == pytest.approx(along, rel=1e-6)
        across = math.sqrt(float(other.double().norm()) ** 2 - along**2)
        assert float(tangential[index]) == pytest.approx(across, rel=1e-5)


def test_dot_over_two_million_elements_is_within_1e_6():
    torch.manual_seed(4)
    weight = torch.rand(2_400_000) + 0.5
    assert float(dot(weight, weight)) == pytest.approx(float(weight.double() @ weight.double()), rel=1e-6)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        dot(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="one shape"):
        radial_tangential(torch.ones(2, 3), torch.ones(2, 4), 0)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), other=st.floats(1e-3, 1e3), angle=st.floats(1e-5, 3.0)
)
def test_angle_is_scale_invariant_and_symmetric(seed, scale, other, angle):
    torch.manual_seed(seed)
    before = torch.randn(4, 3, 3, dtype=torch.float64)
    after = turned(before, angle)
    assert float(angular_update(before, after)) == pytest.approx(angle, rel=1e-6)
    assert float(angular_update(scale * before, other * after)) == pytest.approx(angle, rel=1e-6, abs=1e-9)
    assert float(angular_update(after, before)) == pytest.approx(angle, rel=1e-6)
    radial, tangential = radial_tangential(before, after)
    assert math.hypot(float(radial), float(tangential)) == pytest.approx(float(after.norm()), rel=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("angle", [1e-4, 1e-2])
def test_cuda_matches_float64(angle):
    torch.manual_seed(0)
    before = torch.randn(512, 512, 3, 3) * 0.02
    after = turned(before, angle)
    measured = angular_update(before.cuda(), after.cuda())
    assert float(measured) == pytest.approx(true_angle(before, after), rel=1e-6)
