"""Command line and YAML of train.py: every option is named, and means, what it does in timm's train.py."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import timm
import yaml
from timm.optim import list_optimizers
from timm.utils import ParseKwargs

SCHEDULES = ("cosine", "tanh", "step", "multistep", "plateau", "poly", "none")


def stop(message: str) -> NoReturn:
    """Ends a run that was asked for wrongly: one line on stderr, exit code 2."""
    print(f"train.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def near_names(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage of a hundred options."""

    def error(self, message: str) -> NoReturn:
        stop(f"{message} (--help lists the options)")


def build_parser() -> Parser:
    parser = Parser(
        prog="train.py",
        description="Train an image classifier with timm. With neither --data-dir nor --dataset: handwritten digits.",
        epilog="example: python recipes/train.py --config recipes/digits_momentum.yaml --epochs 10",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML of options, named with _ for -; flags win")

    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help="root folder of the data set (unset, with no --dataset: digits)")
    add("--dataset", default="", metavar="NAME", help='timm "<type>/<name>"; empty: image folder')
    add("--train-split", default="train", metavar="NAME")
    add("--val-split", default="validation", metavar="NAME")
    add("--dataset-download", action="store_true", help="let torch/ and tfds/ data sets download")
    add("--class-map", default="", metavar="FILE")

    add = parser.add_argument_group("model").add_argument
    add("--model", default="resnet50", metavar="NAME")
    add("--pretrained", action="store_true")
    add("--initial-checkpoint", default="", metavar="FILE", help="weights to start from")
    add("--resume", default="", metavar="FILE", help="checkpoint to continue: weights, optimizer, epoch")
    add("--no-resume-opt", action="store_true", help="resume without the optimizer's state")
    add("--num-classes", type=int, help="unset: the model's own, 10 for digits")
    add("--gp", metavar="POOL", help="global pool")
    add("--img-size", type=int, metavar="N")
    add("--in-chans", type=int, metavar="N")
    add("--input-size", type=int, nargs=3, metavar="N", help="channels height width")
    add("--crop-pct", type=float, help="center crop in validation")
    add("--mean", type=float, nargs="+")
    add("--std", type=float, nargs="+")
    add("--interpolation", default="", metavar="NAME")
    add("-b", "--batch-size", type=int, default=128, metavar="N", help="per process")
    add("-vb", "--validation-batch-size", type=int, metavar="N")
    add("--channels-last", action="store_true")
    add("--grad-accum-steps", type=int, default=1, metavar="N")
    add("--grad-checkpointing", action="store_true")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model")
    add("--torchcompile-mode", metavar="MODE")

    add = parser.add_argument_group("device").add_argument
    add("--device", help="unset: cuda if there is one, else cpu")
    add("--amp", action="store_true", help="mixed precision")
    add("--amp-dtype", default="float16", choices=("float16", "bfloat16"))
    add("--model-dtype", choices=("float32", "bfloat16"), help="type of the weights, without --amp")
    add("--sync-bn", action="store_true")
    add("--dist-bn", default="reduce", choices=("broadcast", "reduce", ""), help="BN statistics after each epoch")
    add("--no-ddp-bb", action="store_true", help="no broadcast of buffers in DDP")

    add = parser.add_argument_group("optimizer").add_argument
    add("--opt", default="sgd", metavar="NAME", help="a timm optimizer; sgd is Nesterov, momentum is heavy-ball")
    add("--opt-eps", type=float)
    add("--opt-betas", type=float, nargs="+")
    add("--opt-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V")
    add("--momentum", type=float, default=0.9)
    add("--weight-decay", type=float, default=2e-5)
    add("--layer-decay", type=float)
    add("--clip-grad", type=float, metavar="NORM")
    add("--clip-mode", default="norm", choices=("norm", "value", "agc"))

    add = parser.add_argument_group("schedule").add_argument
    add("--sched", default="cosine", choices=SCHEDULES)
    add("--sched-on-updates", action="store_true", help="step per update, not per epoch")
    add("--lr", type=float, help="unset: from --lr-base and the batch size")
    add("--lr-base", type=float, default=0.1)
    add("--lr-base-size", type=int, default=256)
    add("--lr-base-scale", default="", choices=("linear", "sqrt", ""), help="empty: by the optimizer")
    add("--warmup-lr", type=float, default=1e-5)
    add("--min-lr", type=float, default=0.0)
    add("--epochs", type=int, default=300, metavar="N")
    add("--start-epoch", type=int, metavar="N")
    add("--decay-milestones", type=int, nargs="+", default=[90, 180, 270], metavar="EPOCH")
    add("--decay-epochs", type=float, default=90)
    add("--decay-rate", "--dr", type=float, default=0.1)
    add("--warmup-epochs", type=int, default=5, metavar="N")
    add("--warmup-prefix", action="store_true", help="warm-up comes on top of --epochs")
    add("--cooldown-epochs", type=int, default=0, metavar="N")
    add("--patience-epochs", type=int, default=10, metavar="N")

    add = parser.add_argument_group("augmentation and regularization").add_argument
    add("--no-aug", action="store_true")
    add("--train-crop-mode", metavar="NAME")
    add("--scale", type=float, nargs="+", default=[0.08, 1.0], help="area of the random crop")
    add("--ratio", type=float, nargs="+", default=[3 / 4, 4 / 3], help="aspect ratio of the random crop")
    add("--hflip", type=float, default=0.5)
    add("--vflip", type=float, default=0.0)
    add("--color-jitter", type=float, default=0.4)
    add("--aa", metavar="POLICY", help="AutoAugment policy")
    add("--aug-repeats", type=float, default=0, help="repeated augmentation (distributed only)")
    add("--reprob", type=float, default=0.0, help="random erasing")
    add("--remode", default="pixel", metavar="MODE")
    add("--recount", type=int, default=1)
    add("--train-interpolation", default="random", metavar="NAME")
    add("--smoothing", type=float, default=0.1)
    add("--bce-loss", action="store_true")
    add("--bce-sum", action="store_true")
    add("--bce-target-thresh", type=float)
    add("--mixup", type=float, default=0.0)
    add("--cutmix", type=float, default=0.0)
    add("--cutmix-minmax", type=float, nargs="+")
    add("--mixup-prob", type=float, default=1.0)
    add("--mixup-switch-prob", type=float, default=0.5)
    add("--mixup-mode", default="batch", choices=("batch", "pair", "elem"))
    add("--mixup-off-epoch", type=int, default=0, metavar="N")
    add("--drop", type=float, default=0.0)
    add("--drop-path", type=float)

    add = parser.add_argument_group("weight average").add_argument
    add("--model-ema", action="store_true", help="average the weights, and validate the average")
    add("--model-ema-decay", type=float, default=0.9998)
    add("--model-ema-warmup", action="store_true")

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=42)
    add("-j", "--workers", type=int, default=4, metavar="N", help="loader processes; 0 is best for tiny images")
    add("--pin-mem", action="store_true")
    add("--no-prefetcher", action="store_true", help="always so on the CPU")
    add("--log-interval", type=int, default=50, metavar="N", help="batches between two readings of the loss")
    add("--val-interval", type=int, default=1, metavar="N", help="epochs between validations and checkpoints")
    add("--checkpoint-hist", type=int, default=10, metavar="N", help="checkpoints kept")
    add("--eval-metric", default="top1", choices=("top1", "top5", "loss"))
    add("--output", default="", metavar="DIR", help="empty: ./output/train")
    add("--experiment", default="", metavar="NAME", help="folder in the output; empty: time, model, size")
    for action in parser._actions:
        action.help = action.help or "default: %(default)s"
    return parser


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, str]:
    """Options from the command line over those of the YAML, and all of them as a YAML that `--config` takes."""
    parser = build_parser()
    config = parser.parse_args(argv).config
    if config:
        _set_defaults(parser, config)
    args = parser.parse_args(argv)
    del args.config
    _check(args)
    return args, yaml.safe_dump(vars(args))


