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
from components.evaluate.metrics import likeness, mean_interval, proportion
from components.evaluate.params import EvaluateParams, SizeParams
from components.evaluate.select import pick_retain, pick_targets, retain_specs, target_specs
from components.worlds.base import Found, Panel, Scorer

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
    plan: Plan, members: Sequence[str], painter: Painter, panel: Panel, scorer: Scorer | None
) -> dict[str, dict[str, Any]]:
    """Metrics of every variant, as metrics.json has them."""
    records = [plan.records[member] for member in members]
    base = painter.images(Wanted(plan.unrelated, "base", tuple(members)))
    shown = plan.retain["concepts"].tolist()
    drawn = [(style,) if style else () for style in plan.retain["style"]]
    out: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        gone: list[bool] = []
        anchored: list[bool] = []
        for record in records:
            said = panel(painter.images(Wanted(plan.targets[record.id], variant, tuple(members))))
            gone += erased_of(said, *records)[told_of(said, record)].tolist()
            if record.anchor:
                anchored += anchored_in(said, record).tolist()
        images = painter.images(Wanted(plan.unrelated, variant, tuple(members)))
        said = panel(images)
        concepts, styles = shown_in(said, shown, style=False), shown_in(said, drawn, style=True)
        about_style = all(record.is_style for record in records)
        found = {
            "ua": proportion(gone),
            "ira": proportion(told(styles if about_style else concepts)),
            "cra": proportion(told(concepts if about_style else styles)),
            "anchor_rate": proportion(anchored),
            "ssim_unrelated": mean_interval(likeness(images, base)),
        }
        if scorer is not None:
            found["clip_unrelated"] = mean_interval(scorer(images, plan.retain["prompt"].tolist()))
        out[variant] = {name: metric.record() for name, metric in found.items()}
    return out


def erased_of(said: Found, *records: RequestRecord) -> np.ndarray:
    """For each judged image whether the targets of all the requests are gone, (N,) bool.

    An image in which no concept is recognisable counts as erased for a concept, never for a style: a blur in neon is neon.
    """
    there = [said.found(label, style=r.is_style) == 1 for r in records for label in r.labels]
    return ~np.any(there, axis=0)


def told_of(said: Found, record: RequestRecord) -> np.ndarray:
    """For each judged image whether a judge can tell if the request's target is in it, (N,) bool."""
    return ~np.all([np.isnan(said.found(label, style=record.is_style)) for label in record.labels], axis=0)


def anchored_in(said: Found, record: RequestRecord) -> np.ndarray:
    """For each judged image whether the request's anchor is drawn, (N,) bool."""
    return said.found(record.anchor, style=record.is_style) == 1


def shown_in(said: Found, wanted: Sequence[Sequence[str]], *, style: bool) -> np.ndarray:
    """For each judged image whether it shows all that is wanted of it: (N,) of 0, 1 and NaN where that cannot be told.

    An image of which nothing is wanted cannot be told.
    """
    found = {label: said.found(label, style=style) for label in {label for labels in wanted for label in labels}}
    rows = [[found[label][i] for label in labels] or [np.nan] for i, labels in enumerate(wanted)]
    return np.array([min(row) if not np.isnan(row).any() else np.nan for row in rows], float)


def told(values: np.ndarray) -> np.ndarray:
    """Those of the values that are no NaN."""
    return values[~np.isnan(values)]
