"""Generic points: everything moves, nothing grows, masks and scales keep their kind."""

import torch
from torch import nn

from smdtrack.invariance.generic_point import Distance, PointSampler

FAR = Distance(0.3)


def sampler(parameters, buffers=()):
    named = {str(index): nn.Parameter(value) for index, value in enumerate(parameters)}
    return named, PointSampler(named, list(buffers), torch.Generator().manual_seed(0))


def test_special_starts_become_generic():
    starts = [torch.eye(6), torch.zeros(4, 4), torch.ones(5), torch.zeros(5), torch.zeros(()), torch.ones(70, 70)]
    parameters, points = sampler([start.double() for start in starts])
    points.move(FAR)
    for start, parameter in zip(starts, parameters.values(), strict=True):
        assert bool((parameter.detach() != start).all())
        assert len(parameter.detach().unique()) == parameter.numel()


def test_large_matrices_move_without_growing():
    torch.manual_seed(0)
    weight = torch.randn(1500, 1500, dtype=torch.float64)
    parameters, points = sampler([weight.clone()])
    for _ in range(5):
        points.move(FAR)
    moved = parameters["0"].detach()
    assert abs(float(moved.norm() / weight.norm()) - 1) < 0.02
    assert float((moved * weight).sum() / (moved.norm() * weight.norm())) < 0.9
    assert torch.linalg.matrix_rank(moved[:50] - 0.79 * weight[:50]) == 50


def test_scalars_keep_their_scale_and_sign():
    parameters, points = sampler([torch.tensor(100.0), torch.tensor(-1e-3)])
    for _ in range(20):
        points.move(FAR)
        assert 69 < float(parameters["0"].detach()) < 131
        assert -1.31e-3 < float(parameters["1"].detach()) < -0.69e-3


def test_buffers_move_a_little_and_masks_keep_their_zeros():
    mean, variance, mask = (
        torch.zeros(50),
        torch.ones(50),
        torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -100.0),
    )
    table, infinite = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5, -torch.inf])
    _, points = sampler([torch.ones(2)], [mean, variance, mask, table, infinite])
    points.move(FAR)
    assert 0 < float(mean.abs().mean()) < 0.1
    assert bool((variance > 0.9).all())
    assert float(variance.std()) > 0
    assert table.tolist() == [0.0, 1.0, 0.0]
    assert float(infinite[1]) == -torch.inf
    points.move(Distance(0.1, buffers=False))
    assert float(mean.abs().sum()) == 0
    assert float(mask.max()) == 0
