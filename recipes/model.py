"""The model of train.py."""

from __future__ import annotations

import argparse
from copy import deepcopy

import torch
from errors import reason, stop
from timm.layers import convert_sync_batchnorm
from timm.models import create_model, load_checkpoint
from torch import nn


def make_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Returns the model on its device; sets `args.num_classes` to the number of its outputs."""
    try:
        model: nn.Module = create_model(
            args.model,
            pretrained=args.pretrained,
            in_chans=args.input_size[0] if args.input_size else args.in_chans or 3,
            num_classes=args.num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            global_pool=args.gp,
            **args.model_kwargs,
        )
    except Exception as error:
        stop(f"cannot make the model {args.model!r} ({reason(error)})")
    if args.initial_checkpoint:
        torch.serialization.add_safe_globals([argparse.Namespace])  # timm's checkpoints hold their options
        try:
            load_checkpoint(model, args.initial_checkpoint, weights_only=True)
        except Exception as error:
            stop(f"--initial-checkpoint {args.initial_checkpoint!r} does not fit {args.model} ({reason(error)})")
    args.num_classes = args.num_classes or model.num_classes
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)
        except Exception as error:
            stop(f"--grad-checkpointing: {args.model} cannot do it ({reason(error)})")
    model.to(device=device, dtype=model_dtype(args))
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        args.dist_bn = ""
        model = convert_sync_batchnorm(model)
    return model


def model_dtype(args: argparse.Namespace) -> torch.dtype:
    """Returns the type of the weights."""
    return torch.bfloat16 if args.model_dtype == "bfloat16" else torch.float32


def check_input_size(model: nn.Module, input_size: tuple[int, ...]) -> None:
    """Stops with one line if the model cannot take images of this size.

    The images are tried on a copy in eval mode, so that no statistic and no random number of the training changes.
    """
    copy = deepcopy(model).eval()
    parameter = next(copy.parameters())
    images = torch.zeros(2, *input_size, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.inference_mode(), torch.random.fork_rng():
            copy(images)
    except Exception as error:
        size = "x".join(map(str, input_size))
        stop(f"the model cannot take images of size {size}: see --img-size and --model-kwargs ({reason(error)})")
