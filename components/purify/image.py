"""Reads what purification needs: a user's image at the pipeline's size, and that size from the pipeline's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

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


def read_geometry(folder: Path) -> tuple[int, dict[str, Any]]:
    """(side of the images in pixels, the scheduler's config) of a pipeline folder, without reading a weight."""
    names = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    unet, vae, scheduler = (json.loads((folder / name).read_text(encoding="utf-8")) for name in names)
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1), scheduler
