"""Builds timm models by name, loads checkpoints, and checks that the audit fits into memory."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError, first_line

#: Peak memory of an audit in bytes per parameter, beside the model itself (measured on resnet50 and mobilenetv3).
BYTES_PER_PARAMETER = 40
_STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def model_names(patterns: Sequence[str]) -> list[str]:
    """Expands names and wildcards to timm's model names, in the order given, each once.

    Raises:
        SmdtrackError: A name or a wildcard matches no model; the message lists similar names.
    """
    import timm

    found: list[str] = []
    for pattern in patterns:
        if any(sign in pattern for sign in "*?["):
            names = timm.list_models(pattern)
            if not names:
                raise SmdtrackError(f"no timm model matches {pattern!r}; timm.list_models() has all names")
            found += names
        elif timm.is_model(pattern):
            found.append(pattern)
        else:
            hint = did_you_mean(pattern, timm.list_models()) or "timm.list_models() has all names"
            raise SmdtrackError(f"no timm model is called {pattern!r}; {hint}")
    return list(dict.fromkeys(found))


def create(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    input_size: Sequence[int] | None = None,
) -> nn.Module:
    """Builds a timm model. The input size sets its channels and its image size, if the architecture has a fixed one.

    Raises:
        SmdtrackError: The model cannot be built with these options, or its weights cannot be loaded.
    """
    import timm

    settings: dict[str, Any] = {}
    if num_classes is not None:
        settings["num_classes"] = num_classes
    if input_size is not None and input_size[0] != 3:
        settings["in_chans"] = input_size[0]
    refusal: Exception = SmdtrackError()
    sizes: list[dict[str, Any]] = [{}]
    if input_size is not None and len(input_size) == 3 and _has_fixed_size(name):
        sizes = [{"img_size": (input_size[1], input_size[2])}, {}]
    for size in sizes:
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **settings, **size)
            break
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            refusal = error
    else:
        what = "with pretrained weights" if pretrained else "with these options"
        raise SmdtrackError(f"{name} cannot be built {what}: {first_line(refusal)}") from refusal
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, name)
    return model


def _has_fixed_size(name: str) -> bool:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads a safetensors file, or with `weights_only` a state dict, alone or inside a training checkpoint.

    Raises:
        SmdtrackError: The file is missing or is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise SmdtrackError(f"no checkpoint file at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with _harmless_classes():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SmdtrackError(
            f"{path} is not a checkpoint: neither safetensors (*.safetensors) nor a state dict that "
            f"torch.load(weights_only=True) reads ({type(error).__name__})"
        ) from error
    for key in _STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise SmdtrackError(f"{path} is not a checkpoint: it holds no mapping of names to tensors")
    state = {str(key): value for key, value in content.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


@contextmanager
def _harmless_classes() -> Iterator[None]:
    """Lets `torch.load(weights_only=True)` read the settings that timm's training script stores in its checkpoints.

    An `argparse.Namespace` only holds attributes: to build one runs no code of the file.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def load_checkpoint(model: nn.Module, path: str | Path, name: str) -> None:
    """Loads a checkpoint into a model; every key and shape must match.

    Raises:
        SmdtrackError: Names the keys that are missing, unknown, or of another shape.
    """
    state = read_checkpoint(path)
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    complaints = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
        if keys
    ]
    if complaints:
        raise SmdtrackError(f"{path} does not fit {name}: keys {'; '.join(complaints)}")
    model.load_state_dict(state)


def available_memory(device: torch.device) -> int:
    """Returns the bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_memory(name: str, device: torch.device) -> None:
    """Refuses a model that is too large before it is built.

    Raises:
        SmdtrackError: Not enough memory is free.
    """
    import timm

    try:
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    except Exception:
        return
    free = available_memory(device)
    needed = BYTES_PER_PARAMETER * parameters
    if needed > free:
        raise SmdtrackError(
            f"{name}: out of memory: its {parameters / 1e6:.0f} million parameters need {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free on {device}"
        )


def checked_device(device: str) -> torch.device:
    """Parses a device name.

    Raises:
        SmdtrackError: The device does not exist, or has no float64.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SmdtrackError(f"device {device!r} cannot be used: {first_line(error)}; cpu always can") from error
    if place.type == "meta" or "float64" not in _dtypes(place):
        raise SmdtrackError(f"device {device!r} has no float64, which the audit needs; cpu always has")
    return place


def _dtypes(place: torch.device) -> Sequence[str]:
    try:
        torch.empty(1, device=place, dtype=torch.float64)
    except (RuntimeError, TypeError):
        return ()
    return ("float64",)
