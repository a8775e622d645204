"""The live check: its residual against float64, and weights that stop being scale-invariant.

The reference takes the variance where smdtrack cannot: from batch norm's input, by a hook in the forward pass.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm import create_model
from torch import nn
from torch.nn import functional as F

import smdtrack
from smdtrack.record import Run, read_run
from tests.said import collected_notices


class Reference:
    """`|<w, g> - sum_c eps / (var_c + eps) gamma_c dL/dgamma_c| / (||w|| ||g||)` in float64, and the plain cosine."""

    def __init__(self, model: nn.Module, pairs: dict[str, str], optimizer: torch.optim.Optimizer) -> None:
        self.residuals: dict[str, list[float]] = {name: [] for name in pairs}
        self.cosines: dict[str, list[float]] = {name: [] for name in pairs}
        self._model, self._pairs = model, pairs
        self._variances: dict[str, torch.Tensor] = {}
        for norm in pairs.values():
            model.get_submodule(norm).register_forward_pre_hook(self._see(norm))
        optimizer.register_step_pre_hook(self._compute)

    def _see(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor]) -> None:
            x = args[0].detach().double()
            self._variances[name] = x.var([0, *range(2, x.dim())], unbiased=False)

        return hook

    def _compute(self, *_: Any) -> None:
        parameters = dict(self._model.named_parameters())
        for name, norm in self._pairs.items():
            bn: Any = self._model.get_submodule(norm)
            weight, grad = parameters[name].detach().double(), parameters[name].grad
            assert grad is not None
            share = bn.eps / (self._variances[norm] + bn.eps)
            radial, scale = float((weight * grad.double()).sum()), float(weight.norm() * grad.double().norm())
            by_eps = float((share * bn.weight.detach().double() * bn.weight.grad.double()).sum())
            self.residuals[name].append(abs(radial - by_eps) / scale)
            self.cosines[name].append(abs(radial) / scale)


def tracked(
    model: nn.Module, folder: Path, size: int, steps: int, every: int = 1, shrink: float = 0.02
) -> tuple[Run, Reference]:
    """Trains a model with batch variances of the order of eps, to which its running variances have adapted."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(shrink)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for momentum in (1.0, 0.1):
        for norm in norms:
            norm.momentum = momentum
        model(torch.randn(16, 3, size, size))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * shrink**2, momentum=0.9)
    pairs = {
        w.name: w.norm
        for w in smdtrack.audit(model, torch.randn(4, 3, size, size)).weights
        if w.verdict == "invariant" and w.norm and len(w.shape) > 1
    }
    reference = Reference(model, pairs, optimizer)
    example = torch.randn(4, 3, size, size)
    with watched(model, optimizer, folder, every, example) as tracker:
        train(model, optimizer, steps, size)
    assert tracker.folder is not None
    return read_run(tracker.folder), reference


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, size: int = 12, classes: int = 5) -> None:
    for _ in range(steps):
        images, labels = torch.randn(16, 3, size, size), torch.randint(0, classes, (16,))
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def columns(run: Run) -> dict[str, np.ndarray]:
    names = [weight.name for weight in run.info.weights]
    return {name: run.values["orthogonality_residual"][:, column] for column, name in enumerate(names)}


