"""Lookahead's steps against a filter run by hand."""

import pytest
import torch

from smdtrack.theory import filters
from smdtrack.theory.lookahead import lookahead_updates


def test_lookahead_agrees_with_a_filter_run_by_hand():
    alpha, period, steps, beta = 0.5, 6, 60_000, 0.9
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(steps, 16, generator=generator, dtype=torch.float64)
    buffer = fast = slow = torch.zeros(16, dtype=torch.float64)
    moves = torch.empty_like(noise)
    for step in range(steps):
        before = fast
        buffer = beta * buffer + noise[step]
        fast = fast - buffer
        if (step + 1) % period == 0:
            slow = fast = slow + alpha * (fast - slow)
        moves[step] = fast - before
    power = float(moves.square().mean())
    blocks = moves.reshape(-1, 600, 16).sum(1)
    found = lookahead_updates(filters.heavy_ball(beta), alpha, period)
    assert found.energy == pytest.approx(power, rel=0.03)
    assert found.memory == pytest.approx(float(blocks.square().mean()) / 600 / power, rel=0.1)
