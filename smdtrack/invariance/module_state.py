"""The state of a model beside its parameters, so that every pass starts from the same one."""

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

_STRUCTURE = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"})
#: Up to this many elements a buffer's content is compared.
_SMALL = 10_000
_CONTAINERS = (list, dict, set, deque)


class ModuleState:
    """Buffers, plain attributes and random generators of a model's modules, as they are at one time.

    Some models count their calls, keep the last activations in a list, or fill a memory of features. `restore` undoes
    all of that, so that the outputs of the next pass depend on the parameters alone.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._generators: list[torch.Generator] = []
        self._numpy_generators: list[tuple[Any, Any]] = []
        self.take()

    def take(self) -> None:
        """Takes the present state as the one to restore."""
        self._generators, self._numpy_generators = [], []
        self._entries: list[tuple[nn.Module, dict[str, tuple[Any, Any, int]], dict[str, tuple[Any, Any, int]]]] = []
        for module in self._model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            buffers = {key: _entry(value) for key, value in module._buffers.items()}
            attributes = {}
            for key, value in module.__dict__.items():
                if not _is_plain(key):
                    continue
                attributes[key] = _entry(value)
                self._note_generator(value)
            self._entries.append((module, buffers, attributes))

    def _note_generator(self, value: Any) -> None:
        if isinstance(value, torch.Generator):
            self._generators.append(value)
        elif hasattr(value, "bit_generator"):
            self._numpy_generators.append((value.bit_generator, value.bit_generator.state))

    def restore(self, seed: int) -> None:
        """Restores the state, and seeds the modules' own random generators."""
        for module, buffers, attributes in self._entries:
            if buffers or module._buffers:
                _restore(module._buffers, buffers)
            _restore(module.__dict__, attributes)
        for generator in self._generators:
            generator.manual_seed(seed)
        for bit_generator, state in self._numpy_generators:
            bit_generator.state = state

    def buffers(self) -> list[Tensor]:
        """Returns the buffers, each once."""
        found = {id(buffer): buffer for buffer in self._model.buffers()}
        return list(found.values())


def _entry(value: Any) -> tuple[Any, Any, int]:
    """Returns an attribute's value, a copy of its content if it may change in place, and a tensor's version."""
    if isinstance(value, Tensor):
        if value.is_meta or value.is_inference():
            return value, None, -1
        return value, value.detach().clone(), value._version
    if isinstance(value, _CONTAINERS):
        return value, value.copy(), 0
    return value, None, 0


def _restore(attributes: dict[str, Any], entries: dict[str, tuple[Any, Any, int]]) -> None:
    for key, (value, content, version) in entries.items():
        if attributes.get(key, _entry) is not value:
            attributes[key] = value
        if content is None:
            continue
        if isinstance(value, Tensor):
            # Some C++ functions, as those of fake quantisation, write without counting the version up.
            written = value._version != version or value.requires_grad
            if written or (value.numel() <= _SMALL and not torch.equal(value, content)):
                with torch.no_grad():
                    if value.shape != content.shape:
                        value.detach_().resize_(content.shape)
                    value.detach_().copy_(content)
                entries[key] = (value, content, value._version)
        elif isinstance(value, (list, deque)):
            if len(value) != len(content) or any(a is not b for a, b in zip(value, content, strict=True)):
                value.clear()
                value.extend(content)
        elif value.keys() != content.keys() if isinstance(value, dict) else value != content:
            value.clear()
            value.update(content)
        elif isinstance(value, dict) and any(value[name] is not content[name] for name in content):
            value.update(content)
    for key in [key for key in attributes if key not in entries and _is_plain(key)]:
        del attributes[key]


def _is_plain(key: str) -> bool:
    """Whether an attribute is neither a part of the module's structure nor a table of hooks."""
    return not (key in _STRUCTURE or key.endswith("_hooks") or "_hooks_" in key)
