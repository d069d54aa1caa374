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


def load_known_images(world: str) -> KnownImages:
    """What makes images of known content for a world; `UserError` for a world without, whose judge cannot be measured."""
    return _module(world).known_images


def load_second_judge(world: str, folder: Path) -> WorldJudge:
    """A judge of another architecture than the world's own; `UserError` where the world has none."""
    module = _module(world)
    if not hasattr(module, "load_second_judge"):
        raise UserError(f"the world {world} has no second judge", "take attack.second_judge out of params.yaml")
    return module.load_second_judge(folder)


def _module(world: str) -> Any:  # noqa: ANN401 - a module, whose functions are known by name
    name = f"components.worlds.{world}.references"
    if not world.isidentifier() or find_spec(f"components.worlds.{world}") is None or find_spec(name) is None:
        raise UserError(
            f"the judge of the world {world!r} was never measured: the world has no references.py",
            "add one that gives images of known content",
        )
    return import_module(name)
