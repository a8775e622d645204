"""Where train.py writes, and how it continues from a checkpoint."""

from __future__ import annotations

import argparse
import itertools
from datetime import datetime
from pathlib import Path

import torch
from errors import stop
from timm import utils
from timm.models import safe_model_name
from torch import nn


def make_output_folder(args: argparse.Namespace, size: int) -> Path:
    """Makes and returns the folder of the run, `--output`/`--experiment`.

    With `--experiment` the folder may exist already. Without it the folder is new, even if two runs start at once.
    """
    parent = Path(args.output or "output/train")
    name = args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}-{size}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if args.experiment:
            (parent / name).mkdir(exist_ok=True)
            return parent / name
        candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(parent / candidate for candidate in candidates if made_now(parent / candidate))
    except OSError as error:
        stop(f"cannot write to the output folder {str(parent / name)!r}: {error.strerror}")


def made_now(folder: Path) -> bool:
    """Makes the folder; returns False if it existed before."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def resume(
    args: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: utils.NativeScaler | None,
    ema: utils.ModelEmaV3 | None,
) -> int:
    """Loads a checkpoint of this script or of timm's train.py; returns the epoch to continue with."""
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        model.load_state_dict(checkpoint["state_dict"])
        if ema is not None:
            ema.module.load_state_dict(checkpoint.get("state_dict_ema", checkpoint["state_dict"]))
        if not args.no_resume_opt:
            optimizer.load_state_dict(checkpoint["optimizer"])
            if scaler is not None and scaler.state_dict_key in checkpoint:
                scaler.load_state_dict(checkpoint[scaler.state_dict_key])
        return int(checkpoint["epoch"]) + 1
    except Exception as error:
        stop(f"cannot resume from {args.resume!r}: {' '.join(str(error).split())[:300]}")
