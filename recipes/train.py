"""Train an image classifier with timm: a small script to read, run and start from.

    python recipes/train.py --config recipes/digits_momentum.yaml
    torchrun --nproc-per-node 4 recipes/train.py --data-dir /data/imagenet --model resnet50 --amp

The options and the keys of the YAML are those of timm's own train.py; options.py has the ones that exist here. Without
--data-dir and --dataset the script trains on scikit-learn's handwritten digits. It writes args.yaml (which --config
accepts), summary.csv and the checkpoints to the output folder. On the CPU a run with the same seed ends with the same
bits, even if it is interrupted and resumed.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from checkpoints import make_output_folder, resume
from config import parse
from data import make_loaders
from digits import digits_folder
from display import Display
from epochs import mean_lr, train_one_epoch, validate
from errors import reason, stop
from model import check_input_size, make_model
from timm import utils
from timm.data import Mixup, resolve_data_config
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> int:
    """Trains as the command line says; returns the exit code."""
    args, args_yaml = parse()
    device = set_up_device(args)
    primary = utils.is_primary(args)
    utils.random_seed(args.seed, args.rank)

    digits = not args.data_dir and not args.dataset
    if digits:
        args.data_dir = str(digits_folder())
        args.num_classes = args.num_classes or 10

    model = make_model(args, device)
    data_config = resolve_data_config(vars(args), model=model)
    check_input_size(model, data_config["input_size"])
    train_loader, held_out_loader, mixup = make_loaders(args, data_config, device)
    if len(train_loader) == 0:
        stop(f"--batch-size {args.batch_size} is larger than the number of training images of one process")
    train_loss, held_out_loss = make_loss(args, mixup).to(device), nn.CrossEntropyLoss().to(device)

    updates_per_epoch = -(-len(train_loader) // args.grad_accum_steps)
    args.lr = scaled_lr(args) if args.lr is None else args.lr
    optimizer = make_optimizer(args, model)
    autocast, scaler = make_amp(args, device)
    ema = None
    if args.model_ema:
        ema = utils.ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)

    first_epoch = resume(args, model, optimizer, scaler, ema) if args.resume else 0
    first_epoch = first_epoch if args.start_epoch is None else args.start_epoch
    decreasing = args.eval_metric == "loss"
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        **scheduler_kwargs(args, decreasing_metric=decreasing),
        updates_per_epoch=updates_per_epoch,
    )
    if scheduler is not None and first_epoch > 0:
        if args.sched_on_updates:
            scheduler.step_update(first_epoch * updates_per_epoch)
        else:
            scheduler.step(first_epoch)

    # The optimizer, the checkpoints and the moving average hold the model without wrappers; a wrapper shares its
    # parameters.
    runner: nn.Module = model
    if args.torchcompile:
        runner = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    validated: nn.Module = ema.module if ema is not None else runner
    if args.distributed:
        runner = DistributedDataParallel(
            runner,
            device_ids=None if device.type == "cpu" else [device],
            **({"broadcast_buffers": False} if args.no_ddp_bb else {}),
        )

    output = saver = None
    if primary:
        output = make_output_folder(args, data_config["input_size"][-1])
        (output / "args.yaml").write_text(args_yaml)
        saver = utils.CheckpointSaver(
            model=model,
            optimizer=optimizer,
            args=args,
            model_ema=ema,
            amp_scaler=scaler,
            checkpoint_dir=str(output),
            recovery_dir=str(output),
            decreasing=decreasing,
            max_history=args.checkpoint_hist,
        )
        if args.log_wandb:
            start_wandb(args)
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(f"{args.model}, {weights:,} parameters, {args.opt} on {device}; output: {output}", flush=True)

    epoch = first_epoch
    best: tuple[float | None, int | None] = (None, None)
    display = Display(epochs, len(train_loader), first_epoch, enabled=primary)
    try:
        with display:
            for epoch in range(first_epoch, epochs):
                # Each epoch has its own seed, so that a resumed run draws the same random numbers as an unbroken one.
                utils.random_seed(args.seed + (epoch + 1) * args.world_size, args.rank)
                if hasattr(train_loader.sampler, "set_epoch"):
                    train_loader.sampler.set_epoch(epoch)
                if mixup is not None and args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
                    mixup.mixup_enabled = False

                train_metrics = train_one_epoch(
                    epoch,
                    args,
                    runner,
                    model,
                    train_loader,
                    train_loss,
                    optimizer,
                    scheduler,
                    autocast=autocast,
                    scaler=scaler,
                    ema=ema,
                    mixup=mixup if isinstance(mixup, Mixup) else None,
                    device=device,
                    display=display,
                )
                if args.distributed and args.dist_bn:
                    utils.distribute_bn(model, args.world_size, args.dist_bn == "reduce")
                    if ema is not None:
                        utils.distribute_bn(ema.module, args.world_size, args.dist_bn == "reduce")

                held_out = None
                lr = mean_lr(optimizer)
                if (epoch + 1) % args.val_interval == 0 or epoch + 1 == epochs:
                    held_out = validate(args, validated, held_out_loader, held_out_loss, autocast, device)
                    if output is not None and saver is not None:
                        summary = output / "summary.csv"
                        utils.update_summary(
                            epoch,
                            train_metrics,
                            held_out,
                            str(summary),
                            lr=lr,
                            write_header=not summary.exists(),
                            log_wandb=args.log_wandb,
                        )
                        best = saver.save_checkpoint(epoch, metric=held_out[args.eval_metric])
                display.end_epoch(epoch, train_metrics, held_out, lr)
                if scheduler is not None:
                    scheduler.step(epoch + 1, held_out and held_out[args.eval_metric])
    except KeyboardInterrupt:
        if output is not None:
            last = output / "last.pth.tar"
            hint = f"continue with --resume {last}" if last.exists() else "no epoch was complete, nothing is saved"
            print(f"interrupted in epoch {epoch + 1}; {hint}", file=sys.stderr)
        return 130
    finally:
        if args.distributed:
            torch.distributed.destroy_process_group()

    if primary and best[0] is not None:
        print(f"best {args.eval_metric} {best[0]:.2f} in epoch {(best[1] or 0) + 1}; output: {output}")
    return 0


def set_up_device(args: argparse.Namespace) -> torch.device:
    """Returns the device of this process; under torchrun joins the process group (nccl on CUDA, gloo on the CPU)."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        stop(f"--device {args.device}: CUDA is not available here")
    try:
        torch.zeros(1, device=args.device)
    except Exception as error:
        stop(f"--device {args.device!r} cannot be used ({reason(error)})")
    device = utils.init_distributed_device(args)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    elif "OMP_NUM_THREADS" not in os.environ:
        # Leave a core to each loader process. OpenMP's threads spin while they wait, so one thread too many on a
        # busy machine makes training ten times slower.
        torch.set_num_threads(max(1, torch.get_num_threads() - args.workers))
    args.prefetcher = device.type != "cpu" and not args.no_prefetcher
    return device


