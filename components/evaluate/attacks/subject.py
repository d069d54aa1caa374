"""What is attacked and probed: the eraser of the working tree with its judges, and the digests of all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from components.collect.record import RequestRecord, read_prompts, read_records
from components.common.closure import code_of
from components.common.errors import UserError
from components.common.files import SIDECAR, digest, key_of
from components.common.paths import CONCEPTS, FILTER, GUIDANCE
from components.common.sections import read_section
from components.diffusion.folder import base_digest, check_folder
from components.diffusion.geometry import read_geometry
from components.diffusion.params import BaseParams
from components.eraser import Eraser
from components.evaluate.attacks.attempts import Target, read_target
from components.evaluate.attacks.campaign import FIRST, SECOND
from components.evaluate.attacks.content import Content, reference_images
from components.evaluate.attacks.known import Examination, examine
from components.evaluate.images import Painter
from components.evaluate.qualify import needed_names, subjects_of
from components.worlds.base import Panel
from components.worlds.judges import open_panel
from components.worlds.panel import JudgePanel, check_sizes
from components.worlds.params import JudgeParams
from components.worlds.references import load_second_judge, own_known_images

KNOWN_SEED = 3
"""Of the images on which judges are measured."""


class Subject(NamedTuple):
    """An eraser under examination."""

    eraser: Eraser
    records: Mapping[str, RequestRecord]
    targets: Mapping[str, Target]
    judges: Mapping[str, Panel]
    """`first` decides; `second`, where there is one, is reported beside it."""
    table: pd.DataFrame
    """Evaluation prompts of all requests."""
    judged: dict[str, str]
    """Digests of base, judges, filter, adapters and requests."""
    content: Content

    def real_images(self, request: str, count: int, seed: int) -> np.ndarray:
        """At most `count` images of a request's target, (N, H, W, 3) uint8: those it brings along, else of known content."""
        own = self.targets[request].references
        return self.content.images(self.records[request], count, seed)[0] if own is None else own[:count]

    def doubt(self, request: str, count: int) -> str:
        """Why what the judge that decides says of a request's target is no evidence; empty if it is."""
        return self.content.doubt(self.records[request], self.judges[FIRST], count, KNOWN_SEED)

    def examine(self, request: str, count: int) -> dict[str, Examination]:
        """How far each judge can be believed about a request's target."""
        images = self.content.images(self.records[request], count, KNOWN_SEED)
        return {name: examine(judge, self.records[request], *images) for name, judge in self.judges.items()}

    def key(self, module: str, **settings: object) -> str:
        """Where resumable work on this subject lies: other weights, settings or code give another key."""
        return key_of(self.judged | {"code": code_of(module)} | {k: repr(v) for k, v in settings.items()})


def open_subject(second_judge: Path | None, requests: list[str] | None = None, *, batch: int) -> Subject:
    """Opens all that attacks and probes need, the cheapest checks first; `batch` images are drawn at once.

    `UserError` for an unknown request, a pipeline that is not supported, a judge that does not know a target or takes images of
    another size, a reference image that cannot be read, or too few prompts; `ArtifactError` for what is missing or altered.
    """
    base, world, judging = (
        read_section("base", BaseParams),
        read_section("world", str),
        read_section("judge", JudgeParams),
    )
    check_folder(base.path)
    side = read_geometry(base.path)[0]
    records = read_records()
    if unknown := [i for i in requests or () if i not in records]:
        raise UserError(f"request {unknown[0]!r} is not in requests.yaml", f"use some of: {', '.join(records)}")
    table = read_prompts(records).query("split == 'evaluate'")
    chosen = {i: r for i, r in records.items() if not requests or i in requests}
    targets = {
        i: read_target(r, table, related=r.request.neighbours, references=reference_images(r, side))
        for i, r in chosen.items()
    }
    panel = open_panel(world, judging, subjects_of(records, table.iloc[:0]), needed_names(records))
    check_sizes(panel, side)
    judges: dict[str, Panel] = {FIRST: panel}
    if second_judge is not None:
        judges[SECOND] = load_second_judge(world, second_judge)
    elif (second := second_of(panel, chosen)) is not None:
        judges[SECOND] = second
    eraser = Eraser.open(guard=False)
    judged = {f"judge/{name}" if name != FIRST else "judge": judge.digest for name, judge in judges.items()}
    judged |= {"base": base_digest(base.path), "filter": digest(FILTER / SIDECAR)}
    judged |= {f"adapter/{i}": digest(GUIDANCE / i / SIDECAR) for i in eraser.adapters}
    judged |= {f"request/{i}": digest(CONCEPTS / i) for i in records}
    own = own_known_images(world) if judging.path is not None else None
    content = Content(own, Painter(eraser, batch=batch), table, judging)
    return Subject(eraser, chosen, targets, judges, table, judged, content)


def second_of(panel: Panel, records: Mapping[str, RequestRecord]) -> Panel | None:
    """Of judges by kind, those behind the first that know every target; None where a target has no second."""
    behind = {label: panel.judges_of(label)[1:] for record in records.values() for label in record.labels}
    return JudgePanel(behind) if behind and all(behind.values()) else None
