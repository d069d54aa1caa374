"""Measures purification: renders that the base never saw go up to noise with the base and down with the erased model.

The prompt is the target's own, so that a model that still knew the target would draw it again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from components.collect.record import RequestRecord
from components.common.seeding import stream_seed
from components.common.variants import Variant
from components.eraser import Eraser
from components.evaluate.measure import anchored_in, erased_of
from components.evaluate.metrics import Metric, mean_interval, proportion
from components.evaluate.page import grid
from components.purify.purify import Purified, psnr, purify
from components.worlds.base import Judgement, WorldJudge
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, draw
from components.worlds.openmoji.world import WORLD
from components.worlds.templated import fill


class Purification(NamedTuple):
    """What became of the images of one request."""

    metrics: dict[str, Metric]
    picture: np.ndarray
    """Rows: originals, reconstructed by the base, resampled by the base, by the erased model, by the base as the anchor."""


def held_out(record: RequestRecord, count: int) -> list[Scene]:
    """`count` scenes that show the target: a concept in every style in turn, or a style on random concepts."""
    labels = record.labels
    if record.is_style:
        rng = np.random.default_rng(stream_seed(0, "purification", record.request.target))
        shown = rng.choice(WORLD.concept_names, count, replace=False)
        return [Scene((str(c),), labels[0], HELD_OUT_SEEDS + i) for i, c in enumerate(shown)]
    styles = WORLD.style_names
    return [Scene((labels[i % len(labels)],), styles[i % len(styles)], HELD_OUT_SEEDS + i) for i in range(count)]


def anchored(scene: Scene, record: RequestRecord) -> Scene:
    """The scene with the anchor instead of the target; the scene itself if there is no anchor."""
    if not record.anchor:
        return scene
    return scene._replace(style=record.anchor) if record.is_style else scene._replace(concepts=(record.anchor,))


def prompt_of(scene: Scene) -> str:
    """What the scene shows: its concept and its style."""
    plain = scene.style == WORLD.default_style
    return fill("{c}" if plain else "{c} in {s} style", scene.concepts, "" if plain else scene.style)


def measure_purification(eraser: Eraser, judge: WorldJudge, record: RequestRecord, *, count: int) -> Purification:
    """Purifies `count` renders of the target with the request's adapter, and for comparison with the base alone.

    ua           the judge no longer finds the target; `ua_base` after resampling with the base
    anchor_rate  the judge finds the anchor
    cra          the judge finds the other half of the scene: its style, or for a style its concept
    loop_psnr    PSNR in decibels of inverting and resampling with the base, against the autoencoder alone

    `anchor_rate_base` and `cra_base` are of the base prompted with the anchor, as a perfect adapter would draw.
    """
    scenes = held_out(record, count)

    def purified(image: np.ndarray, prompt: str, variant: Variant) -> Purified:
        return purify(eraser, image, eraser.read([prompt], variant=variant, requests=[record.id]))

    rows: list[list[np.ndarray]] = []
    loop = []
    for scene in tqdm(scenes, desc=f"purify {record.request.target}", unit="image", mininterval=5):
        image, prompt, other = draw(scene), prompt_of(scene), prompt_of(anchored(scene, record))
        base, adapted = purified(image, prompt, "base"), purified(image, prompt, "guidance")
        ideal = base if other == prompt else purified(image, other, "base")
        loop.append(psnr(base.reconstruction, base.autoencoder))
        rows.append([image, base.reconstruction, base.image, adapted.image, ideal.image])
    pictures = [np.stack(column) for column in zip(*rows, strict=True)]
    before, after, ideal = (judge(images) for images in pictures[2:])

    def rest(said: Judgement) -> list[bool]:
        if record.is_style:
            return [s.concepts[0] in found for s, found in zip(scenes, said.present(), strict=True)]
        return [s.style == found for s, found in zip(scenes, said.style(), strict=True)]

    metrics = {
        "ua_base": proportion(erased_of(before, record)),
        "ua": proportion(erased_of(after, record)),
        "anchor_rate_base": proportion(anchored_in(ideal, record) if record.anchor else []),
        "anchor_rate": proportion(anchored_in(after, record) if record.anchor else []),
        "cra_base": proportion(rest(ideal)),
        "cra": proportion(rest(after)),
        "loop_psnr": mean_interval(loop),
    }
    return Purification(metrics, grid(pictures))
