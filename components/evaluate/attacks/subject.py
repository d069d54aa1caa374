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
from components.diffusion.params import BaseParams
from components.eraser import Eraser
from components.evaluate.attacks.attempts import Target, read_target
from components.evaluate.attacks.campaign import FIRST, SECOND
from components.evaluate.attacks.known import Examination, examine
from components.worlds.base import WorldJudge
from components.worlds.judges import load_judge
from components.worlds.params import JudgeParams
from components.worlds.references import load_known_images, load_second_judge


class Subject(NamedTuple):
    """An eraser under examination."""

    eraser: Eraser
    records: Mapping[str, RequestRecord]
    targets: Mapping[str, Target]
    judges: Mapping[str, WorldJudge]
    """`first` decides; `second`, where there is one, is reported beside it."""
    table: pd.DataFrame
    """Evaluation prompts of all requests."""
    judged: dict[str, str]
    """Digests of base, judges, filter, adapters and requests."""
    world: str

    def known_images(self, request: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(`count` images with a request's target, `count` without), whose content is known."""
        record = self.records[request]
        alike = tuple(label for label in record.avoid if label not in record.labels)
        return load_known_images(self.world)(record.labels, alike, record.is_style, count, seed)

    def examine(self, request: str, count: int) -> dict[str, Examination]:
        """How far each judge can be believed about a request's target."""
        images = self.known_images(request, count, 3)
        return {name: examine(judge, self.records[request], *images) for name, judge in self.judges.items()}

    def key(self, module: str, **settings: object) -> str:
        """Where resumable work on this subject lies: other weights, settings or code give another key."""
        return key_of(self.judged | {"code": code_of(module)} | {k: repr(v) for k, v in settings.items()})


def open_subject(second_judge: Path | None, requests: list[str] | None = None) -> Subject:
    """Opens all that attacks and probes need, the cheapest checks first.

    `UserError` for an unknown request, a pipeline that is not supported, a judge that does not know a label or was never
    measured, or too few prompts; `ArtifactError` for what is missing or altered.
    """
    base, world, judging = (
        read_section("base", BaseParams),
        read_section("world", str),
        read_section("judge", JudgeParams),
    )
    check_folder(base.path)
    records = read_records()
    if unknown := [i for i in requests or () if i not in records]:
        raise UserError(f"request {unknown[0]!r} is not in requests.yaml", f"use some of: {', '.join(records)}")
    table = read_prompts(records).query("split == 'evaluate'")
    chosen = {i: r for i, r in records.items() if not requests or i in requests}
    targets = {i: read_target(r, table, related=r.request.neighbours) for i, r in chosen.items()}
    labels = {label for record in records.values() for label in (*record.avoid, *record.labels)}
    judges: dict[str, WorldJudge] = {FIRST: load_judge(world, judging, labels)}
    load_known_images(world)
    if second_judge is not None:
        judges[SECOND] = load_second_judge(world, second_judge)
    eraser = Eraser.open(guard=False)
    judged = {f"judge/{name}" if name != FIRST else "judge": judge.digest for name, judge in judges.items()}
    judged |= {"base": base_digest(base.path), "filter": digest(FILTER / SIDECAR)}
    judged |= {f"adapter/{i}": digest(GUIDANCE / i / SIDECAR) for i in eraser.adapters}
    judged |= {f"request/{i}": digest(CONCEPTS / i) for i in records}
    return Subject(eraser, chosen, targets, judges, table, judged, world)
