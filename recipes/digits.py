"""Scikit-learn's handwritten digits as an image folder: real images with no download.

1797 grey images of 8x8 pixels in 10 classes, from the UCI "Optical Recognition of Handwritten Digits" set.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = 1797
VALIDATION_EVERY = 5  # of each class, in the data set's own order, every fifth image is held out


def cache_folder() -> Path:
    """Where the image folder lives: under `$XDG_CACHE_HOME`, or `~/.cache` where that is unset."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "smdtrack-recipes" / "digits-v1"


def digits_folder() -> Path:
    """The digits as `train/<class>/*.png` and `validation/<class>/*.png`, written on the first call.

    The folder is written under another name and renamed when it is complete, so that several processes may ask for
    it at once and none reads half of it.
    """
    folder = cache_folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        _write(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first, with the same images
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Grey levels 0..16 stretched to 0..255; rounding back gives the original values.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    seen = dict.fromkeys(range(10), 0)
    for index, (image, label) in enumerate(zip(pixels, digits.target.tolist(), strict=True)):
        seen[label] += 1
        split = "validation" if seen[label] % VALIDATION_EVERY == 0 else "train"
        path = folder / split / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
