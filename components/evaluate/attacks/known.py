"""How often a judge is right on images of known content, distorted as images are that come out of attacks.

N images, H and W pixels
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from components.collect.record import RequestRecord
from components.evaluate.attacks.correction import Count, Known
from components.evaluate.measure import erased_of
from components.worlds.base import Panel

Distortion = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = image + rng.normal(0, rng.uniform(8, 30), image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    radius = rng.uniform(0.006, 0.022) * image.shape[0]
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "jpeg", quality=int(rng.integers(12, 60)))
    return np.asarray(Image.open(out).convert("RGB"))


def _recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mixed = image.astype(np.float32) @ (np.eye(3) + rng.uniform(-0.12, 0.12, (3, 3))) + rng.uniform(-25, 25, 3)
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def _cut(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out, (height, width) = image.copy(), image.shape[:2]
    tall, wide = (int(side * rng.uniform(0.12, 0.25)) for side in (height, width))
    top, left = int(rng.integers(height - tall)), int(rng.integers(width - wide))
    out[top : top + tall, left : left + wide] = rng.integers(0, 256, 3)
    return out


DISTORTIONS: dict[str, Distortion] = {
    "none": lambda image, _: image,
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "recolour": _recolour,
    "cut": _cut,
}


class Examination(NamedTuple):
    """What a judge knows of one target: over all distortions, and by each."""

    known: Known
    by_distortion: dict[str, Known]

    def record(self) -> dict[str, Any]:
        """The form of results.json."""
        listed = {name: _plain(known) for name, known in self.by_distortion.items()}
        return {**_plain(self.known), "by_distortion": listed}


def _plain(known: Known) -> dict[str, Any]:
    """The shares, null of nothing, as where there are fewer images than distortions."""
    sensitivity, specificity = (count.rate if count.n else None for count in known)
    return {"sensitivity": sensitivity, "specificity": specificity, "n": [count.n for count in known]}


def examine(
    judge: Panel, record: RequestRecord, shown: np.ndarray, absent: np.ndarray, *, seed: int = 0
) -> Examination:
    """Measures `judge` on images (N, H, W, 3) with the target and on others without it; each is distorted in one way, in turn."""
    rng, names = np.random.default_rng(seed), list(DISTORTIONS)
    found = {
        kind: ~erased_of(
            judge(np.stack([DISTORTIONS[names[i % len(names)]](x, rng) for i, x in enumerate(images)])), record
        )
        for kind, images in (("shown", shown), ("absent", absent))
    }
    every = {name: slice(i, None, len(names)) for i, name in enumerate(names)}

    def count(part: slice) -> Known:
        hit, miss = found["shown"][part], ~found["absent"][part]
        return Known(Count(int(hit.sum()), len(hit)), Count(int(miss.sum()), len(miss)))

    return Examination(count(slice(None)), {name: count(part) for name, part in every.items()})
