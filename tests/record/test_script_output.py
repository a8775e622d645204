import os
import time

import pytest

from smdtrack.record.script_output import command_settings, plain, script_output


@pytest.fixture
def record(tmp_path):
    folder = tmp_path / "smdtrack-runs" / "20261101-100000-net-11111111"
    folder.mkdir(parents=True)
    return folder


def output(tmp_path, name, made, yaml="batch_size: 64\nlr: 0.1\nscale: [0.7, 1.0]\nresume: ''\n", summary=None):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "args.yaml").write_text(yaml)
    os.utime(folder / "args.yaml", (made, made))
    if summary is not None:
        (folder / "summary.csv").write_text(summary)


def test_the_folder_that_was_made_just_before_the_record(tmp_path, record):
    now = time.time()
    output(tmp_path, "out/earlier", now - 200, yaml="batch_size: 1\n")
    output(tmp_path, "out/this", now - 20, summary="epoch,eval_top1,lr\n0,50.0,0.1\n1,75.5,0.1\n")
    output(tmp_path, "out/later", now + 100, yaml="batch_size: 3\n")
    found = script_output("train.py --output out --seed 3", record, now, now + 60)
    assert found.settings == {"output": "out", "seed": 3, "batch_size": 64, "lr": 0.1, "scale": "0.7 1.0"}
    assert found.metrics == {"epoch": 1, "eval_top1": 75.5, "lr": 0.1}
    assert found.notes == ()


def test_timm_s_default_folder(tmp_path, record):
    output(tmp_path, "output/train/20261101-net", 1e9 - 5)
    assert script_output("train.py", record, 1e9, None).settings["batch_size"] == 64


def test_a_row_that_is_half_written_is_left_out(tmp_path, record):
    output(tmp_path, "output/train/a", 1e9 - 5, summary="epoch,eval_top1\n0,50.0\n1,75")
    assert script_output("train.py", record, 1e9, None).metrics == {"epoch": 1, "eval_top1": 75}
    (tmp_path / "output/train/a/summary.csv").write_text("epoch,eval_top1\n0,50.0\n1")
    assert script_output("train.py", record, 1e9, None).metrics == {"epoch": 0, "eval_top1": 50}


def test_without_a_folder_the_command_line_is_what_is_known(record):
    found = script_output("train.py --batch-size 64 --amp --lr=1e-3 data", record, 1e9, None)
    assert found.settings == {"batch_size": 64, "amp": True, "lr": 1e-3}
    assert found.metrics == {}


@pytest.mark.parametrize("yaml", ["- a list\n", "a: [\n", "!!python/object/apply:os.system ['true']\n"])
def test_a_file_that_is_no_recipe_is_said(tmp_path, record, yaml):
    output(tmp_path, "output/train/a", 1e9 - 5, yaml=yaml)
    (note,) = script_output("train.py --seed 1", record, 1e9, None).notes
    assert note.startswith(f"the script's output in {tmp_path / 'output/train/a'} could not be read (")


def test_a_huge_file_is_not_parsed(tmp_path, record):
    output(tmp_path, "output/train/a", 1e9 - 5, yaml="a: 1\n" * 300_000)
    (note,) = script_output("train.py", record, 1e9, None).notes
    assert "larger than 1000000 bytes" in note


@pytest.mark.parametrize("command", [None, 3, "", "unbalanced 'quote", "--"])
def test_odd_command_lines(record, command):
    assert script_output(command, record, 1e9, None).settings == {}
    assert command_settings(command) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-3", -3), ("1e-4", 1e-4), ("true", True), ("False", False), ("0.9 0.99", "0.9 0.99")],
)
def test_values_of_the_command_line(text, value):
    assert plain(text) == value
    assert type(plain(text)) is type(value)
