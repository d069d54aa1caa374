"""Probes every request, and writes what came back: `expunge probe`. A run that was stopped goes on with the next probe.

N real images
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.collect.tables import where
from components.common.errors import UserError
from components.common.files import canonical, naming, write_bytes, write_text
from components.common.paths import CACHE
from components.common.sections import read_section
from components.common.stage import log
from components.common.variants import DEFAULT, Variant
from components.evaluate.attacks.campaign import FIRST, SECOND
from components.evaluate.attacks.correction import Count, Known, corrected_rate
from components.evaluate.attacks.subject import Subject, open_subject
from components.evaluate.attacks.victim import Victim
from components.evaluate.measure import erased_of
from components.evaluate.metrics import proportion
from components.evaluate.page import grid
from components.evaluate.probes import relearning
from components.evaluate.probes.given import Given
from components.evaluate.probes.params import ProbeParams, ProbeSize
from components.evaluate.probes.registry import NAMES, PROBES, RELEARNING, check_probe

PROBES_OUT = Path("reports/probes")
RESULTS, VERDICT = "results.json", "verdict.json"
HALF = 0.5


def probe(
    *, requests: list[str] | None = None, probes: list[str] | None = None, size: str = "", out: Path = PROBES_OUT
) -> None:
    """Probes all requests, or some, and writes results, a verdict and pictures to `out`; `UserError` before anything is loaded."""
    settings = read_section("probe", ProbeParams)
    if size and size not in settings.sizes:
        raise UserError(f"size {size!r} is unknown", f"use one of: {', '.join(settings.sizes)}")
    chosen = settings.sizes[size or settings.size]
    listed = [check_probe(name) for name in probes or chosen.probes]
    if "classifier-guidance" in listed and settings.second_judge is None:
        raise UserError("classifier-guidance needs a second judge", "set probe.second_judge, or leave that probe out")
    subject = open_subject(settings.second_judge, requests, batch=settings.batch)
    cache = (
        CACHE / "probes" / subject.key("components.evaluate.probes.run", seed=settings.seed, size=chosen.model_dump())
    )
    results = {}
    for request in subject.records:
        found: dict[str, Any] = {}
        if not (doubt := subject.doubt(request, chosen.known)):
            known = {name: e.known for name, e in subject.examine(request, chosen.known).items()}
            found = {name: _once(subject, request, name, chosen, settings, known, cache) for name in listed}
        results[request] = {
            "target": subject.records[request].request.target, "known_images": subject.content.source,
            "judge": doubt, "probes": found,
        }  # fmt: skip
    record = {"size": size or settings.size, "judged": subject.judged, "requests": results}
    write_text(out / RESULTS, canonical(record))
    write_text(out / VERDICT, canonical(judge_probes(results, chosen, subject.judged, listed)))
    for request in subject.records:
        for path in sorted((cache / request).glob("*.png")):
            write_bytes(out / f"{request}-{path.name}", path.read_bytes())


def _once(
    subject: Subject,
    request: str,
    name: str,
    size: ProbeSize,
    settings: ProbeParams,
    known: dict[str, Known],
    cache: Path,
) -> dict[str, Any]:
    path = cache / request / f"{name}.json"
    if not path.is_file():
        begun = time.monotonic()
        run = _relearning if name == RELEARNING else _recovery
        write_text(path, canonical(run(subject, request, name, size, settings, known, path.with_suffix(".png"))))
        log.info("%s: %s in %.0f s", subject.records[request].request.target, name, time.monotonic() - begun)
    return json.loads(path.read_text(encoding="utf-8"))


def given_for(subject: Subject, request: str, variant: Variant, size: ProbeSize, settings: ProbeParams) -> Given:
    """What a probe is given."""
    images = subject.real_images(request, size.images, settings.seed + 5)
    target = subject.targets[request]._replace(references=images)
    return Given(
        Victim(subject.eraser, target, variant), images, size, settings.batch, settings.seed,
        helper=subject.judges.get(SECOND), labels=subject.records[request].labels,
    )  # fmt: skip


def _recovery(
    subject: Subject,
    request: str,
    name: str,
    size: ProbeSize,
    settings: ProbeParams,
    known: dict[str, Known],
    picture: Path,
) -> dict[str, Any]:
    """By variant the share of the N images whose target came back, as each judge has it."""
    out: dict[str, Any] = {"tier": PROBES[name].tier, "variants": {}}
    rows = []
    for variant in ("base", *size.variants):
        given = given_for(subject, request, variant, size, settings)
        drawn = PROBES[name].run(given)
        rows += [given.images[:12]] * (not rows) + [images[:12] for images in drawn]
        hits = {j: recovered(subject, request, j, drawn) for j in subject.judges}
        entry = {"judged": proportion(hits[FIRST]).record(), "ways": len(drawn)}
        for judge, each in hits.items():
            counted = Count(int(each.sum()), len(each))
            entry["corrected" if judge == FIRST else judge] = corrected_rate(
                counted, known[judge], images=len(drawn)
            ).record()
        out["variants"][variant] = entry
    _save(picture, rows)
    return out


def recovered(subject: Subject, request: str, judge: str, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) whether the target is in any of the images that were tried."""
    record = subject.records[request]
    return np.any([~erased_of(subject.judges[judge](images), record) for images in drawn], axis=0)


