"""Measures purification: renders that the base never saw go up to noise with the base and down with the erased model.

The prompt is the target's own, so that a model that still knew the target would draw it again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from components.worlds.openmoji.captions import fill
from tqdm import tqdm

from components.collect.concepts import known_targets
from components.common.sections import Params
from components.common.seeding import stream_seed
from components.evaluate.images import Studio
from components.evaluate.metrics import Metric, mean_interval, proportion
from components.evaluate.page import grid
from components.evaluate.stage import anchored_in, erased_of
from components.purify.purify import psnr, purify
from components.requests.requests import Request
from components.worlds.openmoji import world
from components.worlds.openmoji.judge import Judge, Judgement
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, draw


class Purification(NamedTuple):
    """What became of a request's images."""

    metrics: dict[str, Metric]
    picture: np.ndarray
    """Rows: originals, the base's reconstruction, resampled by the base alone, by the erased model, by the base as the anchor."""


def held_out(request: Request, count: int) -> list[Scene]:
    """`count` scenes that show the target: a concept in every style in turn, a style on concepts in turn."""
    rng = np.random.default_rng(stream_seed(0, "purification", request.target))
    targets = known_targets(request)
    if request.kind == "style":
        shown = rng.choice(world.CONCEPT_NAMES, count, replace=False)
        return [Scene((str(c),), targets[0], HELD_OUT_SEEDS + i) for i, c in enumerate(shown)]
    return [
        Scene((targets[i % len(targets)],), world.STYLE_NAMES[i % len(world.STYLES)], HELD_OUT_SEEDS + i)
        for i in range(count)
    ]


def anchored(scene: Scene, request: Request) -> Scene:
    """The scene with the anchor in the target's place; the scene itself if there is none."""
    if not request.anchor:
        return scene
    return (
        scene._replace(style=request.anchor) if request.kind == "style" else scene._replace(concepts=(request.anchor,))
    )


def prompt_of(scene: Scene) -> str:
    """What the scene shows, concept and style."""
    plain = scene.style == world.DEFAULT_STYLE
    return fill("{c}" if plain else "{c} in {s} style", scene.concepts, "" if plain else scene.style)


def measure_purification(
    studio: Studio, judge: Judge, name: str, request: Request, params: Params, *, count: int
) -> Purification:
    """Purifies `count` renders of the target with adapter `name`, and for comparison with none.

    `gone` and `anchored` are what the judge finds afterwards, `gone_base` what resampling alone does; `kept` is the other half of
    the scene, its style or for a style its concept. `anchored_base` and `kept_base` are of the base prompted with the anchor, as a
    perfect adapter would have it. `loop` is the PSNR, in decibels, of up and down with the base.
    """
    pipe, scenes = studio.pipe, held_out(request, count)
    scale = params.evaluate.guidance_scale
    rows: dict[str, list[np.ndarray]] = {"original": [], "loop": [], "base": [], "erased": [], "ideal": []}
    loop = []
    for scene in tqdm(scenes, desc=f"purify {request.target}", unit="image", mininterval=5):
        image, prompt, other = draw(scene), prompt_of(scene), prompt_of(anchored(scene, request))
        base, erased = (purify(pipe, image, acting, prompt=prompt, guidance_scale=scale) for acting in ([], [name]))
        ideal = base if other == prompt else purify(pipe, image, [], prompt=other, guidance_scale=scale)
        loop.append(psnr(base.reconstruction, base.autoencoder))
        shown = (image, base.reconstruction, base.image, erased.image, ideal.image)
        for row, picture in zip(rows.values(), shown, strict=True):
            row.append(picture)
    pictures = {key: np.stack(images) for key, images in rows.items()}
    before, after, ideal = (judge(pictures[key]) for key in ("base", "erased", "ideal"))

    def kept(said: Judgement) -> list[bool]:
        if request.kind == "style":
            return [s.concepts[0] in found for s, found in zip(scenes, said.present(), strict=True)]
        return [s.style == found for s, found in zip(scenes, said.style(), strict=True)]

    metrics = {
        "gone_base": proportion(erased_of(before, request)),
        "gone": proportion(erased_of(after, request)),
        "anchored_base": proportion(anchored_in(ideal, request) if request.anchor else []),
        "anchored": proportion(anchored_in(after, request) if request.anchor else []),
        "kept_base": proportion(kept(ideal)),
        "kept": proportion(kept(after)),
        "loop": mean_interval(loop),
    }
    return Purification(metrics, grid(list(pictures.values())))
