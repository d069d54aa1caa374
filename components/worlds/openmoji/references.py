"""Images of the embedded world whose content is known, since they are renders: of seeds that neither judge has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.worlds.openmoji.judge2 import load_second_judge
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, draw
from components.worlds.openmoji.world import WORLD

__all__ = ["known_images", "load_second_judge"]
PAIRS = 0.25
"""Part of the images that show two things."""


def known_images(
    labels: Sequence[str],
    alike: Sequence[str],
    style: bool,  # noqa: FBT001 - as the protocol has it
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(`count` renders with the target, `count` without), (N, 64, 64, 3) uint8; half of those without show what is mistaken for it."""
    rng = np.random.default_rng(seed)
    names = WORLD.style_names if style else WORLD.concept_names
    others = [name for name in names if name not in labels]
    near = [name for name in alike if name in others] or others

    def scene(target: str, i: int) -> Scene:
        concepts = list(WORLD.concept_names if style else others)
        company = [c for c in concepts if c != target]
        first = str(rng.choice(concepts)) if style else target
        second = [str(rng.choice([c for c in company if c != first]))] if rng.random() < PAIRS else []
        shown = [first, *second] if rng.random() < 0.5 else [*second, first]
        return Scene(
            tuple(shown), target if style else str(rng.choice(WORLD.style_names)), HELD_OUT_SEEDS + 10_000 * seed + i
        )

    shown = [scene(str(rng.choice(list(labels))), i) for i in range(count)]
    absent = [scene(str(rng.choice(near if i % 2 else others)), count + i) for i in range(count)]
    return np.stack([draw(s) for s in shown]), np.stack([draw(s) for s in absent])
