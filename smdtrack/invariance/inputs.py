"""Inputs for the audit when the caller gives none, or only a size."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from smdtrack.invariance.input_template import BATCH, InputTemplate, Sampling
from smdtrack.notices import SmdtrackError

#: Heights and widths in pixels that are tried after those that the model's configuration names.
_SIZES = (96, 64, 32, 28, 128, 160, 192, 224, 240, 256, 288, 299, 320, 336, 384, 448, 512)


def template_of_size(size: Sequence[int], *, found: bool = False) -> InputTemplate:
    """Returns the template of one random tensor; `size` is its shape without the batch dimension.

    Raises:
        SmdtrackError: The size is not a sequence of positive integers.
    """
    shape = tuple(size)
    if not shape or not all(isinstance(extent, int) and extent > 0 for extent in shape):
        raise SmdtrackError(f"input_size {size!r} is not a sequence of positive integers such as (3, 96, 96)")
    return InputTemplate((torch.empty((BATCH, *shape), device="meta"),), {}, shape, Sampling.RANDOM, found=found)


def _pretrained_config(model: nn.Module) -> Mapping[str, Any]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if config is not None and not isinstance(config, Mapping):
        config = getattr(config, "__dict__", {})
    return config or {}


def _channel_choices(model: nn.Module, configured: int | None) -> list[int]:
    """Returns input channels to try: of timm's `first_conv`, of the first convolution, of the configuration, 3, 1."""
    names = _pretrained_config(model).get("first_conv") or ()
    modules = dict(model.named_modules())
    names = (names,) if isinstance(names, str) else tuple(names)
    choices = [getattr(modules.get(name), "in_channels", None) for name in names]
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None:
        choices.append(first.in_channels)
    choices += [getattr(model, "in_chans", None), configured, 3, 1]
    order: list[int] = []
    for choice in choices:
        if isinstance(choice, int) and choice not in order:
            order.append(choice)
    return order


def _size_choices(model: nn.Module) -> list[tuple[int, int]]:
    """Returns heights and widths to try, the most likely first."""
    config = _pretrained_config(model)
    own = config.get("input_size")
    choices: list[tuple[int, int]] = []
    for module in (model, getattr(model, "patch_embed", None)):
        fixed = getattr(module, "img_size", None)
        if isinstance(fixed, int):
            choices.append((fixed, fixed))
        elif isinstance(fixed, (tuple, list)) and len(fixed) == 2:
            choices.append((int(fixed[0]), int(fixed[1])))
    if own and config.get("fixed_input_size"):
        choices.append((own[1], own[2]))
    reductions = [
        stage.get("reduction", 0) for stage in getattr(model, "feature_info", None) or () if isinstance(stage, Mapping)
    ]
    if reductions and max(reductions) > 32:
        choices.append((3 * max(reductions), 3 * max(reductions)))
    choices += [(96, 96)]
    if own:
        choices.append((own[1], own[2]))
    choices += [(size, size) for size in _SIZES]
    return list(dict.fromkeys(choices))


def candidate_templates(model: nn.Module) -> Iterator[InputTemplate]:
    """Yields inputs that the model may take, for a caller who named none."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    first = next((module for module in model.modules() if isinstance(module, kinds)), None)
    if isinstance(first, nn.Linear) and not _pretrained_config(model):
        yield template_of_size((first.in_features,), found=True)
        yield template_of_size((9, first.in_features), found=True)
    if isinstance(first, (nn.Conv1d, nn.Conv3d)):
        spatial = 1 if isinstance(first, nn.Conv1d) else 3
        for length in (32, 16, 64, 96):
            yield template_of_size((first.in_channels, *(length,) * spatial), found=True)
    if _pretrained_config(model) or isinstance(first, nn.Conv2d):
        own = _pretrained_config(model).get("input_size")
        for index, channels in enumerate(_channel_choices(model, own[0] if own else None)):
            for size in _size_choices(model) if index == 0 else _size_choices(model)[:4]:
                yield template_of_size((channels, *size), found=True)


def larger(template: InputTemplate) -> InputTemplate | None:
    """Returns an image template of twice the size, or None if the size was given, is too large or is no image."""
    if (
        not template.found
        or template.input_size is None
        or len(template.input_size) != 3
        or template.input_size[1] > 256
    ):
        return None
    channels, height, width = template.input_size
    return template_of_size((channels, 2 * height, 2 * width), found=True)
