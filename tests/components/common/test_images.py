"""The reader of image files: each kind of file is read rightly or refused in one sentence."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from components.common.errors import UserError
from components.common.images import PIXELS, read_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(tmp_path, content, name="a.png"):
    path = tmp_path / name
    path.write_bytes(content)
    return read_image(path)


def sized(width, height):
    """A PNG that says that it has this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def palette(transparency=None):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putdata([0, 1])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


def animated(kind):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def turned():
    """A red pixel left of a blue one, to be turned by 90°."""
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, exif=exif)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (encoded(Image.new("RGB", (1, 1), RED)), [[RED]]),
        (encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0))), [[WHITE]]),
        (encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 51))), [[(204, 204, 204)]]),
        (encoded(Image.new("LA", (1, 1), (0, 0))), [[WHITE]]),
        (encoded(Image.new("1", (1, 1), 1)), [[WHITE]]),
        (encoded(Image.new("I;16", (1, 1), 32896)), [[(128, 128, 128)]]),
        (encoded(Image.new("I;16", (1, 1), 65535)), [[WHITE]]),
        (palette(), [[RED, (0, 0, 255)]]),
        (palette(transparency=0), [[WHITE, (0, 0, 255)]]),
        (encoded(Image.new("RGB", (1, 1), RED), transparency=RED), [[WHITE]]),
        (encoded(Image.new("RGB", (1, 1), RED), "BMP"), [[RED]]),
        (encoded(Image.new("RGB", (1, 1), RED), "WEBP", lossless=True), [[RED]]),
        (turned(), [[RED], [(0, 0, 255)]]),
    ],
)  # fmt: skip
def test_every_kind_of_pixel_is_read_rightly(tmp_path, content, wanted):
    """Alpha on white, palettes, 1 and 16 bits, EXIF orientation: the pixels are those that a viewer shows."""
    assert read(tmp_path, content).tolist() == [[list(p) for p in row] for row in wanted]


def test_lossy_kinds_are_close(tmp_path):
    """JPEG in RGB, in grey and in CMYK show the colour that was saved."""
    for image, wanted in (
        (Image.new("RGB", (8, 8), RED), RED),
        (Image.new("L", (8, 8), 100), (100,) * 3),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), RED),
    ):
        assert np.abs(read(tmp_path, encoded(image, "JPEG", quality=95)).astype(int) - wanted).max() <= 3


def test_a_lying_extension_and_a_preview_do_not_matter(tmp_path):
    """A JPEG called .png is read, and of a photo with a preview the photo."""
    photo = Image.new("RGB", (16, 8), RED)
    preview = encoded(photo, "MPO", save_all=True, append_images=[photo.resize((4, 2))])

    assert read(tmp_path, encoded(photo, "JPEG")).shape == (8, 16, 3)
    assert read(tmp_path, preview, "a.jpg").shape == (8, 16, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no image that can be read; name a PNG, JPEG, WebP or BMP"),
        (b"hello", "is no image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "is no image that can be read"),
        (encoded(Image.new("RGB", (4, 4)), "GIF"), "is no image that can be read"),
        (encoded(Image.new("RGB", (4, 4)), "TIFF"), "is no image that can be read"),
        (encoded(Image.new("RGB", (64, 64), RED))[:-40], "is a damaged image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-500], "is a damaged image"),
        (animated("PNG"), "is an animation of 2 frames; save the frame that you mean"),
        (animated("WEBP"), "is an animation of 2 frames"),
        (sized(20_000, 20), "has 20000×20 pixels; make it smaller"),
        (sized(9_000, 9_000), "has 9000×9000 pixels"),
        (sized(2**31 - 1, 2**31 - 1), "too many pixels|damaged image"),
        (sized(0, 5), "is no image that can be read|damaged image"),
        (sized(5_000, 5_000), "is a damaged image"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_one_sentence(tmp_path, content, said):
    """Other kinds of file, formats that are not read, damaged, animated and huge images are refused."""
    with pytest.raises(UserError, match=said) as error:
        read(tmp_path, content)

    assert str(error.value).isprintable()
    assert PIXELS < 100_000_000


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    """A folder, a FIFO nobody writes to and a missing file: no wait, one sentence."""
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in ((".", "is no regular file"), ("pipe.png", "is no regular file"), ("none.png", "does not exist")):
        with pytest.raises(UserError, match=said):
            read_image(tmp_path / name)
