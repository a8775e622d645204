"""Reads the options of train.py from the command line and from the YAML file of `--config`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Any

import timm
import yaml
from errors import near_names, stop
from options import Parser, build_parser
from timm.optim import list_optimizers
from timm_options import NOT_USED


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, str]:
    """Returns the options, and the same options as a YAML text that `--config` accepts.

    An option of the command line wins over the same option in the YAML file.
    """
    parser = build_parser()
    config = parser.parse_args(argv).config
    if config:
        _set_defaults(parser, config)
    args = parser.parse_args(argv)
    del args.config
    _check(args)
    return args, yaml.safe_dump(vars(args))


def _set_defaults(parser: Parser, config: str) -> None:
    """Makes the values of the YAML file the parser's defaults."""
    try:
        with open(config, encoding="utf-8") as file:
            settings = yaml.safe_load(file) or {}
    except OSError as error:
        stop(f"cannot read the config {config!r}: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        stop(f"the config {config!r} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(settings, dict):
        stop(f"the config {config!r} does not map options to values")

    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    ignored = []
    for key, value in settings.items():
        if key in NOT_USED:
            ignored.append(str(key) if value in (None, False, "", []) else f"{key}={value}")
            continue
        if key not in actions:
            stop(f"unknown key {key!r} in {config}{near_names(str(key), actions)}")
        parser.set_defaults(**{key: value if value is None else _converted(parser, actions[key], value)})
    if ignored:
        print(f"train.py: options of timm that are not used here: {', '.join(ignored)}", file=sys.stderr)


def _converted(parser: Parser, action: argparse.Action, value: Any) -> Any:
    """Returns a YAML value converted as the same words on the command line would be."""
    if action.nargs == 0:  # an option without a value, such as --amp
        if not isinstance(value, bool):
            stop(f"{action.dest} in the config must be true or false, not {value!r}")
        return value
    if action.nargs == "?" and isinstance(value, bool):
        return action.const if value else None
    if isinstance(value, dict):
        words = [f"{key}={item}" for key, item in value.items()]
    else:
        words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return getattr(parser.parse_args([action.option_strings[-1], *words]), action.dest)


def _check(args: argparse.Namespace) -> None:
    """Stops with one line if an option cannot work, before anything is loaded."""
    if not timm.is_model(args.model) and ":" not in args.model:  # "hf-hub:" and "local-dir:" are not in the list
        stop(f"unknown model {args.model!r}{near_names(args.model.split('.')[0], timm.list_models())}")
    if args.opt.lower().removeprefix("lookahead_") not in list_optimizers():
        stop(f"unknown optimizer {args.opt!r}{near_names(args.opt.lower(), list_optimizers())}")
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            stop(f"--{name.replace('_', '-')} must be a finite number, not {value}")
    for name in ("batch_size", "grad_accum_steps", "epochs", "val_interval", "checkpoint_hist", "log_interval"):
        if getattr(args, name) < 1:
            stop(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ("resume", "initial_checkpoint"):
        if getattr(args, name) and not os.path.isfile(getattr(args, name)):
            stop(f"--{name.replace('_', '-')}: no such file: {getattr(args, name)!r}")
    if args.data_dir and not args.dataset and not os.path.isdir(args.data_dir):
        stop(f"--data-dir: no such folder: {args.data_dir!r}")
    if args.amp and args.model_dtype == "bfloat16":
        stop("--amp keeps the weights in float32: give --amp or --model-dtype bfloat16, not both")
