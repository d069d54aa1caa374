"""Whether the judges tell what they judge: asked of the base's own images, before anything that they say counts.

N images, H and W pixels

A judge must find the target in the base's images of it (sensitivity), must not find it in images of the anchor and of the
neighbours (specificity), must do so on distorted images too, and must find the anchor where it is drawn. Two judges that know
a target must say the same. Where one of this fails, every gate on that name fails, and the reason says why.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from components.collect.record import RequestRecord
from components.collect.tables import where
from components.common.seeding import stream_seed
from components.evaluate.images import ImageSpec, Painter, Wanted
from components.evaluate.measure import JOINT, Plan, anchored_in, erased_of, told_of
from components.evaluate.metrics import Metric, proportion
from components.worlds.base import PRESENT, Panel, Subject
from components.worlds.params import JudgeParams

MOST = 12
"""Prompts about the anchor, and about each neighbour, of which the base's images are judged."""


class Qualification(NamedTuple):
    """What one request's judge says of the base's images."""

    sensitivity: Metric
    specificity: Metric
    worn_sensitivity: Metric
    worn_specificity: Metric
    anchor_sensitivity: Metric
    disagreement: Metric
    """Of the first two judges that know the target; NaN with one."""
    target: str
    """Why the judge's word about the target does not count; empty if it does."""
    anchor: str
    """The same about the anchor."""

    def record(self) -> dict[str, Any]:
        """The form of metrics.json."""
        return {k: v.record() if isinstance(v, Metric) else v for k, v in self._asdict().items()}


def subjects_of(records: Mapping[str, RequestRecord], retain: pd.DataFrame) -> tuple[Subject, ...]:
    """Every name that judges are asked about: of the requests, and of what their prompts to retain show."""
    out: dict[str, Subject] = {}
    for record in records.values():
        request, beside = record.request, tuple(name for name in (record.anchor, *record.request.neighbours) if name)
        for label in record.labels:
            out.setdefault(label, Subject(label, request.kind, beside, request.reference_images))
        for name in beside:
            out.setdefault(name, Subject(name, request.kind, record.labels))
    for label in sorted({label for shown in retain["concepts"] for label in shown}):
        out.setdefault(label, Subject(label, "object"))
    for style in sorted(set(retain["style"]) - {""}):
        out.setdefault(style, Subject(style, "style"))
    return tuple(out.values())


def needed_names(records: Mapping[str, RequestRecord]) -> list[str]:
    """Names without whose judge nothing can be said of a request: its target's and its anchor."""
    named = [label for record in records.values() for label in (*record.labels, record.anchor) if label]
    return list(dict.fromkeys(named))


def beside_specs(table: pd.DataFrame, request_id: str, role: str, seed: int) -> tuple[ImageSpec, ...]:
    """Images of a request's prompts about the anchor, or about its neighbours."""
    rows = where(table, (table["request"] == request_id) & (table["role"] == role))
    by = rows["concepts"].map(lambda shown: shown[:1]) if len(rows) else rows["prompt"]
    chosen = where(rows, rows.groupby(by).cumcount() < MOST) if role == "neighbour" else rows.iloc[:MOST]
    return tuple(ImageSpec(p, stream_seed(seed, role, request_id, i) % 2**31) for i, p in enumerate(chosen["prompt"]))


def qualify_all(
    plan: Plan, table: pd.DataFrame, painter: Painter, panel: Panel, params: JudgeParams, *, seed: int
) -> dict[str, Qualification]:
    """The qualification of every request's judge, on images that the base draws; `table` holds prompts of the evaluation."""
    specs = {i: [beside_specs(table, i, role, seed) for role in ("anchor", "neighbour")] for i in plan.records}
    painter.paint([Wanted(part, "base", ()) for parts in specs.values() for part in parts if part])
    out = {}
    for request_id, record in plan.records.items():
        shown = painter.images(Wanted(plan.targets[request_id], "base", ()))
        anchor, neighbours = (
            painter.images(Wanted(part, "base", ())) if part else shown[:0] for part in specs[request_id]
        )
        unrelated = painter.images(Wanted(plan.unrelated, "base", ()))
        others = np.concatenate([anchor, neighbours]) if len(anchor) + len(neighbours) else unrelated
        out[request_id] = qualify(record, shown, anchor, others, panel, params, seed=stream_seed(seed, request_id))
    return out


