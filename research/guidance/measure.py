"""Measures adapters alone: no prompt is edited here.

ua, anchor_rate      of images about a target, which must show none of the acting requests' targets
neighbours           share of images about neighbours in which the neighbour is found; a neighbour that another acting
                     request erases does not count
ira, cra             of images of unrelated prompts, as components/evaluate/metrics.py defines them
concepts_change      unrelated concepts found, less the base's, prompt by prompt, with the interval of the pairs;
                     `concepts_change_one` counts only prompts that show one concept
ssim_unrelated       likeness of unrelated images to the base's; `ssim_ordinary` is of everyday English
uncond_drift         relative change of the unconditional output, by timestep
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from components.collect.record import RequestRecord
from components.collect.tables import where
from components.common.seeding import stream_seed
from components.common.words import mentions
from components.evaluate.drift import measure_drift
from components.evaluate.images import ImageSpec, Painter, Wanted
from components.evaluate.measure import anchored_in, erased_of
from components.evaluate.metrics import Metric, likeness, mean_interval, paired_change, proportion, rate_of
from components.evaluate.page import grid
from components.evaluate.select import pick_targets, retain_specs, target_specs
from components.worlds.base import Judgement, World, WorldJudge
from research.guidance.groups import Group

ORDINARY = 64
"""Phrases of everyday English of which images are compared."""


class Prompts(NamedTuple):
    """What adapters are measured on."""

    table: pd.DataFrame
    """Prompts of the evaluation split, of all requests."""
    retain: pd.DataFrame
    """Unrelated prompts."""
    ordinary: list[str]
    """Phrases of everyday English that name no target."""
    prompts: int
    """Prompts about each target, and about its neighbours."""
    seeds: int
    """Images of each of these."""
    seed: int


def ordinary_phrases(world: World, records: Mapping[str, RequestRecord], *, seed: int) -> list[str]:
    """`ORDINARY` phrases of everyday English that contain no target's name."""
    names = tuple(name for record in records.values() for name in record.names["evaluate"])
    phrases = world.benign(4 * ORDINARY, split="evaluate", seed=stream_seed(seed, "benign report") % 2**31)
    return [phrase for phrase in dict.fromkeys(phrases) if not mentions(phrase, names)][:ORDINARY]


def measure_adapters(
    group: Group, records: Mapping[str, RequestRecord], asked: Prompts, painter: Painter, judge: WorldJudge
) -> tuple[dict[str, Any], np.ndarray]:
    """(metrics of the adapters that act together, rows of images before and after for each of their targets)."""
    members, seed = [records[name] for name in group.requests], asked.seed

    def draw(specs: Sequence[ImageSpec], *, adapted: bool) -> np.ndarray:
        wanted = (group.variant, group.adapters) if adapted else ("base", ())
        return painter.images(Wanted(tuple(specs), *wanted))

    gone: dict[bool, list[bool]] = {False: [], True: []}
    near: dict[bool, list[bool]] = {False: [], True: []}
    anchors: list[bool] = []
    strips = []
    for record in members:
        targets = target_specs(pick_targets(asked.table, record.id, asked.prompts, seed), record.id, asked.seeds, seed)
        beside = pick_neighbours(asked.table, record.id, members, asked.prompts, seed)
        around = neighbour_specs(beside, record.id, asked.seeds, seed)
        for adapted in (False, True):
            images = draw(targets, adapted=adapted)
            strips.append(images[:: asked.seeds][:12])
            said = judge(images)
            gone[adapted] += erased_of(said, *members).tolist()
            if adapted and record.anchor:
                anchors += anchored_in(said, record).tolist()
            if around:
                rows = beside.loc[beside.index.repeat(asked.seeds)]
                near[adapted] += shown_in(rows, judge(draw(around, adapted=adapted)), style=record.is_style)
    out: dict[str, Any] = {
        "ua_base": proportion(gone[False]),
        "ua": proportion(gone[True]),
        "anchor_rate": proportion(anchors),
        "neighbours_base": proportion(near[False]),
        "neighbours": proportion(near[True]),
    }
    specs, about_style = retain_specs(asked.retain, seed), all(record.is_style for record in members)
    before, after = draw(specs, adapted=False), draw(specs, adapted=True)
    out |= compare_retain(asked.retain, before, after, judge, about_style=about_style)
    plain = [ImageSpec(text, stream_seed(seed, "ordinary", i) % 2**31) for i, text in enumerate(asked.ordinary)]
    out["ssim_ordinary"] = mean_interval(likeness(draw(plain, adapted=True), draw(plain, adapted=False)))
    out["uncond_drift"] = {}  # a gated adapter never touches the empty prompt
    if group.variant != "gated":
        prompts = asked.retain["prompt"].tolist()
        (out["uncond_drift"],) = measure_drift(painter.eraser, prompts, [group.adapters], seed=seed)
    return out, grid(strips[:8])


def compare_retain(
    retain: pd.DataFrame, before: np.ndarray, after: np.ndarray, judge: WorldJudge, *, about_style: bool
) -> dict[str, Metric]:
    """What changes in images (R, H, W, 3) of R unrelated prompts, the rows of `retain`."""
    concepts = [frozenset(shown) for shown in retain["concepts"]]
    found, styles = [], []
    for images in (before, after):
        said = judge(images)
        found.append(rate_of(said.present(), concepts))
        styles.append(np.array(said.style()) == retain["style"].to_numpy())
    one = np.array([len(shown) == 1 for shown in concepts])
    out = {}
    for suffix, concept, style in zip(("_base", ""), found, styles, strict=True):
        domains = (style, concept) if about_style else (concept, style)
        out |= {f"ira{suffix}": proportion(domains[0]), f"cra{suffix}": proportion(domains[1])}
    return out | {
        "concepts_change": paired_change(*found),
        "concepts_change_one": paired_change(*(each[one] for each in found)),
        "ssim_unrelated": mean_interval(likeness(after, before)),
    }


def pick_neighbours(
    table: pd.DataFrame, request_id: str, members: Sequence[RequestRecord], count: int, seed: int
) -> pd.DataFrame:
    """At most `count` prompts about neighbours of a request, none of which shows what a member erases."""
    erased = {label for record in members for label in record.labels}
    free = table["concepts"].map(lambda shown: not erased & set(shown)) & ~table["style"].isin(list(erased))
    rows = where(table, (table["request"] == request_id) & (table["role"] == "neighbour") & free)
    return rows.sample(min(count, len(rows)), random_state=seed)


def neighbour_specs(beside: pd.DataFrame, request_id: str, seeds: int, seed: int) -> tuple[ImageSpec, ...]:
    """`seeds` images of each prompt about a neighbour."""
    return tuple(
        ImageSpec(prompt, stream_seed(seed, request_id, "near", i, s) % 2**31)
        for i, prompt in enumerate(beside["prompt"])
        for s in range(seeds)
    )


def shown_in(rows: pd.DataFrame, said: Judgement, *, style: bool) -> list[bool]:
    """For each judged image whether it shows what its row says: its style, or its concepts."""
    if style:
        return [found == wanted for found, wanted in zip(said.style(), rows["style"], strict=True)]
    return rate_of(said.present(), [frozenset(shown) for shown in rows["concepts"]]).tolist()