@pytest.mark.parametrize(("name", "shrink"), [("test_resnet", 0.02), ("starnet_s050", 1.0)])
def test_the_residual_equals_float64_with_the_variance_of_each_batch(name: str, shrink: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run, reference = tracked(create_model(name, num_classes=5), tmp_path, 48, 8, shrink=shrink)
    found = columns(run)
    assert len(reference.residuals) >= 7
    # The reference uses the biased variance, smdtrack the unbiased one: they differ by 1 / (16 x 3 x 3) at most.
    plain = max(max(values) for values in reference.cosines.values())
    assert plain > 2e-3
    for weight, values in reference.residuals.items():
        assert max(values) < 1e-5
        np.testing.assert_allclose(found[weight], values, atol=1e-2 * plain, err_msg=weight)
    assert max(found[weight].max() for weight in reference.residuals) < 1e-2 * plain


def test_the_residual_is_right_when_every_fifth_step_is_sampled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run, reference = tracked(create_model("test_resnet", num_classes=5), tmp_path, 48, 30, every=5)
    plain = max(max(values) for values in reference.cosines.values())
    assert run.steps.tolist() == [5, 10, 15, 20, 25, 30]
    for weight, found in columns(run).items():
        np.testing.assert_allclose(found, reference.residuals[weight][4::5], atol=1e-2 * plain, err_msg=weight)


def small(momentum: float | None = 0.1, eps: float = 0.05) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, eps=eps, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12, eps=eps, momentum=momentum),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def watched(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, every: int = 1, example: Any = None
) -> smdtrack.Tracker:
    return smdtrack.watch(model, optimizer, every=every, sinks=["local"], folder=folder, example_input=example)


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_the_residual_is_right_for_each_momentum_of_batch_norm(momentum: float | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small(momentum)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    reference = Reference(model, {"0.weight": "1", "3.weight": "4"}, optimizer)
    with watched(model, optimizer, tmp_path) as tracker:
        train(model, optimizer, 6)
    # The reference uses the biased variance, smdtrack the unbiased one: they differ by 1 / (16 x 25) at most.
    for weight, found in columns(read_run(tracker.folder)).items():
        assert min(reference.cosines[weight]) > 3e-4
        np.testing.assert_allclose(found, reference.residuals[weight], atol=4e-3 * max(reference.cosines[weight]))


def test_under_gradient_accumulation_most_of_the_eps_part_is_subtracted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    reference = Reference(model, {"0.weight": "1", "3.weight": "4"}, optimizer)
    with watched(model, optimizer, tmp_path) as tracker:
        for _ in range(6):
            for _ in range(3):
                F.cross_entropy(model(torch.randn(16, 3, 12, 12)), torch.randint(0, 5, (16,))).backward()
            optimizer.step()
            optimizer.zero_grad()
    for weight, found in columns(read_run(tracker.folder)).items():
        assert max(found) < 0.1 * max(reference.cosines[weight])


def test_a_batch_norm_set_to_eval_mode_is_reported_and_its_weights_lose_their_lines(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small(eps=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    with collected_notices() as caught, watched(model, optimizer, tmp_path) as tracker:
        train(model, optimizer, 6)
        model[1].eval()
        train(model, optimizer, 6)
        model[1].train()
        train(model, optimizer, 3)
    assert caught == [
        "no longer scale-invariant: 0: their batch norm is in eval mode, so that their scale counts; no line is drawn "
        "meanwhile"
    ]
    run = read_run(tracker.folder)
    there = np.isfinite(run.values["angle_eq"])
    assert there[:, 0].tolist() == [True] * 6 + [False] * 6 + [True] * 3
    assert there[:, 1].all()
    assert np.isfinite(run.values["angle"]).all()
    share = run.overview["smd/not_invariant"]
    assert np.nan_to_num(share).tolist() == [0.0] * 6 + [0.5] * 6 + [0.0] * 3


def test_a_batch_norm_frozen_with_its_parameters_is_reported_and_the_others_are_still_corrected(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    reference = Reference(model, {"3.weight": "4"}, optimizer)
    with collected_notices() as caught, watched(model, optimizer, tmp_path) as tracker:
        train(model, optimizer, 4)
        model[1].eval().requires_grad_(False)
        train(model, optimizer, 4)
    assert [message.partition(": their batch norm is in eval mode")[0] for message in caught] == [
        "no longer scale-invariant: 0"
    ]
    run = read_run(tracker.folder)
    assert np.isfinite(run.values["angle_eq"][:, 0]).tolist() == [True] * 4 + [False] * 4
    expected, plain = reference.residuals["3.weight"], max(reference.cosines["3.weight"])
    np.testing.assert_allclose(columns(run)["3.weight"], expected, atol=4e-3 * plain)


def test_a_validation_between_backward_and_step_does_not_count_as_eval_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small(eps=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    with watched(model, optimizer, tmp_path) as tracker:
        for _ in range(4):
            model.train()
            F.cross_entropy(model(torch.randn(16, 3, 12, 12)), torch.randint(0, 5, (16,))).backward()
            model.eval()
            model(torch.randn(16, 3, 12, 12))
            optimizer.step()
            optimizer.zero_grad()
    assert np.isfinite(read_run(tracker.folder).values["angle_eq"]).all()


def test_a_weight_that_the_loss_begins_to_penalise_is_reported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small(eps=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)

    def penalised(steps: int) -> None:
        for _ in range(steps):
            loss = F.cross_entropy(model(torch.randn(16, 3, 12, 12)), torch.randint(0, 5, (16,)))
            (loss + 1e-3 * model[3].weight.square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()

    with collected_notices() as caught, watched(model, optimizer, tmp_path) as tracker:
        train(model, optimizer, 15)
        penalised(25)
    assert caught == [
        "no longer scale-invariant: 3: their gradients are no longer orthogonal to them (smd/orthogonality_residual); "
        "the lines are off"
    ]
    share = np.nan_to_num(read_run(tracker.folder).overview["smd/not_invariant"])
    assert share[:19].max() == 0
    assert share[-1] == 0.5


def test_bf16_autocast_is_not_reported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small(eps=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    with watched(model, optimizer, tmp_path) as tracker:
        for _ in range(60):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(torch.randn(16, 3, 12, 12)), torch.randint(0, 5, (16,)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "smd/not_invariant" not in read_run(tracker.folder).overview


def test_the_live_check_does_not_change_the_training(tmp_path: Path) -> None:
    def final(watching: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if watching:
            with watched(model, optimizer, tmp_path, every=2):
                train(model, optimizer, 5)
        else:
            train(model, optimizer, 5)
        return model.state_dict()

    one, other = final(False), final(True)
    assert all(torch.equal(one[key], other[key]) for key in one)
