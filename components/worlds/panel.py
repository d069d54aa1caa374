"""Everyone who judges an evaluation's images: for each name the first judge that knows it, and those behind for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from components.common.errors import UserError
from components.common.files import key_of
from components.worlds.base import PRESENT, Judge, Panel


class Findings(NamedTuple):
    """What judges found of K names in N images."""

    names: tuple[str, ...]
    chance: np.ndarray
    """(N, K) probabilities; NaN where an image cannot be judged."""

    def found(self, label: str, *, style: bool) -> np.ndarray:  # noqa: ARG002 - these judges tell styles as they tell things
        """For each image whether it shows the label, (N,) of 0, 1 and NaN; all NaN for a name that nobody knows."""
        if label not in self.names:
            return np.full(len(self.chance), np.nan)
        chance = self.chance[:, self.names.index(label)]
        return np.where(np.isnan(chance), np.nan, chance >= PRESENT)


class JudgePanel:
    """Judges by name; none is asked about a name that an earlier one knows."""

    def __init__(self, judges: Mapping[str, Sequence[Judge]]) -> None:
        self._judges = {name: tuple(listed) for name, listed in judges.items() if listed}
        first = {name: listed[0] for name, listed in self._judges.items()}
        self.digest = key_of({name: judge.digest for name, judge in first.items()})
        used = list({id(judge): judge for listed in self._judges.values() for judge in listed}.values())
        self.sizes = max((j.sizes[0] for j in used), default=1), min((j.sizes[1] for j in used), default=2**31)
        self._asked: list[tuple[Judge, tuple[str, ...]]] = [
            (judge, tuple(name for name, own in first.items() if own is judge)) for judge in used
        ]

    def judges_of(self, name: str) -> tuple[Judge, ...]:
        """Those that know a name, the one that judges it first."""
        return self._judges.get(name, ())

    def __call__(self, images: np.ndarray) -> Findings:
        """Judges (N, H, W, 3) uint8 images."""
        asked = [(judge, names) for judge, names in self._asked if names]
        parts = [judge.present(images, names) for judge, names in asked]
        chance = np.concatenate(parts, 1) if parts else np.zeros((len(images), 0))
        return Findings(tuple(name for _, names in asked for name in names), chance)


def check_sizes(panel: Panel, side: int) -> None:
    """`UserError` unless every judge was made for images of `side` pixels."""
    low, high = panel.sizes
    if not low <= side <= high:
        raise UserError(
            f"the judges take images of {low} to {high} pixels, but the base draws {side}",
            "use a judge made for that size, or set its sizes in params.yaml if you know that it tells them",
        )
