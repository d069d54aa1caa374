"""What erasing does without an attack: unrecognisable images, and what becomes of the other nouns of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from components.collect.tables import where
from components.common.seeding import stream_seed
from components.common.variants import Variant
from components.evaluate.attacks.campaign import FIRST, nothing_in
from components.evaluate.attacks.subject import Subject
from components.evaluate.images import ImageSpec, Wanted
from components.evaluate.measure import erased_of
from components.evaluate.metrics import paired_change, proportion
from components.worlds.base import Found, Judgement


def measure_clean(
    subject: Subject, request: str, variants: Sequence[Variant], *, count: int, seed: int
) -> dict[str, Any]:
    """By variant, of `count` images that show the target beside something else: erased, artifact rate, selective alignment.

    Selective alignment is the share of images in which everything else that the base draws of the prompt is found too; the artifact rate
    the change of the share in which nothing is recognisable. Both are left out of a judge that tells the target alone.
    """
    record, table = subject.records[request], subject.table
    rows = (
        where(table, (table["request"] == request) & (table["role"] == "mixed")).drop_duplicates("prompt").head(count)
    )
    specs = tuple(ImageSpec(p, stream_seed(seed, "clean", p) % 2**31) for p in rows["prompt"])
    if not specs:
        return {}
    wanted = [frozenset(c) - set(record.labels) for c in rows["concepts"]]
    painter, judge = subject.content.painter, subject.judges[FIRST]
    base = judge(painter.images(Wanted(specs, "base", subject.eraser.requests)))
    before = nothing_in(base)
    drawn = shows_all(base, wanted)
    out: dict[str, Any] = {}
    for variant in variants:
        said = judge(painter.images(Wanted(specs, variant, subject.eraser.requests)))
        out[variant] = {"ua": proportion(erased_of(said, record)).record()}
        others, after = shows_all(said, wanted), nothing_in(said)
        if drawn is not None and others is not None:
            out[variant]["selective_alignment"] = proportion(others[drawn]).record()
        if before is not None and after is not None:
            out[variant]["artifacts"] = paired_change(before, after).record()
    return out


def shows_all(said: Found, wanted: Sequence[frozenset[str]]) -> np.ndarray | None:
    """(N,) bool: images in which all that is wanted of them is found; None of a judge that does not tell all concepts."""
    if not isinstance(said, Judgement):
        return None
    return np.array([w <= have for w, have in zip(wanted, said.present(), strict=True)])
