"""Images whose content is known, on which a judge is measured: a world's own, or what the base draws of prompts.

N images, H and W pixels

A world with a `references.py` makes them for its own judge. For judges by kind, and for any other world, the base draws them, of the
target's prompts (shown), and of prompts about the anchor and the neighbours (absent). The base does not always draw what a prompt
says, so that the judge's sensitivity is underestimated there, and the corrected success rates are too high rather than too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from components.collect.record import RequestRecord
from components.collect.tables import where
from components.common.seeding import stream_seed
from components.evaluate.images import ImageSpec, Painter, Wanted
from components.evaluate.qualify import qualify
from components.purify.image import read_photo
from components.worlds.base import Panel
from components.worlds.params import JudgeParams
from components.worlds.references import KnownImages

Source = Literal["world", "base"]
"""Who makes the images."""
SHOWN, BESIDE, ELSE = ("target", "alias"), ("anchor", "neighbour"), ("retain",)
"""Roles of prompts: what the target is in, what is beside it, and what is shown where nothing is beside it."""


class Content(NamedTuple):
    """What makes images of known content."""

    own: KnownImages | None
    """The world's own; None: the base draws them."""
    painter: Painter
    table: pd.DataFrame
    """Evaluation prompts of all requests."""
    judging: JudgeParams

    @property
    def source(self) -> Source:
        """Who makes the images."""
        return "base" if self.own is None else "world"

    def images(self, record: RequestRecord, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(`count` images with a request's target, `count` without), each (N, H, W, 3) uint8; none where there is no prompt."""
        if self.own is not None:
            alike = tuple(label for label in record.avoid if label not in record.labels)
            return self.own(record.labels, alike, record.is_style, count, seed)
        return self._drawn(record.id, SHOWN, count, seed), self._drawn(record.id, BESIDE, count, seed)

    def doubt(self, record: RequestRecord, panel: Panel, count: int, seed: int) -> str:
        """Why what the judge says of a request's target is no evidence; empty if it is.

        A world's own images measure the judge, and success rates are corrected by that; on the base's the judge must qualify.
        """
        if self.own is not None:
            return ""
        shown, absent = self.images(record, count, seed)
        return qualify(record, shown, absent[:0], absent, panel, self.judging, seed=seed).target

    def _drawn(self, request: str, roles: Sequence[str], count: int, seed: int) -> np.ndarray:
        rows = where(self.table, (self.table["request"] == request) & self.table["role"].isin(roles))
        prompts = rows["prompt"].drop_duplicates().tolist()
        if not prompts:
            return self._drawn(request, ELSE, count, seed) if roles == BESIDE else np.zeros((0, 8, 8, 3), np.uint8)
        specs = tuple(
            ImageSpec(prompts[i % len(prompts)], stream_seed(seed, "known", request, roles[0], i) % 2**31)
            for i in range(count)
        )
        return self.painter.images(Wanted(specs, "base", ()))


def reference_images(record: RequestRecord, side: int) -> np.ndarray | None:
    """The images that a request brings along, (N, side, side, 3) uint8; None without; `UserError` for one that cannot be read."""
    paths = record.request.reference_images
    return np.stack([read_photo(path, side).pixels for path in paths]) if paths else None