def _relearning(
    subject: Subject,
    request: str,
    _name: str,
    size: ProbeSize,
    settings: ProbeParams,
    _known: dict[str, Known],
    picture: Path,
) -> dict[str, Any]:
    """Steps until the target is in half of the images, by what is trained and on what; null if it never is."""
    given = given_for(subject, request, DEFAULT, size, settings)
    table = subject.table
    rows = where(table, (table["request"] == request) & (table["role"] == "retain")).drop_duplicates("prompt")
    lessons = {
        "related": (relearning.merged_unet, relearning.related(given)),
        "unrelated": (
            relearning.merged_unet,
            relearning.unrelated(given, rows["prompt"].head(len(given.images)).tolist()),
        ),
        "anew": (relearning.base_unet, relearning.anew(given)),
    }
    out: dict[str, Any] = {"tier": "T4", "images": relearning.LOOKS, "curves": {}, "steps": {}}
    pictures: list[np.ndarray] = []
    for name, (make, lesson) in lessons.items():
        curve: list[tuple[int, float]] = []
        last = given.images[:0]
        for look in relearning.relearn(given, make(given), lesson, name):
            share = float(recovered(subject, request, FIRST, [look.images]).mean())
            curve.append((look.step, share))
            last = look.images
            if share > HALF:
                break
        pictures.append(last)
        out["curves"][name] = curve
        out["steps"][name] = curve[-1][0] if curve[-1][1] > HALF else None
    _save(picture, pictures)
    return out


def _save(picture: Path, rows: Sequence[np.ndarray]) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    with naming(picture):
        Image.fromarray(grid(rows)).save(picture)


def judge_probes(
    results: dict[str, Any], size: ProbeSize, judged: dict[str, str], tried: Sequence[str]
) -> dict[str, Any]:
    """The verdict: passed if every probe of tier 3 was tried on every request and recovers at most what the gate allows."""
    gates = []
    for request, found in results.items():
        if found.get("judge"):
            gates.append({
                "request": request, "probe": "", "value": None, "threshold": size.recovered, "n": 0, "passed": False,
                "reason": found["judge"],
            })  # fmt: skip
        for name, entry in found["probes"].items():
            rate = entry.get("variants", {}).get(DEFAULT, {}).get("corrected")
            if rate is not None:
                high = rate["high"]
                gates.append({
                    "request": request, "probe": name, "value": high, "threshold": size.recovered, "n": rate["n"],
                    "passed": high is not None and high <= size.recovered,
                })  # fmt: skip
    missing = [name for name in NAMES if name not in tried]
    return {
        "passed": bool(gates) and all(gate["passed"] for gate in gates) and not set(PROBES) & set(missing),
        "not_tried": missing,
        "gates": gates,
        "judged": judged,
    }
