"""What eps leaves of radial derivatives, against float64 and the batch variance measured in a real network."""

import pytest
import timm
import torch

from smdtrack.invariance import audit
from smdtrack.invariance.eps_residual import batch_variance, eps_radial_derivative


@pytest.fixture(scope="module")
def trained():
    """One backward pass of a real network whose variances have been brought down to the order of eps."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.mul_(0.02)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    norms = {weight.name: weight.norm for weight in audit(model, input_size=(3, 48, 48)).weights if weight.norm}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batches = {}

    def watch(name):
        def hook(module, args):
            x = args[0].detach().double()
            batches[name] = (x.var((0, 2, 3), unbiased=False), x.numel() // x.shape[1])

        return hook

    for name in set(norms.values()):
        model.get_submodule(name).register_forward_pre_hook(watch(name))
    model.train()
    torch.nn.functional.cross_entropy(model(torch.randn(8, 3, 48, 48)), torch.arange(8)).backward()
    return model, norms, before, batches


def residual(weight, radial, by_eps, dim=0):
    """By channel, relative to the largest filter's `||w_c|| ||g_c||`."""
    others = [d for d in range(weight.dim()) if d != dim]
    weight_norms, grad_norms = (torch.linalg.vector_norm(x.double(), dim=others) for x in (weight, weight.grad))
    return (radial - by_eps).abs() / (weight_norms * grad_norms).max()


def largest(trained, variance_of):
    model, norms, _, _ = trained
    parameters = dict(model.named_parameters())
    values = []
    for name, norm in norms.items():
        bn, weight = model.get_submodule(norm), parameters[name]
        radial = (weight.detach().double() * weight.grad.double()).sum((1, 2, 3))
        by_eps = eps_radial_derivative(bn.weight.detach(), bn.weight.grad, variance_of(norm, bn), bn.eps)
        assert by_eps.shape == (weight.shape[0],)
        values.append(float(residual(weight, radial, by_eps).detach().max()))
    assert len(values) == 15
    return max(values)


def test_the_residual_is_float32_rounding_with_the_batch_variance_and_not_without_correction(trained):
    batches = trained[3]
    uncorrected = largest(trained, lambda norm, bn: torch.full_like(bn.running_var, 1e9))
    corrected = largest(trained, lambda norm, bn: batches[norm][0])
    assert uncorrected > 1e-2
    assert corrected < 1e-5


def test_the_batch_variance_is_recovered_from_the_running_variance(trained):
    _, _, before, batches = trained

    def recovered(norm, bn):
        variance, count = batches[norm]
        found = batch_variance(before[f"{norm}.running_var"], bn.running_var, 1 - bn.momentum, count)
        # running_var is near 1 in float32, the variance near eps: rounding of 1e-7 is what is left.
        torch.testing.assert_close(found, variance, rtol=1e-3, atol=3e-6)
        return found

    for norm in batches:
        recovered(norm, trained[0].get_submodule(norm))


def test_the_initial_running_variance_does_not_correct(trained):
    assert largest(trained, lambda norm, bn: bn.running_var) > 1e-3


@pytest.mark.parametrize("transposed", [False, True])
def test_the_identity_holds_in_float64(transposed):
    torch.manual_seed(0)
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    conv, bn = kind(3, 5, 3).double(), torch.nn.BatchNorm2d(5, eps=0.1).double()
    bn.weight.data.normal_()
    x = conv(torch.randn(4, 3, 6, 6, dtype=torch.float64))
    bn(x).sin().sum().backward()
    variance = x.detach().var((0, 2, 3), unbiased=False)
    dim = int(transposed)
    product = conv.weight * conv.weight.grad
    radial = product.sum([d for d in range(4) if d != dim])
    expected = eps_radial_derivative(bn.weight, bn.weight.grad, variance, bn.eps)
    torch.testing.assert_close(radial, expected, rtol=1e-10, atol=1e-12)
    assert float(residual(conv.weight, radial, expected, dim).detach().max()) < 1e-12
    assert float(residual(conv.weight, radial, 0 * expected, dim).detach().max()) > 1e-4


def test_after_several_forward_passes_it_is_their_weighted_mean():
    torch.manual_seed(0)
    bn = torch.nn.BatchNorm2d(5, momentum=0.2).double()
    before, variances = bn.running_var.clone(), []
    for _ in range(3):
        x = torch.randn(4, 5, 3, 3, dtype=torch.float64)
        bn(x)
        variances.append(x.var((0, 2, 3), unbiased=False))
    weights = torch.tensor([0.64, 0.8, 1.0], dtype=torch.float64)
    expected = (weights[:, None] * torch.stack(variances)).sum(0) / weights.sum()
    torch.testing.assert_close(batch_variance(before, bn.running_var, 0.8**3, 36), expected)


def test_without_a_forward_pass_the_variance_is_not_known():
    assert batch_variance(torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.float64)).isnan().all()
