"""Train an image classifier with timm: a small script to read, run and start from.

    python recipes/train.py --config recipes/digits_momentum.yaml
    torchrun --nproc-per-node 4 recipes/train.py --data-dir /data/imagenet --model resnet50 --amp

Options and YAML keys are those of timm's train.py (options.py lists the ones that exist here). With neither
--data-dir nor --dataset it trains on scikit-learn's handwritten digits. The output folder receives args.yaml
(which --config takes), summary.csv and the checkpoints. On the CPU the same seed gives the same bits, also when
the run is interrupted and resumed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digits import digits_folder
from display import Display
from options import parse, stop
from timm import utils
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader, resolve_data_config
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model, model_parameters, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def main() -> int:
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
    train_loader, held_out_loader, mixup = make_loaders(args, data_config, device)
    if len(train_loader) == 0:
        stop(f"--batch-size {args.batch_size} is more than the training images of one process")
    train_loss, held_out_loss = make_loss(args, mixup).to(device), nn.CrossEntropyLoss().to(device)

    updates_per_epoch = -(-len(train_loader) // args.grad_accum_steps)
    args.lr = args.lr or scaled_lr(args)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
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

    # The optimizer, the checkpoints and the average hold the bare model; the wrappers share its parameters.
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
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(f"{args.model}, {weights:,} parameters, {args.opt} on {device}; output: {output}", flush=True)

    epoch = first_epoch
    best: tuple[float | None, int | None] = (None, None)
    display = Display(epochs, len(train_loader), first_epoch, enabled=primary)
    try:
        with display:
            for epoch in range(first_epoch, epochs):
                # Each epoch has random numbers of its own, so that a resumed run draws those of an unbroken one.
                utils.random_seed(args.seed + (epoch + 1) * args.world_size, args.rank)
                if hasattr(train_loader.sampler, "set_epoch"):
                    train_loader.sampler.set_epoch(epoch)
                if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
                    turn_off(mixup)

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
                            epoch, train_metrics, held_out, str(summary), lr=lr, write_header=not summary.exists()
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
    """The device of this process; under torchrun joins the group, over nccl on CUDA and gloo on the CPU."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        stop(f"--device {args.device}: CUDA is not available here")
    device = utils.init_distributed_device(args)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    elif "OMP_NUM_THREADS" not in os.environ:
        # A core for each loader process: OpenMP's threads spin while they wait, so that one too many of them on a
        # busy machine makes training ten times slower.
        torch.set_num_threads(max(1, torch.get_num_threads() - args.workers))
    args.prefetcher = device.type != "cpu" and not args.no_prefetcher
    return device


def make_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
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
    return torch.bfloat16 if args.model_dtype == "bfloat16" else torch.float32


def make_loaders(
    args: argparse.Namespace, data_config: dict[str, Any], device: torch.device
) -> tuple[Any, Any, Mixup | None]:
    """The loaders of training and held-out images, and the mixup, which sits in the loader where that prefetches."""
    dataset = partial(
        open_dataset,
        args.dataset,
        root=args.data_dir,
        class_map=args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        seed=args.seed,
        input_img_mode="RGB" if data_config["input_size"][0] == 3 else "L",
    )
    loader = partial(
        create_loader,
        input_size=data_config["input_size"],
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=args.workers,
        # New workers each epoch: their random state then follows from the epoch's seed alone.
        persistent_workers=False,
        distributed=args.distributed,
        pin_memory=args.pin_mem,
        img_dtype=model_dtype(args),
        device=device,
        use_prefetcher=args.prefetcher,
    )

    mixup = None
    if args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None:
        mixup = (FastCollateMixup if args.prefetcher else Mixup)(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            cutmix_minmax=args.cutmix_minmax,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=args.num_classes,
        )
    train_loader = loader(
        dataset(split=args.train_split, is_training=True),
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        interpolation=data_config["interpolation"] if args.no_aug else args.train_interpolation,
        collate_fn=mixup if args.prefetcher else None,
    )
    held_out_loader = loader(
        dataset(split=args.val_split, is_training=False),
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=data_config["interpolation"],
        crop_pct=data_config["crop_pct"],
    )
    return train_loader, held_out_loader, mixup


def open_dataset(name: str, **options: Any) -> Any:
    """timm's data set of this name; one that is not there, or not like that, ends the script in one line."""
    try:
        return create_dataset(name, **options)
    except Exception as error:
        where = f" in {options['root']!r}" if options.get("root") else ": some need --data-dir or --dataset-download"
        stop(f"cannot open the data set {name!r}{where} ({type(error).__name__}: {' '.join(str(error).split())[:200]})")


def turn_off(mixup: Mixup | None) -> None:
    if mixup is not None:
        mixup.mixup_enabled = False


def make_loss(args: argparse.Namespace, mixup: Mixup | None) -> nn.Module:
    if args.bce_loss:
        # Mixup has smoothed its targets already.
        smoothing = 0.0 if mixup is not None else args.smoothing
        return BinaryCrossEntropy(smoothing, target_threshold=args.bce_target_thresh, sum_classes=args.bce_sum)
    if mixup is not None:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def scaled_lr(args: argparse.Namespace) -> float:
    """timm's rule: --lr-base times the global batch size over --lr-base-size, or the root of that for Adam's kin."""
    ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
    scale = args.lr_base_scale or ("sqrt" if any(name in args.opt.lower() for name in ("ada", "lamb")) else "linear")
    return args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)


def make_amp(args: argparse.Namespace, device: torch.device) -> tuple[Any, utils.NativeScaler | None]:
    """A maker of autocast contexts, and the loss scaler that float16 needs (on CUDA) and bfloat16 does not."""
    if not args.amp:
        return nullcontext, None
    scaler = utils.NativeScaler() if device.type == "cuda" and args.amp_dtype == "float16" else None
    return partial(torch.autocast, device.type, dtype=getattr(torch, args.amp_dtype)), scaler


def resume(
    args: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: utils.NativeScaler | None,
    ema: utils.ModelEmaV3 | None,
) -> int:
    """Loads a checkpoint of this script or of timm's, and returns the epoch to go on with."""
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


def make_output_folder(args: argparse.Namespace, size: int) -> Path:
    """--output/--experiment, which may exist; without --experiment a new folder, also if two runs start at once."""
    parent = Path(args.output or "output/train")
    name = args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}-{size}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if args.experiment:
            (parent / name).mkdir(exist_ok=True)
            return parent / name
        candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(parent / candidate for candidate in candidates if is_new(parent / candidate))
    except OSError as error:
        stop(f"cannot write to the output folder {str(parent / name)!r}: {error.strerror}")


def is_new(folder: Path) -> bool:
    """Makes the folder, and says whether this call made it."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    return sum(float(group["lr"]) for group in optimizer.param_groups) / len(optimizer.param_groups)


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
    """One pass over the training images. `runner` is the model as wrapped for training, `model` the bare one."""
    runner.train()
    batches = len(loader)
    accumulated = args.grad_accum_steps
    last_partial = batches - batches % accumulated  # from here on a smaller group of batches makes the last update
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

        # Between updates the ranks need not exchange gradients.
        quiet = nullcontext() if updates_now or not args.distributed else runner.no_sync()
        with quiet:
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

        # The sum stays on the device: reading it would wait for the whole batch.
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
    """Mean loss and accuracy, in percent, over the held-out images of all ranks."""
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


if __name__ == "__main__":
    sys.exit(main())
