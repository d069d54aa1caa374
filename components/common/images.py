"""The one reader of a user's image files: upright RGB, or one sentence that says what is wrong with the file.

What a file is called does not matter; its content decides. H, W pixels.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from components.common.errors import UserError
from components.common.inputs import MIB, read_bytes, shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
BYTES = 64 * MIB
PIXELS, SIDE = 64_000_000, 16_384
"""The most pixels of an image, and of one of its sides; some 200 MiB once it is decoded."""


def read_image(path: Path) -> np.ndarray:
    """The image at `path`, upright and on white where it is transparent, as (H, W, 3) uint8; `UserError` if it cannot be read.

    16-bit greys are scaled to 8 bits. A photo with a preview inside is the photo; an animation is refused.
    """
    content = read_bytes(path, BYTES)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            _check_size(path, *opened.size)
            frames = getattr(opened, "n_frames", 1)
            if frames > 1 and opened.format != "MPO":  # what phones call a photo beside its preview
                raise UserError(f"{path} is an animation of {frames} frames", "save the frame that you mean as a PNG")
            return _flat(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no image that can be read", "name a PNG, JPEG, WebP or BMP") from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} has too many pixels", f"make it smaller than {SIDE}×{SIDE} and {PIXELS:,} pixels"
        ) from error
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} does not fit into memory", "make it smaller") from error
    except Exception as error:  # Pillow's decoders have many ways of saying that a file ends early or lies
        raise UserError(f"{path} is a damaged image ({shown(str(error))})", "save it again as a PNG") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > PIXELS or max(width, height) > SIDE:
        raise UserError(
            f"{path} has {width}×{height} pixels", f"make it smaller than {SIDE}×{SIDE} and {PIXELS:,} pixels"
        )


def _flat(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    upright = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB"))
