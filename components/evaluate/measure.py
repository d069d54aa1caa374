"""What the variants draw: UA, IRA, CRA, anchor rate, CLIP score and SSIM, scope by scope.

A scope is one request, or `joint`: all of them at once, where an image of any target counts as erased only if it shows none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from components.collect.record import RequestRecord
from components.common.variants import VARIANTS
from components.evaluate.images import ImageSpec, Painter, Wanted
from components.evaluate.metrics import erased, likeness, mean_interval, proportion, rate_of
from components.evaluate.params import EvaluateParams, SizeParams
from components.evaluate.select import pick_retain, pick_targets, retain_specs, target_specs
from components.worlds.base import Judge, Judgement, Scorer

JOINT = "joint"


class Plan(NamedTuple):
    """All that an evaluation draws."""

    records: Mapping[str, RequestRecord]
    targets: dict[str, tuple[ImageSpec, ...]]
    """By request."""
    retain: pd.DataFrame
    """Unrelated prompts, one a row."""
    unrelated: tuple[ImageSpec, ...]
    """An image of each of them."""

    @property
    def scopes(self) -> dict[str, tuple[str, ...]]:
        """The requests of each scope."""
        return {request_id: (request_id,) for request_id in self.records} | {JOINT: tuple(self.records)}

    def wanted(self) -> list[Wanted]:
        """Every image of every scope and variant."""
        return [
            Wanted(specs, variant, members)
            for members in self.scopes.values()
            for variant in VARIANTS
            for specs in (*(self.targets[member] for member in members), self.unrelated)
        ]


def make_plan(
    records: Mapping[str, RequestRecord], table: pd.DataFrame, params: EvaluateParams, size: SizeParams
) -> Plan:
    """Picks prompts and seeds from the evaluation split of `table`."""
    chosen = {i: pick_targets(table, i, size.templates, params.seed) for i in records}
    retain = pick_retain(table, records, size.retain, params.seed)
    targets = {i: target_specs(chosen[i], i, size.seeds, params.seed) for i in records}
    return Plan(records, targets, retain, retain_specs(retain, params.seed))


def measure_scope(
    plan: Plan, members: Sequence[str], painter: Painter, judge: Judge, scorer: Scorer | None
) -> dict[str, dict[str, Any]]:
    """Metrics of every variant, as metrics.json has them."""
    records = [plan.records[member] for member in members]
    base = painter.images(Wanted(plan.unrelated, "base", tuple(members)))
    shown = [frozenset(concepts) for concepts in plan.retain["concepts"]]
    out: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        gone: list[bool] = []
        anchored: list[bool] = []
        for record in records:
            said = judge(painter.images(Wanted(plan.targets[record.id], variant, tuple(members))))
            gone += erased_of(said, *records).tolist()
            if record.anchor:
                anchored += anchored_in(said, record).tolist()
        images = painter.images(Wanted(plan.unrelated, variant, tuple(members)))
        said = judge(images)
        concepts = rate_of(said.present(), shown)
        styles = np.array([found == wanted for found, wanted in zip(said.style(), plan.retain["style"], strict=True)])
        about_style = all(record.is_style for record in records)
        found = {
            "ua": proportion(gone),
            "ira": proportion(styles if about_style else concepts),
            "cra": proportion(concepts if about_style else styles),
            "anchor_rate": proportion(anchored),
            "ssim_unrelated": mean_interval(likeness(images, base)),
        }
        if scorer is not None:
            found["clip_unrelated"] = mean_interval(scorer(images, plan.retain["prompt"].tolist()))
        out[variant] = {name: metric.record() for name, metric in found.items()}
    return out


def erased_of(said: Judgement, *records: RequestRecord) -> np.ndarray:
    """For each judged image whether the targets of all the requests are gone, (N,) bool."""
    return np.all([erased(said.present(), said.style(), r.labels, style=r.is_style) for r in records], axis=0)


def anchored_in(said: Judgement, record: RequestRecord) -> np.ndarray:
    """For each judged image whether the request's anchor is drawn, (N,) bool."""
    if record.is_style:
        return np.array([style == record.anchor for style in said.style()])
    return np.array([record.anchor in found for found in said.present()])