def _set_defaults(parser: Parser, config: str) -> None:
    try:
        with open(config, encoding="utf-8") as file:
            settings = yaml.safe_load(file) or {}
    except OSError as error:
        stop(f"cannot read the config {config!r}: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        stop(f"the config {config!r} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(settings, dict):
        stop(f"the config {config!r} is not a mapping of option to value")

    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    for key, value in settings.items():
        if key not in actions:
            stop(f"unknown key {key!r} in {config}{near_names(str(key), actions)}")
        parser.set_defaults(**{key: value if value is None else _converted(parser, actions[key], value)})


def _converted(parser: Parser, action: argparse.Action, value: Any) -> Any:
    """The YAML's value, read as the same words on the command line would be."""
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            stop(f"{action.dest} in the config is true or false, not {value!r}")
        return value
    if action.nargs == "?" and isinstance(value, bool):
        return action.const if value else None
    if isinstance(value, dict):
        words = [f"{key}={item}" for key, item in value.items()]
    else:
        words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return getattr(parser.parse_args([action.option_strings[-1], *words]), action.dest)


def _check(args: argparse.Namespace) -> None:
    if not timm.is_model(args.model) and ":" not in args.model:  # hf-hub:, local-dir:
        stop(f"unknown model {args.model!r}{near_names(args.model.split('.')[0], timm.list_models())}")
    if args.opt.lower().removeprefix("lookahead_") not in list_optimizers():
        stop(f"unknown optimizer {args.opt!r}{near_names(args.opt.lower(), list_optimizers())}")
    for name in ("batch_size", "grad_accum_steps", "epochs", "val_interval", "checkpoint_hist", "log_interval"):
        if getattr(args, name) < 1:
            stop(f"--{name.replace('_', '-')} is at least 1, not {getattr(args, name)}")
    for name in ("resume", "initial_checkpoint"):
        if getattr(args, name) and not os.path.isfile(getattr(args, name)):
            stop(f"--{name.replace('_', '-')}: no such file: {getattr(args, name)!r}")
    if args.data_dir and not args.dataset and not os.path.isdir(args.data_dir):
        stop(f"--data-dir: no such folder: {args.data_dir!r}")
    if args.amp and args.model_dtype == "bfloat16":
        stop("--amp keeps the weights in float32: give --amp or --model-dtype bfloat16, not both")
