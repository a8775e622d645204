"""The command-line options of train.py. Each has the name and the meaning that it has in timm's own train.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from errors import stop
from timm.utils import ParseKwargs

SCHEDULES = ("cosine", "tanh", "step", "multistep", "plateau", "poly", "none")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage text of a hundred options."""

    def error(self, message: str) -> NoReturn:
        """Ends the script with one line and exit code 2."""
        stop(f"{message} (--help lists the options)")


class KeyValues(ParseKwargs):
    """timm's action for NAME=VALUE words, with an error for a word that has no `=`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str] | Any,
        option_string: str | None = None,
    ) -> None:
        """Stores the words as a dict; numbers, lists and the like become Python values."""
        for word in values:
            if "=" not in word:
                raise argparse.ArgumentError(self, f"{word!r} is not NAME=VALUE")
        super().__call__(parser, namespace, values, option_string)


def build_parser() -> Parser:
    """Returns the parser with every option."""
    parser = Parser(
        prog="train.py",
        description="Train an image classifier with timm. Without --data-dir and --dataset it trains on "
        "scikit-learn's handwritten digits.",
        epilog="example: python recipes/train.py --config recipes/digits_momentum.yaml --epochs 10",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="YAML file with options, _ instead of - in their names; an option on the command line wins",
    )

    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help="root folder of the data set; default: the digits, if no --dataset is given")
    add("--dataset", default="", metavar="NAME", help='timm\'s "<type>/<name>"; default: a folder of images')
    add("--train-split", default="train", metavar="NAME", help="split to train on; default: %(default)s")
    add("--val-split", default="validation", metavar="NAME", help="split to validate on; default: %(default)s")
    add("--dataset-download", action="store_true", help="let torch/ and tfds/ data sets download their files")
    add("--class-map", default="", metavar="FILE", help="file with the names of the classes in order")

    add = parser.add_argument_group("model").add_argument
    add("--model", default="resnet50", metavar="NAME", help="model in timm; default: %(default)s")
    add("--pretrained", action="store_true", help="start from timm's pretrained weights")
    add("--initial-checkpoint", default="", metavar="FILE", help="file with the weights to start from")
    add("--resume", default="", metavar="FILE", help="checkpoint to continue: weights, optimizer state and epoch")
    add("--no-resume-opt", action="store_true", help="with --resume: start with a fresh optimizer state")
    add("--num-classes", type=int, help="number of classes; default: the model's own, 10 for the digits")
    add("--gp", metavar="POOL", help="kind of global pooling; default: the model's own")
    add("--img-size", type=int, metavar="N", help="height and width of the images; default: the model's own")
    add("--in-chans", type=int, metavar="N", help="channels of the images; default: 3")
    add("--input-size", type=int, nargs=3, metavar="N", help="channels, height and width of the images")
    add("--crop-pct", type=float, help="share of the image that validation crops from its centre")
    add("--mean", type=float, nargs="+", help="mean of the pixels, per channel; default: the model's own")
    add("--std", type=float, nargs="+", help="standard deviation of the pixels, per channel; default: the model's own")
    add("--interpolation", default="", metavar="NAME", help="how images are resized; default: the model's own")
    add("-b", "--batch-size", type=int, default=128, metavar="N", help="images per process; default: %(default)s")
    add("-vb", "--validation-batch-size", type=int, metavar="N", help="default: --batch-size")
    add("--channels-last", action="store_true", help="use the channels-last memory layout")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="batches per optimizer step; default: %(default)s")
    add("--grad-checkpointing", action="store_true", help="recompute activations in the backward pass to save memory")
    add("--model-kwargs", nargs="*", default={}, action=KeyValues, metavar="NAME=VALUE", help="passed to the model")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model")
    add("--torchcompile-mode", metavar="MODE", help="mode of torch.compile")

    add = parser.add_argument_group("device").add_argument
    add("--device", help="torch device; default: cuda if available, else cpu")
    add("--amp", action="store_true", help="train in mixed precision")
    add("--amp-dtype", default="float16", choices=("float16", "bfloat16"), help="default: %(default)s")
    add("--model-dtype", choices=("float32", "bfloat16"), help="type of the weights, without --amp; default: float32")
    add("--sync-bn", action="store_true", help="compute batch-norm statistics over all processes")
    add(
        "--dist-bn",
        default="reduce",
        choices=("broadcast", "reduce", ""),
        help="share batch-norm statistics between processes after each epoch; default: %(default)s",
    )
    add("--no-ddp-bb", action="store_true", help="do not broadcast buffers in DistributedDataParallel")

    add = parser.add_argument_group("optimizer").add_argument
    add(
        "--opt",
        default="sgd",
        metavar="NAME",
        help="optimizer in timm: sgd has Nesterov momentum, momentum is plain heavy-ball SGD; default: %(default)s",
    )
    add("--opt-eps", type=float, help="epsilon of the optimizer; default: its own")
    add("--opt-betas", type=float, nargs="+", help="betas of the optimizer; default: its own")
    add("--opt-kwargs", nargs="*", default={}, action=KeyValues, metavar="NAME=VALUE", help="passed to the optimizer")
    add("--momentum", type=float, default=0.9, help="default: %(default)s")
    add("--weight-decay", type=float, default=2e-5, help="default: %(default)s")
    add("--layer-decay", type=float, help="factor of the learning rate from each layer to the one before it")
    add("--clip-grad", type=float, metavar="NORM", help="clip gradients at this value; default: no clipping")
    add("--clip-mode", default="norm", choices=("norm", "value", "agc"), help="default: %(default)s")

    add = parser.add_argument_group("schedule").add_argument
    add("--sched", default="cosine", choices=SCHEDULES, help="learning-rate schedule; default: %(default)s")
    add("--sched-on-updates", action="store_true", help="change the learning rate at every update, not every epoch")
    add("--lr", type=float, help="learning rate; default: --lr-base scaled by the batch size")
    add("--lr-base", type=float, default=0.1, help="learning rate at --lr-base-size; default: %(default)s")
    add("--lr-base-size", type=int, default=256, help="batch size of --lr-base; default: %(default)s")
    add(
        "--lr-base-scale",
        default="",
        choices=("linear", "sqrt", ""),
        help="how --lr-base grows with the batch size; default: sqrt for Adam-like optimizers, else linear",
    )
    add("--warmup-lr", type=float, default=1e-5, help="learning rate at the start of warm-up; default: %(default)s")
    add("--min-lr", type=float, default=0.0, help="lowest learning rate of cosine, tanh and poly; default: %(default)s")
    add("--epochs", type=int, default=300, metavar="N", help="default: %(default)s")
    add("--start-epoch", type=int, metavar="N", help="epoch to start with; default: 0, or where --resume stopped")
    add("--decay-milestones", type=int, nargs="+", default=[90, 180, 270], metavar="EPOCH", help="drops of multistep")
    add("--decay-epochs", type=float, default=90, help="epochs between drops of step; default: %(default)s")
    add("--decay-rate", "--dr", type=float, default=0.1, help="factor of each drop; default: %(default)s")
    add("--warmup-epochs", type=int, default=5, metavar="N", help="default: %(default)s")
    add("--warmup-prefix", action="store_true", help="add the warm-up epochs to --epochs")
    add("--cooldown-epochs", type=int, default=0, metavar="N", help="epochs at --min-lr at the end")
    add("--patience-epochs", type=int, default=10, metavar="N", help="patience of plateau; default: %(default)s")

    add = parser.add_argument_group("augmentation and regularization").add_argument
    add("--no-aug", action="store_true", help="train without augmentation")
    add("--train-crop-mode", metavar="NAME", help="kind of random crop; default: rrc")
    add("--scale", type=float, nargs="+", default=[0.08, 1.0], help="range of the random crop's area")
    add("--ratio", type=float, nargs="+", default=[3 / 4, 4 / 3], help="range of the random crop's aspect ratio")
    add("--hflip", type=float, default=0.5, help="probability of a horizontal flip; default: %(default)s")
    add("--vflip", type=float, default=0.0, help="probability of a vertical flip; default: %(default)s")
    add("--color-jitter", type=float, default=0.4, help="default: %(default)s")
    add("--aa", metavar="POLICY", help="AutoAugment policy")
    add("--aug-repeats", type=float, default=0, help="augmentations per image and epoch (distributed training only)")
    add("--reprob", type=float, default=0.0, help="probability of random erasing; default: %(default)s")
    add("--remode", default="pixel", metavar="MODE", help="what random erasing fills in; default: %(default)s")
    add("--recount", type=int, default=1, help="areas that random erasing erases; default: %(default)s")
    add("--train-interpolation", default="random", metavar="NAME", help="default: %(default)s")
    add("--smoothing", type=float, default=0.1, help="label smoothing; default: %(default)s")
    add("--bce-loss", action="store_true", help="use binary cross entropy")
    add("--bce-sum", action="store_true", help="with --bce-loss: sum over the classes")
    add("--bce-target-thresh", type=float, help="with --bce-loss: round targets at this value")
    add("--mixup", type=float, default=0.0, help="mixup alpha; default: %(default)s, no mixup")
    add("--cutmix", type=float, default=0.0, help="cutmix alpha; default: %(default)s, no cutmix")
    add("--cutmix-minmax", type=float, nargs="+", help="smallest and largest share of the image that cutmix replaces")
    add("--mixup-prob", type=float, default=1.0, help="probability of mixup or cutmix; default: %(default)s")
    add("--mixup-switch-prob", type=float, default=0.5, help="probability of cutmix instead of mixup")
    add("--mixup-mode", default="batch", choices=("batch", "pair", "elem"), help="default: %(default)s")
    add("--mixup-off-epoch", type=int, default=0, metavar="N", help="epoch from which mixup is off; default: never")
    add("--drop", type=float, default=0.0, help="dropout rate; default: %(default)s")
    add("--drop-path", type=float, help="rate of stochastic depth")

    add = parser.add_argument_group("moving average of the weights").add_argument
    add("--model-ema", action="store_true", help="keep a moving average of the weights, and validate it")
    add("--model-ema-decay", type=float, default=0.9998, help="default: %(default)s")
    add("--model-ema-warmup", action="store_true", help="start with a smaller decay")

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=42, help="default: %(default)s")
    add("-j", "--workers", type=int, default=4, metavar="N", help="processes that load images; default: %(default)s")
    add("--pin-mem", action="store_true", help="load into page-locked memory (CUDA)")
    add("--no-prefetcher", action="store_true", help="do not copy batches to the GPU ahead of time")
    add("--log-interval", type=int, default=50, metavar="N", help="batches between updates of the shown loss")
    add("--val-interval", type=int, default=1, metavar="N", help="epochs between validations and checkpoints")
    add("--checkpoint-hist", type=int, default=10, metavar="N", help="checkpoints to keep; default: %(default)s")
    add("--eval-metric", default="top1", choices=("top1", "top5", "loss"), help="best by this; default: %(default)s")
    add("--log-wandb", action="store_true", help="log loss, accuracy and learning rate of each epoch to W&B")
    add("--wandb-project", metavar="NAME", help="with --log-wandb: project; default: W&B's own")
    add("--wandb-tags", nargs="*", default=[], metavar="TAG", help="with --log-wandb: tags of the run")
    add("--wandb-resume-id", default="", metavar="ID", help="with --log-wandb: run to continue")
    add("--output", default="", metavar="DIR", help="folder of the runs; default: ./output/train")
    add("--experiment", default="", metavar="NAME", help="folder of this run in it; default: time, model, image size")
    return parser
