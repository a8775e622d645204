"""The image folder of the digits has the right images, is written once, and several processes may ask for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from digits import digits_folder

    return digits_folder()


def test_the_images_are_those_of_scikit_learn(folder: Path, tmp_path: Path) -> None:
    assert folder == tmp_path / "smdtrack-recipes" / "digits-v1"
    digits = load_digits()
    files = sorted(folder.glob("*/*/*.png"), key=lambda path: path.stem)
    assert [int(path.stem) for path in files] == list(range(1797))
    assert {path.parent.name for path in files} == {str(label) for label in range(10)}
    for path, image, label in zip(files, digits.images, digits.target, strict=True):
        assert path.parent.name == str(label)
        pixels = np.asarray(Image.open(path), dtype=np.float64)
        np.testing.assert_array_equal(np.rint(pixels * 16 / 255), image)


def test_a_fifth_of_each_class_is_held_out(folder: Path) -> None:
    counts = np.bincount(load_digits().target)
    for label in range(10):
        held_out = len(list((folder / "validation" / str(label)).iterdir()))
        assert held_out == counts[label] // 5
        assert held_out + len(list((folder / "train" / str(label)).iterdir())) == counts[label]


def test_a_second_call_writes_nothing(folder: Path) -> None:
    from digits import digits_folder

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert digits_folder() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_processes_that_ask_at_once_agree_and_leave_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", "import digits; print(digits.digits_folder())"]
    processes = [subprocess.Popen(command, cwd=RECIPES, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert answers == {str(tmp_path / "smdtrack-recipes" / "digits-v1")}
    assert [path.name for path in (tmp_path / "smdtrack-recipes").iterdir()] == ["digits-v1"]
    assert len(list(tmp_path.rglob("*.png"))) == 1797


def test_a_run_that_dies_while_writing_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import digits

    def die(folder: Path) -> None:
        (folder / "train").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_write", die)
    with pytest.raises(KeyboardInterrupt):
        digits.digits_folder()
    assert list((tmp_path / "smdtrack-recipes").iterdir()) == []
