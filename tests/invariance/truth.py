"""The functional truth, made independently of the audit: rescale one tensor, compare the outputs.

Shares no code with `smdtrack.invariance`. One tensor at a time, in float64, at a generic point, with every eps removed
and train-mode batch norm. As a script: `python -m tests.invariance.truth MODEL [SIZE]`.
"""

import contextlib
import copy
import sys
from unittest import mock

import torch
from torch import nn

BATCH = 4
FELT = 1e-10


def _flat(output):
    if isinstance(output, torch.Tensor):
        return [output.double().flatten()] if output.is_floating_point() else []
    values = output.values() if isinstance(output, dict) else output
    return [part for value in values for part in _flat(value)]


@contextlib.contextmanager
def _no_way_down_from_double():
    """Casts to float32 within a model would hide changes below 1e-7; here they lead to float64."""
    to = torch.Tensor.to

    def to_double(tensor, *args, **kwargs):
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        kwargs = {key: torch.float64 if arg is torch.float32 else arg for key, arg in kwargs.items()}
        return to(tensor, *args, **kwargs)

    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(torch.Tensor, "to", to_double),
    ):
        yield


def _generic(model, generator):
    """Noise on whatever is not drawn at random by the initialisation, in place."""
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        special = parameter.dim() < 2 or parameter.numel() == max(parameter.shape) or float(flat.std()) == 0
        if special:
            noise = torch.randn(flat.shape, generator=generator, dtype=torch.float64)
            scale = 0.25 if parameter.dim() < 2 or parameter.numel() == max(parameter.shape) else 0.05
            flat.mul_(1 + 0.2 * torch.rand(flat.shape, generator=generator, dtype=torch.float64)).add_(scale * noise)


def functional_truth(
    model: nn.Module, input_shape, *, seed: int = 1234, only=None, well_posed: bool = False
) -> dict[str, str]:
    """Returns each parameter's verdict by its definition: `invariant`, `degenerate`, `unused` or `sensitive`.

    Args:
        only: Names of the parameters to judge; all by default.
        well_posed: Return nothing if rounding errors of the input change the outputs by more than 1e-11. Without eps,
            a normalised channel that is constant but for rounding errors becomes noise.
    """
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for key in ("eps", "epsilon"):
            if type(getattr(module, key, None)) is float:
                setattr(module, key, 1e-22)
    _generic(model, generator)
    batch = torch.randn((BATCH, *input_shape), generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(), torch.no_grad(), _no_way_down_from_double():
        model(batch)  # some buffers (relative positions) are only made in the first forward
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def outputs():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        torch.manual_seed(seed)
        return torch.cat(_flat(model(batch)))

    verdicts = {}
    with torch.random.fork_rng(), torch.no_grad(), _no_way_down_from_double():
        base = outputs()
        scale = base.abs().max()
        if well_posed:
            exact = batch.clone()
            batch.mul_(1 + 1e-13 * torch.randn(batch.shape, generator=generator, dtype=torch.float64))
            noise = float((outputs() - base).abs().max() / scale)
            batch.copy_(exact)
            if not noise < FELT / 10:
                return {}

        def felt(parameter, replacement):
            saved = parameter.data
            parameter.data = replacement
            change = float((outputs() - base).abs().max() / scale)
            parameter.data = saved
            return change > FELT

        for name, parameter in model.named_parameters():
            if only is not None and name not in only:
                continue
            value = parameter.data
            if felt(parameter, 1.9 * value) or felt(parameter, 0.3 * value):
                verdicts[name] = "sensitive"
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            positive = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
            if felt(parameter, value * positive):
                verdicts[name] = "invariant"
            elif felt(parameter, -value) or felt(parameter, noise):
                verdicts[name] = "degenerate"
            else:
                verdicts[name] = "unused"
    return verdicts


if __name__ == "__main__":
    import timm

    network = timm.create_model(sys.argv[1])
    extent = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    for name, verdict in functional_truth(network, (3, extent, extent)).items():
        print(f"{verdict:10} {name}")
