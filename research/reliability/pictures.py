"""One mutated image file at a time; what must come out is its size, upright."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

from research.reliability.mutate import NO_FILES, Case, fuzzed

_ORIENTATION = 0x0112
_KINDS = ("PNG", "JPEG", "WEBP", "BMP")
_ENDINGS = (".png", ".jpg", ".webp", ".bmp", ".txt", "")


def image_case(rng: random.Random) -> Case:
    """One image: as cameras and programs write it, cut short, too large, of another kind, or with bytes altered."""
    width, height = rng.randint(1, 300), rng.randint(1, 300)
    name, sort = f"image{rng.choice(_ENDINGS)}", rng.random()  # what it is called does not matter
    if sort < 0.05:
        return Case(kind := rng.choice(NO_FILES), "refuse", name, kind)
    if sort < 0.35:
        what, content, size = _readable(width, height, rng)
        return Case(what, "accept", name, content, [f"{size[0]}x{size[1]}"])
    if sort < 0.6:
        kind = rng.choice(("PNG", "JPEG", "WEBP", "BMP"))
        whole = _saved(_noise(width + 32, height + 32, "RGB", rng), kind)
        return Case(f"{kind} cut short", "refuse", name, whole[: rng.randrange(len(whole) * 9 // 10)])
    if sort < 0.75:
        return Case(*_refused(width, height, name, rng))
    return Case(
        "altered bytes", "either", name, fuzzed(_saved(_noise(width, height, "RGB", rng), rng.choice(_KINDS)), rng)
    )


def image_size(image: np.ndarray) -> list[str]:
    """What is compared: width and height of an (H, W, 3) uint8 image."""
    assert image.dtype == np.uint8
    height, width, _ = image.shape
    return [f"{width}x{height}"]


def _noise(width: int, height: int, mode: str, rng: random.Random) -> Image.Image:
    bands = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}[mode]
    return Image.frombytes(mode, (width, height), rng.randbytes(width * height * bands))


def _saved(image: Image.Image, kind: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def _readable(width: int, height: int, rng: random.Random) -> tuple[str, bytes, tuple[int, int]]:
    """An image that must be read, and its size upright."""
    what = rng.choice(["plain", "grey", "16 bits", "CMYK", "transparent", "palette", "one bit", "turned"])
    colour, grey = _noise(width, height, "RGB", rng), _noise(width, height, "L", rng)
    if what == "turned":
        exif = Image.Exif()
        exif[_ORIENTATION] = 6
        return what, _saved(colour, "JPEG", exif=exif), (height, width)
    content = {
        "plain": lambda: _saved(colour, rng.choice(_KINDS)),
        "grey": lambda: _saved(grey, rng.choice(("PNG", "JPEG", "BMP"))),
        "16 bits": lambda: _saved(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG"),
        "CMYK": lambda: _saved(_noise(width, height, "CMYK", rng), "JPEG"),
        "transparent": lambda: _saved(_noise(width, height, rng.choice(("RGBA", "LA")), rng), "PNG"),
        "palette": lambda: _saved(colour.quantize(16), "PNG"),
        "one bit": lambda: _saved(grey.convert("1"), rng.choice(("PNG", "BMP"))),
    }[what]()
    return what, content, (width, height)


def _refused(width: int, height: int, name: str, rng: random.Random) -> tuple[str, str, str, bytes]:
    what = rng.choice(["bomb", "wide bomb", "animation", "empty", "text", "GIF", "TIFF", "pickle"])
    frames = [_noise(width + 1, height + 1, "RGB", rng) for _ in range(2)]
    content = {
        "bomb": lambda: _bomb(50_000, 50_000),
        "wide bomb": lambda: _bomb(2**31 - 1, 1),
        "animation": lambda: _saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "empty": lambda: b"",
        "text": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "GIF": lambda: _saved(frames[0].quantize(8), "GIF"),
        "TIFF": lambda: _saved(frames[0], "TIFF"),
        "pickle": lambda: b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
    }[what]()
    return what, "refuse", name, content


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
