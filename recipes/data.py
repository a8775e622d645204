"""The data of train.py: the data set, the loaders of training and held-out images, mixup."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from errors import near_names, reason, stop
from model import model_dtype
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader

# Names that timm takes for the same split.
TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "valid", "validation", "eval", "evaluation")
# Data sets of torchvision where timm takes every other name for the held-out images.
TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")


def make_loaders(
    args: argparse.Namespace, data_config: dict[str, Any], device: torch.device
) -> tuple[Any, Any, Mixup | None]:
    """Returns the loader of training images, that of held-out images, and the mixup if one is asked for.

    A prefetching loader applies the mixup itself; otherwise the training loop does.
    """
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
        # Workers are started anew in each epoch, so that their random state depends on the epoch's seed only.
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
    for option, split, synonyms in (
        ("--train-split", args.train_split, TRAIN_NAMES),
        ("--val-split", args.val_split, VALIDATION_NAMES),
    ):
        check_split(args, option, split, synonyms)
    training, held_out = dataset(split=args.train_split, is_training=True), dataset(split=args.val_split)
    check_classes(args, training)
    train_loader = loader(
        training,
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
        held_out,
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=data_config["interpolation"],
        crop_pct=data_config["crop_pct"],
    )
    return train_loader, held_out_loader, mixup


def open_dataset(name: str, **options: Any) -> Any:
    """Returns timm's data set of this name; stops with one line if it cannot be opened."""
    try:
        return create_dataset(name, **options)
    except Exception as error:
        where = f" in {options['root']!r}" if options.get("root") else ": some need --data-dir or --dataset-download"
        stop(f"cannot open the data set {name!r}{where} ({reason(error)})")


def check_split(args: argparse.Namespace, option: str, split: str, synonyms: tuple[str, ...]) -> None:
    """Stops with one line if a split does not exist. timm would take the whole folder, or another split, instead."""
    kind, _, name = args.dataset.lower().rpartition("/")
    if kind == "torch" and name in TWO_SPLITS:
        known = (*TRAIN_NAMES, *VALIDATION_NAMES, "test")
        if split not in known:
            stop(f"{option} {split!r}: {args.dataset} has the splits train and validation{near_names(split, known)}")
    root = Path(args.data_dir or "")
    if args.dataset or not root.is_dir():  # timm's other kinds of data sets complain by themselves
        return
    name = split.split("[")[0]
    names = synonyms if name in synonyms else (name,)
    if not any((root / candidate).exists() for candidate in names):
        there = sorted(path.name for path in root.iterdir() if path.is_dir())[:10]
        stop(f"{option} {split!r}: no such folder in {args.data_dir!r}, which has {', '.join(there) or 'no folders'}")


def check_classes(args: argparse.Namespace, dataset: Any) -> None:
    """Stops with one line if the model has fewer outputs than the data set has classes, as far as that is known."""
    reader = getattr(dataset, "reader", dataset)
    classes = len(getattr(reader, "class_to_idx", None) or ())
    if classes > args.num_classes:
        stop(f"--num-classes {args.num_classes}: the data set has {classes} classes")
