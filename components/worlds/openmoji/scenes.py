"""The rendered training set of the base model: a fixed list of scenes and a memory-mapped array of their images.

    N scenes, H = W = 64 pixels, C = 3 channels

A scene names what is in an image; captions are drawn afresh from it at every step, so a scene has no text of its own.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from components.common.files import digest
from components.worlds.openmoji import render as renderer
from components.worlds.openmoji.render import SIZE, render, render_pair
from components.worlds.openmoji.world import DRAWN_FROM, WORLD
from components.worlds.templated import Shown

HELD_OUT_SEEDS = 1_000_000
"""Render seeds from here on are never in a training set: judge and base are measured on them."""


class Scene(NamedTuple):
    """What one image shows."""

    concepts: tuple[str, ...]
    """One name, or two from left to right."""
    style: str
    seed: int

    @property
    def shown(self) -> Shown:
        """What a caption speaks of."""
        return Shown(self.concepts, self.style)


def draw(scene: Scene) -> np.ndarray:
    """The image of a scene, (64, 64, 3) uint8."""
    if len(scene.concepts) == 1:
        return render(scene.concepts[0], scene.style, scene.seed)
    left, right = scene.concepts
    return render_pair(left, right, scene.style, scene.seed)


def scenes(*, singles: int, pairs: int, seed: int) -> list[Scene]:
    """`singles` scenes of each concept and style, then `pairs` scenes of two different concepts; reproducible."""
    out = [
        Scene((c,), s, seed + i * len(WORLD.concepts) + k)
        for i in range(singles)
        for k, c in enumerate(WORLD.concept_names)
        for s in WORLD.style_names
    ]
    rng = np.random.default_rng(seed)
    for i in range(pairs):
        left, right = rng.choice(len(WORLD.concepts), size=2, replace=False).tolist()
        names = (WORLD.concept_names[left], WORLD.concept_names[right])
        out.append(Scene(names, WORLD.style_names[i % len(WORLD.styles)], seed + i))
    if out and max(s.seed for s in out) >= HELD_OUT_SEEDS > seed:
        raise AssertionError("training scenes run into the held-out render seeds")
    return out


def keyed(folder: Path, name: str, *made_from: object) -> Path:
    """The .npy file that caches what was computed from `made_from`: other facts give another file."""
    return folder / f"{name}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]}.npy"


def render_all(listed: list[Scene], folder: Path, *, workers: int = 2) -> np.ndarray:
    """Renders every scene, once, into a file in `folder`; returns it memory-mapped, (N, 64, 64, 3) uint8."""
    drawn_by = [digest(Path(file)) for file in (str(renderer.__file__), DRAWN_FROM)]
    path = keyed(folder, "images", listed, *drawn_by)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        shape = (len(listed), SIZE, SIZE, 3)
        images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        with ProcessPoolExecutor(workers) as pool:
            drawn = pool.map(draw, listed, chunksize=256)
            for i, image in enumerate(tqdm(drawn, total=len(listed), desc="render", unit="image", mininterval=5)):
                images[i] = image
        images.flush()
        partial.rename(path)
    return np.load(path, mmap_mode="r")
