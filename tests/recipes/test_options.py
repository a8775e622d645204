"""The options have timm's names, and a value in the YAML is read as on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

# The options of timm's train.py in August 2026; the script is not in timm's wheel.
TIMM = """
    aa amp amp-dtype aug-repeats aug-splits batch-size bce-loss bce-pos-weight bce-sum bce-target-thresh bn-eps
    bn-momentum channels-last checkpoint-hist class-map clip-grad clip-mode color-jitter color-jitter-prob
    config cooldown-epochs crop-pct cutmix cutmix-minmax data-dir dataset dataset-download
    dataset-trust-remote-code decay-epochs decay-milestones decay-rate device device-modules dist-bn
    distill-loss-weight dr drop drop-block drop-connect drop-path epoch-repeats epochs eval-metric experiment
    fast-norm fuser gaussian-blur-prob gp grad-accum-steps grad-checkpointing grayscale-prob head-init-bias
    head-init-scale hflip img-size in-chans initial-checkpoint input-img-mode input-key input-size interpolation
    jsd-loss kd-distill-type kd-loss-type kd-model-name kd-student-feature-dim kd-teacher-feature-dim
    kd-temperature kd-token-distill-type layer-decay layer-decay-min-scale layer-decay-no-opt-scale local_rank
    log-interval log-wandb lr lr-base lr-base-scale lr-base-size lr-cycle-decay lr-cycle-limit lr-cycle-mul
    lr-k-decay lr-noise lr-noise-pct lr-noise-std mean min-lr mixup mixup-mode mixup-off-epoch mixup-prob
    mixup-switch-prob model model-dtype model-ema model-ema-decay model-ema-force-cpu model-ema-warmup
    model-kwargs momentum naflex-loader naflex-loss-scale naflex-max-seq-len naflex-patch-size-probs
    naflex-patch-sizes naflex-patchify-channels-first naflex-train-seq-lens no-aug no-ddp-bb no-prefetcher
    no-resume-opt num-classes opt opt-betas opt-eps opt-kwargs output patience-epochs pin-mem pretrained
    pretrained-path ratio recount recovery-interval remode reprob resplit resume save-images scale sched
    sched-on-updates seed smoothing split-bn start-epoch std sync-bn synchronize-step target-key
    task-loss-weight torchcompile torchcompile-mode torchscript train-batch-sizes train-batches-per-epoch
    train-crop-mode train-img-sizes train-interpolation train-num-samples train-size-probs train-size-random-mix
    train-size-schedule train-size-schedule-spread train-split train-steps-per-epoch tta use-multi-epochs-loader
    val-interval val-num-samples val-split validation-batch-size variable-batch-loss-scale vflip wandb-project
    wandb-resume-id wandb-tags warmup-epochs warmup-lr warmup-prefix weight-decay worker-seeding workers
"""


@pytest.fixture(autouse=True)
def _recipes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))


def test_every_option_is_one_of_timms() -> None:
    from options import build_parser

    ours = {
        name.removeprefix("--")
        for action in build_parser()._actions
        for name in action.option_strings
        if name.startswith("--")
    }
    assert ours - set(TIMM.split()) == {"help"}
    assert len(ours) > 80


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_every_recipe_is_understood(recipe: str) -> None:
    from config import parse

    args, _ = parse(["--config", str(RECIPES / recipe)])
    settings = yaml.safe_load((RECIPES / recipe).read_text())
    assert settings
    for key, value in settings.items():
        assert getattr(args, key) == value, key


def test_options_of_timm_that_are_not_used_here_are_listed_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from config import parse

    (tmp_path / "args.yaml").write_text(
        "model: test_resnet\naug_splits: 3\nbn_eps: null\ntorchscript: false\nlr: 0.5\n"
    )
    args, _ = parse(["--config", str(tmp_path / "args.yaml")])
    assert (args.model, args.lr) == ("test_resnet", 0.5)
    assert capsys.readouterr().err == (
        "train.py: options of timm that are not used here: aug_splits=3, bn_eps, torchscript\n"
    )


def test_every_option_of_timm_is_either_known_or_named_as_not_used() -> None:
    from options import build_parser
    from timm_options import NOT_USED

    ours = {action.dest for action in build_parser()._actions} | {"dr"}
    assert {name.replace("-", "_") for name in TIMM.split()} == (ours - {"help"}) | NOT_USED
    assert not ours & NOT_USED


def test_yaml_and_command_line_read_values_alike(tmp_path: Path) -> None:
    from config import parse

    config = tmp_path / "recipe.yaml"
    config.write_text(
        "lr: 5e-3\nopt_betas: [0.9, 0.99]\namp: true\nscale: [0.5, 1]\ncolor_jitter: null\n"
        "model_kwargs: {drop_rate: 0.1, act_layer: silu}\ntorchcompile: true\nweight_decay: -0.0\n"
    )
    words = (
        "--lr 5e-3 --opt-betas 0.9 0.99 --amp --scale 0.5 1 --model-kwargs drop_rate=0.1 act_layer=silu"
        " --torchcompile --weight-decay -0.0"
    )
    from_yaml, _ = parse(["--config", str(config)])
    from_words, _ = parse(words.split())
    from_words.color_jitter = None
    assert vars(from_yaml) == vars(from_words)
    assert from_yaml.lr == 0.005
    assert from_yaml.model_kwargs == {"drop_rate": 0.1, "act_layer": "silu"}


def test_the_command_line_wins_over_the_yaml(tmp_path: Path) -> None:
    from config import parse

    (tmp_path / "recipe.yaml").write_text("lr: 1\nepochs: 7\n")
    args, _ = parse(["--lr", "2", "--config", str(tmp_path / "recipe.yaml")])
    assert (args.lr, args.epochs) == (2.0, 7)


def test_the_written_options_give_the_same_options_again(tmp_path: Path) -> None:
    from config import parse

    args, text = parse(["--opt-betas", "0.9", "0.99", "--amp", "--model-kwargs", "drop_rate=0.1", "--dist-bn", ""])
    (tmp_path / "args.yaml").write_text(text)
    again, _ = parse(["--config", str(tmp_path / "args.yaml")])
    assert vars(again) == vars(args)


def test_help_shows_an_example_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    from config import parse

    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "example: python recipes/train.py" in shown
    assert "default: 0.9998" in shown