def qualify(
    record: RequestRecord,
    shown: np.ndarray,
    anchor: np.ndarray,
    others: np.ndarray,
    panel: Panel,
    params: JudgeParams,
    *,
    seed: int,
) -> Qualification:
    """Of one request: images of its target, of its anchor, and of anchor and neighbours, each (N, H, W, 3) uint8."""

    def rates(images: np.ndarray) -> np.ndarray:
        if not len(images):
            return np.zeros(0, bool)
        said = panel(images)
        return ~erased_of(said, record)[told_of(said, record)]

    sensitivity, specificity = proportion(rates(shown)), proportion(~rates(others))
    worn = proportion(rates(distort(shown, seed))), proportion(~rates(distort(others, seed + 1)))
    of_anchor = proportion(anchored_in(panel(anchor), record) if record.anchor and len(anchor) else [])
    disagreement = disagree(record, np.concatenate([shown, others]), panel)
    target = fault(record.request.target, sensitivity, specificity, worn, disagreement, params)
    seen = of_anchor.n == 0 or of_anchor.value >= params.sensitivity
    return Qualification(
        sensitivity, specificity, *worn, of_anchor, disagreement, target,
        target or ("" if seen else f"no judge tells {record.anchor!r} (sensitivity {said(of_anchor)})"),
    )  # fmt: skip


def fault(
    name: str,
    sensitivity: Metric,
    specificity: Metric,
    worn: tuple[Metric, Metric],
    disagreement: Metric,
    params: JudgeParams,
) -> str:
    """Why a judge's word about `name` does not count; empty if it does. A rate without a value counts for nothing."""
    limits = (
        ("sensitivity", sensitivity, params.sensitivity),
        ("specificity", specificity, params.specificity),
        ("sensitivity on distorted images", worn[0], params.sensitivity - params.worn),
        ("specificity on distorted images", worn[1], params.specificity),
    )
    for what, found, least in limits:
        if not found.value >= least:  # NaN is no evidence
            return f"no judge tells {name!r} ({what} {said(found)}, at least {least:g} is needed)"
    if disagreement.value > params.disagreement:
        return f"two judges of {name!r} disagree on {disagreement.value:.1%} of {disagreement.n} images"
    return ""


def said(found: Metric) -> str:
    """A rate with its interval and n."""
    return "has no value" if not found.n else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}], n = {found.n}"


def disagree(record: RequestRecord, images: np.ndarray, panel: Panel) -> Metric:
    """Share of images on which the first two judges that know the target say different things."""
    pair = [panel.judges_of(label)[:2] for label in record.labels]
    if not pair or any(len(judges) < 2 for judges in pair) or not len(images):
        return proportion([])
    votes = []
    for which in range(2):
        chance = np.stack(
            [judges[which].present(images, [label])[:, 0] for label, judges in zip(record.labels, pair, strict=True)], 1
        )
        votes.append(np.where(np.isnan(chance).all(1), np.nan, (np.nan_to_num(chance) >= PRESENT).any(1)))
    both = ~np.isnan(votes[0]) & ~np.isnan(votes[1])
    return proportion((votes[0] != votes[1])[both])


def mark_untold(metrics: Mapping[str, Mapping[str, Any]], found: Mapping[str, Qualification]) -> None:
    """Writes into the metrics of each scope, and of all requests at once, why a judge's word does not count, where it does not."""
    for scope, variants in metrics.items():
        for request_id in found if scope == JOINT else (scope,):
            for metric, reason in (("ua", found[request_id].target), ("anchor_rate", found[request_id].anchor)):
                for record in variants.values() if reason else ():
                    if metric in record:
                        record[metric].setdefault("untold", reason)


def distort(images: np.ndarray, seed: int) -> np.ndarray:
    """Each image (N, H, W, 3) worn in one of three ways: JPEG of quality 50, a slight blur, or noise of 3 % of the range."""
    rng = np.random.default_rng(seed)
    return np.stack([_worn(image, i % 3, rng) for i, image in enumerate(images)]) if len(images) else images


def _worn(image: np.ndarray, way: int, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(image)
    if way == 0:
        out = io.BytesIO()
        picture.save(out, "jpeg", quality=50)
        return np.asarray(Image.open(out).convert("RGB"))
    if way == 1:
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(max(0.5, image.shape[0] / 256))))
    return np.clip(np.round(image + rng.normal(0, 0.03 * 255, image.shape)), 0, 255).astype(np.uint8)
