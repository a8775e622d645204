"""The model of train.py."""

from __future__ import annotations

import argparse

import torch
from timm.layers import convert_sync_batchnorm
from timm.models import create_model
from torch import nn


def make_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Returns the model on its device; sets `args.num_classes` to the number of its outputs."""
    model = create_model(
        args.model,
        pretrained=args.pretrained,
        in_chans=args.input_size[0] if args.input_size else args.in_chans or 3,
        num_classes=args.num_classes,
        drop_rate=args.drop,
        drop_path_rate=args.drop_path,
        global_pool=args.gp,
        checkpoint_path=args.initial_checkpoint,
        **args.model_kwargs,
    )
    args.num_classes = args.num_classes or model.num_classes
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
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
