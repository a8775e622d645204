"""One epoch of training, and one validation."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import torch
from display import Display
from model import model_dtype
from timm import utils
from timm.data import Mixup
from timm.models import model_parameters
from torch import Tensor, nn


def train_one_epoch(
    epoch: int,
    args: argparse.Namespace,
    runner: nn.Module,
    model: nn.Module,
    loader: Any,
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    *,
    autocast: Any,
    scaler: utils.NativeScaler | None,
    ema: utils.ModelEmaV3 | None,
    mixup: Mixup | None,
    device: torch.device,
    display: Display,
) -> dict[str, float]:
    """Trains on all training images once; returns the mean loss.

    Args:
        runner: The model as wrapped for training (compiled, DistributedDataParallel).
        model: The same model without wrappers.
    """
    runner.train()
    batches = len(loader)
    accumulated = args.grad_accum_steps
    last_partial = batches - batches % accumulated  # from this batch on, fewer batches make up the last update
    update = epoch * -(-batches // accumulated)
    clipped = list(model_parameters(model, exclude_head="agc" in args.clip_mode)) if args.clip_grad else None
    loss_sum, images = torch.zeros((), device=device), 0

    optimizer.zero_grad()
    for batch, (inputs, targets) in enumerate(loader):
        if not args.prefetcher:
            inputs, targets = inputs.to(device, model_dtype(args)), targets.to(device)
            if mixup is not None:
                inputs, targets = mixup(inputs, targets)
        if args.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        group = accumulated if batch < last_partial else batches - last_partial
        updates_now = (batch + 1) % accumulated == 0 or batch + 1 == batches

        # Processes exchange gradients only in the batch that ends with an update.
        communication = nullcontext() if updates_now or not args.distributed else runner.no_sync()
        with communication:
            with autocast():
                loss = loss_function(runner(inputs), targets) / group
            if scaler is not None:
                scaler(
                    loss,
                    optimizer,
                    clip_grad=args.clip_grad,
                    clip_mode=args.clip_mode,
                    parameters=clipped,
                    need_update=updates_now,
                )
            else:
                loss.backward()
        if updates_now:
            if scaler is None:
                if clipped is not None:
                    utils.dispatch_clip_grad(clipped, args.clip_grad, mode=args.clip_mode)
                optimizer.step()
            optimizer.zero_grad()
            update += 1
            if ema is not None:
                ema.update(model, step=update)
            if scheduler is not None:
                scheduler.step_update(num_updates=update)

        # The sum stays on the device, because reading it would wait until the batch is computed.
        loss_sum += loss.detach() * group * len(inputs)
        images += len(inputs)
        display.advance()
        if display.is_live and (batch % args.log_interval == 0 or batch + 1 == batches):
            display.show(epoch, loss_sum.item() / images, mean_lr(optimizer))

    if hasattr(optimizer, "sync_lookahead"):
        optimizer.sync_lookahead()
    mean_loss = loss_sum / images
    if args.distributed:
        mean_loss = utils.reduce_tensor(mean_loss, args.world_size)
    return {"loss": mean_loss.item()}


@torch.inference_mode()
def validate(
    args: argparse.Namespace,
    model: nn.Module,
    loader: Any,
    loss_function: nn.Module,
    autocast: Any,
    device: torch.device,
) -> dict[str, float]:
    """Returns the mean loss and the accuracies in percent over the held-out images of all processes."""
    model.eval()
    sums = torch.zeros(4, device=device)  # loss, top-1, top-5, images
    for inputs, targets in loader:
        if not args.prefetcher:
            inputs, targets = inputs.to(device, model_dtype(args)), targets.to(device)
        if args.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with autocast():
            outputs: Tensor = model(inputs)
            loss = loss_function(outputs, targets)
        top1, top5 = utils.accuracy(outputs, targets, topk=(1, 5))
        sums += torch.stack([loss.float(), top1, top5, torch.ones((), device=device)]) * len(inputs)
    if args.distributed:
        torch.distributed.all_reduce(sums)
    loss, top1, top5 = (sums[:3] / sums[3]).tolist()
    return {"loss": loss, "top1": top1, "top5": top5}


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    """Returns the mean learning rate of the parameter groups."""
    return sum(float(group["lr"]) for group in optimizer.param_groups) / len(optimizer.param_groups)
