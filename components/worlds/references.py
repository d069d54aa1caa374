"""Images of known content, on which judges are measured: `references.py` in a world's folder has `known_images`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from components.common.errors import UserError
from components.worlds.base import WorldJudge

KnownImages = Callable[[Sequence[str], Sequence[str], bool, int, int], tuple[np.ndarray, np.ndarray]]
"""(labels of the target, labels that are easily mistaken for it, whether it is a style, count, seed) to
(`count` images with the target, `count` without), each (N, H, W, 3) uint8."""


def own_known_images(world: str) -> KnownImages | None:
    """What makes images of known content for a world; None for a world without a references.py, whose base must draw them."""
    return _module(world).known_images if _exists(world) else None


def load_second_judge(world: str, folder: Path) -> WorldJudge:
    """A judge of another architecture than the world's own; `UserError` where the world has none."""
    module = _module(world)
    if not hasattr(module, "load_second_judge"):
        raise UserError(f"the world {world} has no second judge", "take attack.second_judge out of params.yaml")
    return module.load_second_judge(folder)


def _exists(world: str) -> bool:
    folder = f"components.worlds.{world}"
    return world.isidentifier() and find_spec(folder) is not None and find_spec(f"{folder}.references") is not None


def _module(world: str) -> Any:  # noqa: ANN401 - a module, whose functions are known by name
    if not _exists(world):
        raise UserError(
            f"the world {world!r} has no second judge: it has no references.py",
            "take attack.second_judge and probe.second_judge out of params.yaml, and list two judges by kind instead",
        )
    return import_module(f"components.worlds.{world}.references")
