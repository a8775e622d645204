"""Canonical parameter names and the globs that select among them."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

# Parts that torch.compile, FSDP1 and activation checkpointing add to a parameter's dotted name.
_WRAPPER_PARTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# DDP's and DataParallel's part. `module` is also an ordinary attribute name, so it is removed only at the front.
_WRAPPER_PREFIXES = ("module.",)


def canonical_name(name: str) -> str:
    """Returns the dotted name without the parts that wrappers add.

    Example:
        >>> canonical_name("_orig_mod.module.layer1.0.conv1.weight")
        'layer1.0.conv1.weight'
    """
    name = ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)
    for prefix in _WRAPPER_PREFIXES:
        while name.startswith(prefix):
            name = name[len(prefix) :]
    return name


def selected(name: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> bool:
    """Returns whether a weight is selected: an `include` matches, or none is given, and no `exclude` matches.

    A glob matches the whole dotted name (`layer1.*`, `*.conv2.weight`); case counts.
    """
    if include and not any(fnmatchcase(name, glob) for glob in include):
        return False
    return not any(fnmatchcase(name, glob) for glob in exclude)


def unmatched_globs(globs: Iterable[str], names: Sequence[str]) -> list[str]:
    """Returns the globs that match none of the names."""
    return [glob for glob in globs if not any(fnmatchcase(name, glob) for name in names)]


def short_weight_name(name: str) -> str:
    """Returns the layer's name, which metric keys use: the parameter's name without a closing `.weight`."""
    return name[: -len(".weight")] if name.endswith(".weight") else name


def stage_of(name: str) -> str:
    """Returns the stage of a network that a weight belongs to, from the weight's dotted name.

    Example:
        >>> [stage_of(name) for name in ("layer1.0.conv1", "stages.2.blocks.0.conv", "stem.0", "fc")]
        ['layer1', 'stages.2', 'stem', 'fc']
    """
    first, *rest = name.split(".")
    if len(rest) > 1 and rest[0].isdigit() and not first[-1:].isdigit():
        return f"{first}.{rest[0]}"
    return first


def did_you_mean(word: str, choices: Iterable[str], most: int = 3) -> str:
    """Returns `did you mean a, b?` with the choices nearest to a mistyped word, or an empty string if none is near.

    Example:
        >>> did_you_mean("adamv", ["adamw", "sgd"])
        'did you mean adamw?'
        >>> did_you_mean("zzz", ["adamw", "sgd"])
        ''
    """
    near = difflib.get_close_matches(word, list(choices), most)
    return f"did you mean {', '.join(near)}?" if near else ""