def make_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Returns timm's optimizer of this name."""
    try:
        return create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except Exception as error:
        stop(f"cannot make the optimizer {args.opt!r} with these settings ({reason(error)})")


def start_wandb(args: argparse.Namespace) -> None:
    """Starts a W&B run, as timm's train.py does."""
    try:
        import wandb

        wandb.init(
            project=args.wandb_project,
            name=args.experiment or None,
            config=vars(args),
            tags=args.wandb_tags,
            id=args.wandb_resume_id or None,
            resume="must" if args.wandb_resume_id else None,
        )
    except Exception as error:
        stop(f"--log-wandb: cannot start a run ({reason(error)})")


def make_loss(args: argparse.Namespace, mixup: Mixup | None) -> nn.Module:
    """Returns the training loss that the options ask for."""
    if args.bce_loss:
        # Mixup smooths the targets itself.
        smoothing = 0.0 if mixup is not None else args.smoothing
        return BinaryCrossEntropy(smoothing, target_threshold=args.bce_target_thresh, sum_classes=args.bce_sum)
    if mixup is not None:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def scaled_lr(args: argparse.Namespace) -> float:
    """Returns the learning rate by timm's rule.

    That is --lr-base times the ratio of the global batch size to --lr-base-size, or times the square root of that ratio
    for Adam-like optimizers.
    """
    ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
    scale = args.lr_base_scale or ("sqrt" if any(name in args.opt.lower() for name in ("ada", "lamb")) else "linear")
    return args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)


def make_amp(args: argparse.Namespace, device: torch.device) -> tuple[Any, utils.NativeScaler | None]:
    """Returns a function that makes autocast contexts, and the loss scaler, which only float16 on CUDA needs."""
    if not args.amp:
        return nullcontext, None
    scaler = utils.NativeScaler() if device.type == "cuda" and args.amp_dtype == "float16" else None
    return partial(torch.autocast, device.type, dtype=getattr(torch, args.amp_dtype)), scaler


if __name__ == "__main__":
    sys.exit(main())
