"""Writes scikit-learn's handwritten digits as a folder of images: real images without a download.

The set has 1797 grey images of 8x8 pixels in 10 classes. It comes from the UCI data set "Optical Recognition of
Handwritten Digits" and is part of scikit-learn.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = 1797
VALIDATION_EVERY = 5  # every fifth image of each class, in the order of the data set, is held out


def cache_folder() -> Path:
    """Returns the path of the image folder: under `$XDG_CACHE_HOME`, or under `~/.cache` if that is not set."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "smdtrack-recipes" / "digits-v1"


def digits_folder() -> Path:
    """Returns the folder with `train/<class>/*.png` and `validation/<class>/*.png`; the first call writes it.

    The images are written to a temporary folder, which is renamed when it is complete. So several processes may call
    this at once, and none of them reads a half-written folder.
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
        if not folder.is_dir():  # if it exists now, another process has written the same images
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Grey levels 0 to 16 become 0 to 255. Scaling back and rounding gives the original values.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    seen = dict.fromkeys(range(10), 0)
    for index, (image, label) in enumerate(zip(pixels, digits.target.tolist(), strict=True)):
        seen[label] += 1
        split = "validation" if seen[label] % VALIDATION_EVERY == 0 else "train"
        path = folder / split / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
