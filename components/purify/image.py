"""Reads a user's image at the pipeline's size."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from components.common.images import read_image


class Photo(NamedTuple):
    """One image as the pipeline takes it."""

    pixels: np.ndarray
    """(side, side, 3) uint8."""
    size: tuple[int, int]
    """Width and height in the file, upright, pixels."""


def read_photo(path: Path, side: int) -> Photo:
    """The image at `path`, upright, on white where it is transparent, resized to `side`; `UserError` if it cannot be read."""
    pixels = read_image(path)
    height, width = pixels.shape[:2]
    if (width, height) != (side, side):
        pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))
    return Photo(pixels, (width, height))
