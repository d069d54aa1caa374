"""What erasing does without an attack: unrecognisable images, and what becomes of the other nouns of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from components.collect.tables import where
from components.common.seeding import stream_seed
from components.common.variants import Variant
from components.evaluate.attacks.campaign import FIRST
from components.evaluate.attacks.subject import Subject
from components.evaluate.images import ImageSpec, Painter, Wanted
from components.evaluate.measure import erased_of
from components.evaluate.metrics import paired_change, proportion
from components.worlds.base import PRESENT


def measure_clean(
    subject: Subject, request: str, variants: Sequence[Variant], *, count: int, seed: int, batch: int
) -> dict[str, Any]:
    """By variant, of `count` images that show the target beside something else: erased, artifact rate, selective alignment.

    Selective alignment is the share of images in which everything else that the base draws of the prompt is found too; the artifact rate
    the change of the share in which nothing is recognisable.
    """
    record, table = subject.records[request], subject.table
    rows = (
        where(table, (table["request"] == request) & (table["role"] == "mixed")).drop_duplicates("prompt").head(count)
    )
    specs = tuple(ImageSpec(p, stream_seed(seed, "clean", p) % 2**31) for p in rows["prompt"])
    if not specs:
        return {}
    wanted = [frozenset(c) - set(record.labels) for c in rows["concepts"]]
    painter, judge = Painter(subject.eraser, batch=batch), subject.judges[FIRST]
    base = judge(painter.images(Wanted(specs, "base", subject.eraser.requests)))
    drawn = np.array([w <= have for w, have in zip(wanted, base.present(), strict=True)])
    out: dict[str, Any] = {}
    for variant in variants:
        said = judge(painter.images(Wanted(specs, variant, subject.eraser.requests)))
        others = np.array([w <= have for w, have in zip(wanted, said.present(), strict=True)])
        out[variant] = {
            "ua": proportion(erased_of(said, record)).record(),
            "selective_alignment": proportion(others[drawn]).record(),
            "artifacts": paired_change(base.none >= PRESENT, said.none >= PRESENT).record(),
        }
    return out
