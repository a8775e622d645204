"""Both ways of summing, against float64: sizes across blocks, layouts, precisions, changes that are nearly radial."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smdtrack.geometry import angle_from_moments
from smdtrack.tracking import sums
from tests.tracking.witness import chord_angle

BENCHES = [sums.CpuBench, sums.KernelBench]
SHAPES = [(3,), (8, 27), (64, 64, 3, 3), (130, 1024), (512, 512, 3, 3)]


def stepped(shape: tuple[int, ...], angle: float, shrinkage: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, the weight after a step that turns it and shrinks it, and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    before, other, gradient = (torch.randn(shape, generator=generator) for _ in range(3))
    across = other - (other * before).sum() / before.square().sum() * before
    after = (1 - shrinkage) * (before + angle * before.norm() / across.norm() * across)
    return before, after, gradient


def measured(bench: Any, before: Tensor, after: Tensor, gradient: Tensor, scale: Tensor | None = None) -> list[float]:
    weight = before.clone(memory_format=torch.preserve_format)
    with torch.no_grad():
        bench.begin({4: weight}, {4: gradient}, scale)
        weight.copy_(after)
        return [float(row[0]) for row in bench.end({4: weight})]


@pytest.mark.parametrize("bench", BENCHES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("angle", "shrinkage"), [(0.3, 0.1), (1e-2, 1e-4), (1e-4, 0.0), (1e-4, 1e-2)])
def test_the_angle_is_within_a_millionth_of_float64(
    bench: Any, shape: tuple[int, ...], angle: float, shrinkage: float
) -> None:
    before, after, gradient = stepped(shape, angle, shrinkage)
    row = measured(bench(), before, after, gradient)
    moments = [torch.tensor(row[index], dtype=torch.float64) for index in (0, 3, 4)]
    assert float(angle_from_moments(*moments)) == pytest.approx(chord_angle(before.double(), after.double()), rel=1e-6)


@pytest.mark.parametrize("bench", BENCHES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_five_sums(bench: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    before, after, gradient = (tensor.to(dtype) for tensor in stepped(shape, 0.1, 0.01))
    w, g, d = before.double(), gradient.double(), after.double() - before.double()
    size = float(w.norm() * g.norm())
    expected = [float(w.square().sum()), float((w * g).sum()), float(g.square().sum()), float((w * d).sum()),
                float(d.square().sum())]  # fmt: skip
    row = measured(bench(), before, after, gradient)
    np.testing.assert_allclose(row[:1] + row[2:], expected[:1] + expected[2:], rtol=2e-6)
    assert row[1] == pytest.approx(expected[1], abs=1e-6 * size)


@pytest.mark.parametrize("bench", BENCHES)
def test_layouts_that_differ_from_one_another(bench: Any) -> None:
    before, after, gradient = stepped((20, 30, 7, 5), 0.1, 0.0)
    plain = measured(bench(), before, after, gradient)
    last = torch.channels_last
    for layouts in ((last, last), (last, torch.contiguous_format), (torch.contiguous_format, last)):
        row = measured(bench(), before.to(memory_format=layouts[0]), after, gradient.to(memory_format=layouts[1]))
        np.testing.assert_allclose(row, plain, rtol=1e-6, atol=1e-8 * plain[0])


@pytest.mark.parametrize("bench", BENCHES)
def test_a_loss_scale_is_divided_out(bench: Any) -> None:
    before, after, gradient = stepped((20, 30), 0.1, 0.0)
    plain = measured(bench(), before, after, gradient)
    np.testing.assert_allclose(measured(bench(), before, after, gradient * 512, torch.tensor(512.0)), plain, rtol=1e-6)


@pytest.mark.parametrize("bench", BENCHES)
def test_a_weight_without_a_gradient_has_zeros_and_one_that_did_not_move_turned_by_zero(bench: Any) -> None:
    weight = torch.randn(40, 50)
    one = bench()
    with torch.no_grad():
        one.begin({0: weight}, {}, None)
        row = [float(cells[0]) for cells in one.end({0: weight})]
    assert row[1:] == pytest.approx([0.0, 0.0, 0.0, 0.0], abs=1e-10 * row[0])


def test_several_threads_sum_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {column: torch.randn(40 + column, 90, 3, 3) for column in range(9)}
    gradients = {column: torch.randn_like(weight) for column, weight in weights.items()}
    changed = {column: weight + 0.01 * torch.randn_like(weight) for column, weight in weights.items()}
    tables = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        bench = sums.CpuBench()
        bench.begin(weights, gradients, None)
        tables.append(torch.stack([torch.stack(row) for row in bench.end(changed)]))
    assert torch.equal(*tables)


def test_a_fault_on_another_thread_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(sums, "WORTH_THREADS", 0)
    weights = {0: torch.randn(100, 10), 1: torch.randn(5, 5)}

    def work(column: int) -> None:
        if column == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sums._for_each(work, weights)
