"""Draws the images of an evaluation, each of them once.

An image is determined by the base, the conditioning, the seed and the adapters that act. The conditioning of a prompt is
determined by the requests that flag it: what none flags is the stock encoder's to the bit. So images are kept by prompt,
flags, acting adapters and seed, and what several variants or requests share is drawn for the first that asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from components.common.variants import Variant
from components.diffusion.conditioning import Conditioning, joined
from components.eraser import Erased, Eraser
from components.filter.encoder import Decision


class ImageSpec(NamedTuple):
    """One image to draw."""

    prompt: str
    seed: int


class Wanted(NamedTuple):
    """Images of one variant, with the filters and adapters of some requests."""

    specs: tuple[ImageSpec, ...]
    variant: Variant
    requests: tuple[str, ...]


class Key(NamedTuple):
    """What determines an image of one base."""

    adapters: tuple[str, ...]
    everywhere: bool
    """Whether the adapters act on the empty prompt too; without adapters it makes no difference and is False."""
    flagged: tuple[str, ...]
    prompt: str
    seed: int


class Painter:
    """An eraser, and every image that it has drawn so far."""

    def __init__(self, eraser: Eraser, *, batch: int) -> None:
        self.eraser, self.batch = eraser, batch
        self.asked = 0
        """Images that were asked for, drawn or not."""
        self._drawn: dict[Key, np.ndarray] = {}

    @property
    def drawn(self) -> int:
        """Images that were drawn."""
        return len(self._drawn)

    def images(self, wanted: Wanted) -> np.ndarray:
        """The images as (N, H, W, 3) uint8; those that were not drawn yet are."""
        self.paint([wanted])
        keys = keys_of(wanted, self._read(wanted))
        return np.stack([self._drawn[key] for key in keys])

    def paint(self, listed: Sequence[Wanted]) -> None:
        """Draws what is missing of all that is listed, with a bar that counts images."""
        missing: dict[Key, Conditioning] = {}
        for wanted in listed:
            erased = self._read(wanted)
            self.asked += len(wanted.specs)
            for row, key in enumerate(keys_of(wanted, erased)):
                if key not in self._drawn:
                    missing.setdefault(key, erased.cond.rows([row]))
        with tqdm(total=len(missing), desc="images", unit="image", mininterval=2, disable=not missing) as bar:
            for _, group in groupby(sorted(missing), key=lambda key: (key.adapters, key.everywhere)):
                keys = list(group)
                together = self._together(keys, joined([missing[key] for key in keys]))
                for rows, images in self.eraser.paint(together, [key.seed for key in keys], batch=self.batch):
                    self._drawn |= {keys[row]: image for row, image in zip(rows, images, strict=True)}
                    bar.update(len(rows))

    def _read(self, wanted: Wanted) -> Erased:
        return self.eraser.read(
            [spec.prompt for spec in wanted.specs], variant=wanted.variant, requests=wanted.requests
        )

    def _together(self, keys: Sequence[Key], cond: Conditioning) -> Erased:
        """Prompts on which the same adapters act, as one."""
        none, everyone = torch.zeros(len(keys), 0), torch.ones(len(keys), dtype=torch.bool)
        return Erased(
            tuple(key.prompt for key in keys),
            cond,
            self.eraser.read([""], variant="base").uncond,
            Decision((), none, none.bool()),
            dict.fromkeys(keys[0].adapters, everyone),
            keys[0].everywhere,
        )


def keys_of(wanted: Wanted, erased: Erased) -> list[Key]:
    """What determines each of the images that are wanted."""
    return [
        Key(adapters, erased.everywhere and bool(adapters), flagged, spec.prompt, spec.seed)
        for adapters, flagged, spec in zip(erased.adapters(), erased.flagged(), wanted.specs, strict=True)
    ]
