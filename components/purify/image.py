"""Reads a user's image at the pipeline's size."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from components.common.errors import UserError


class Photo(NamedTuple):
    """One image as the pipeline takes it."""

    pixels: np.ndarray
    """(side, side, 3) uint8."""
    size: tuple[int, int]
    """Width and height in the file, upright, pixels."""


def read_photo(path: Path, side: int) -> Photo:
    """The image at `path`, upright, on white where it is transparent, resized to `side`; `UserError` if it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path} is no file", "name an image, such as a PNG or a JPEG")
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no image that can be read", "name a PNG or a JPEG") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has too many pixels", f"make it smaller; {side}×{side} is all that is used") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways of saying that a file ends early or lies
        raise UserError(f"{path} is a damaged image ({error})", "save it again as a PNG") from error
    ground = Image.new("RGBA", upright.size, "white")
    flat = Image.alpha_composite(ground, upright).convert("RGB")
    fitted = flat if flat.size == (side, side) else flat.resize((side, side), Image.Resampling.LANCZOS)
    return Photo(np.asarray(fitted), upright.size)
