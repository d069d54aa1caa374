"""The report on the filter: `python -m research.filter report` writes `research/results/filter/`, from prompts and images.

Detection is compared on text alone, over the requests that ship and others made from the world; edits are compared on
images, since what an edit is worth shows only there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from components.collect.params import ConceptsParams
from components.collect.record import read_prompts, read_records
from components.collect.tables import SOURCES, read_table, where
from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.paths import CORPUS, FILTER, SAE
from components.common.sections import read_section
from components.common.words import mentions
from components.diffusion.device import accelerator_device
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.diffusion.text import load_towers
from components.evaluate.metrics import Metric, proportion
from components.evaluate.page import png
from components.evaluate.params import EvaluateParams
from components.features.fit import read_shared
from components.features.params import FeaturesParams
from components.features.reading import Reader
from components.filter.artifact import read_filters
from components.filter.encoder import Decision
from components.requests.requests import Request, load_requests
from components.sae.model import SparseAutoencoder, open_sae
from components.worlds.judges import load_judge
from components.worlds.params import JudgeParams
from research.filter.detection import (
    RIVALS,
    SHIPPED,
    Detector,
    Reading,
    Scores,
    decide,
    fit_all,
    join,
    read,
    rival_threshold,
    scores_of,
    shared_distance,
    summarise,
    unnamed,
)
from research.filter.editing import compare_edits
from research.filter.prompts import NAMED, benign_prompts, evaluate_prompts, project_world, world_requests
from research.record import RESULTS

OUT = RESULTS / "filter"
COUNTS = (1, 10, 40)
"""How many requests act at once."""


def report_filter(*, count: int, benign: int, images: int, out: Path = OUT) -> dict[str, Any]:
    """Compares detectors over `count` requests on `benign` prompts and edits over the shipped ones; writes metrics and plots.

    `images` prompts of each kind are drawn for each edit; none for 0.
    """
    base, concepts = read_section("base", BaseParams), read_section("concepts", ConceptsParams)
    features, world, shipped = read_section("features", FeaturesParams), project_world(), load_requests()
    corpus, reader = read_table(CORPUS), Reader(load_towers(base.path, base.hookpoints), open_sae(SAE, base.path))
    requests = world_requests(count, shipped, world, seed=concepts.seed)
    table, detectors = fit_all(requests, world, concepts, features, read_shared(corpus, reader))
    prompts = evaluate_prompts(requests, world, table, per_role=24, seed=concepts.seed)
    ordinary = read(reader, benign_prompts(world, benign, seed=concepts.seed))
    seen = decide(reader, {i: d.item for i, d in detectors.items()}, ordinary.texts)
    calibrate = where(corpus, corpus["split"] == "calibrate")
    english, *traffic = (
        read(reader, rows["prompt"].tolist()) for _, rows in calibrate.groupby(calibrate["source"] == SOURCES)
    )
    scores: dict[str, dict[str, Scores]] = {name: {} for name in (SHIPPED, *RIVALS)}
    named: dict[str, Reading] = {}
    for column, (i, detector) in enumerate(tqdm(detectors.items(), desc="detect", unit="request")):
        readings = {role: read(reader, texts) for role, texts in prompts[i].items()}
        named[i] = join([readings[role] for role in NAMED if role in readings])
        rows = where(table, (table["request"] == i) & (table["split"] == "calibrate") & ~table["names_target"])
        groups = [join([english, read(reader, rows["prompt"].tolist())]), *traffic]
        quiet = [unnamed(group, requests[i], detector) for group in groups]

        def shipped_scores(reading: Reading, i: str = i, column: int = column) -> np.ndarray:
            if reading is ordinary:
                return seen.scores[:, column].numpy()
            return decide(reader, {i: detectors[i].item}, reading.texts).scores[:, 0].numpy()

        limit = float(detector.item.decision_threshold)
        scores[SHIPPED][i] = scores_of(shipped_scores, limit, requests[i], readings, ordinary)
        for name, compute in RIVALS.items():
            scores[name][i] = scores_of(
                lambda reading, compute=compute, detector=detector: compute(reading, reader, detector),
                rival_threshold(name, detector, reader, quiet, features.fpr),
                requests[i],
                readings,
                ordinary,
            )
    detection = {name: summarise(found) for name, found in scores.items()}
    ours = {name: summarise({k: v for k, v in found.items() if k in shipped}) for name, found in scores.items()}
    together: dict[str, dict[str, Metric]] = {}
    for n in sorted({min(n, len(requests)) for n in COUNTS}):
        first = dict(list(requests.items())[:n])
        together[str(n)] = act_together(first, scores[SHIPPED], seen, ordinary) | itd_together(
            first, detectors, named, reader, ordinary, english, features.fpr
        )
    edits, pictures = edit_images(base, reader.sae, images) if images else ({}, [])
    record = {
        "requests": list(requests),
        "benign": len(ordinary.texts),
        "detection": _plain(detection),
        "detection_shipped": _plain(ours),
        "together": _plain(together),
        "edits": {k: _plain(v) for k, v in edits.items()},
        "base": digest(base.path / SIDECAR),
        "sae": digest(SAE / SIDECAR),
    }
    with new_folder(out) as folder:
        (folder / "metrics.json").write_text(canonical(record), encoding="utf-8")
        plot_detection(detection).savefig(folder / "detection.png", dpi=80)
        plot_scores(scores, next(iter(requests))).savefig(folder / "scores.png", dpi=80)
        for title, picture in pictures:
            (folder / f"edits-{title}.png").write_bytes(png(picture))
    plt.close("all")
    return record


def edit_images(
    base: BaseParams, sae: SparseAutoencoder, count: int
) -> tuple[dict[str, dict[str, dict[str, Metric]]], list[tuple[str, np.ndarray]]]:
    """(edits compared on the filters in models/filter, a grid for each request)."""
    filters = read_filters(FILTER).filters
    records = {i: record for i, record in read_records().items() if i in filters}
    labels = {label for record in records.values() for label in (*record.labels, *filter(None, [record.anchor]))}
    judge = load_judge(read_section("world", str), read_section("judge", JudgeParams), labels)
    pictures: list[tuple[str, np.ndarray]] = []
    found = compare_edits(
        load_pipeline(base.path, accelerator_device()), judge, filters, sae, records, read_prompts(filters), base,
        count=count, seed=read_section("evaluate", EvaluateParams).seed, pictures=pictures,
    )  # fmt: skip
    return found, pictures


def _plain(found: Mapping[str, Mapping[str, Metric]]) -> dict[str, dict[str, Any]]:
    return {name: {key: metric.record() for key, metric in group.items()} for name, group in found.items()}


def _all_names(requests: Mapping[str, Request]) -> tuple[str, ...]:
    return tuple(name for request in requests.values() for name in request.names)


def act_together(
    requests: Mapping[str, Request], scores: Mapping[str, Scores], seen: Decision, benign: Reading
) -> dict[str, Metric]:
    """TPR of each request's own prompts, and the share of prompts that name no target which any of the filters flags."""
    free = [not mentions(text, _all_names(requests)) for text in benign.texts]
    columns = [seen.requests.index(i) for i in requests]
    hits = [v >= scores[i].threshold for i in requests for role, v in scores[i].positive.items() if role in NAMED]
    any_flags = seen.flagged[:, columns].any(1).numpy()
    return {"tpr": proportion(np.concatenate(hits)), "fpr any": proportion(any_flags[free])}


def itd_together(
    requests: Mapping[str, Request],
    detectors: Mapping[str, Detector],
    named: Mapping[str, Reading],
    reader: Reader,
    benign: Reading,
    calibration: Reading,
    fpr: float,
) -> dict[str, Metric]:
    """The same of ItD's one feature set and one threshold for all requests."""
    names = _all_names(requests)
    positive = join([named[i] for i in requests])
    free, quiet = (part.take([not mentions(text, names) for text in part.texts]) for part in (benign, calibration))
    chosen = {i: detectors[i] for i in requests}
    found = shared_distance(chosen, reader, (positive, quiet), positive, free, fpr)
    return {f"itd {key}": metric for key, metric in found.items()}


def plot_detection(detection: Mapping[str, Mapping[str, Metric]]) -> plt.Figure:
    """TPR by role for every detector, and the FPR that it cost."""
    roles = [key.removeprefix("tpr ") for key in detection[SHIPPED] if key.startswith("tpr ")]
    figure, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
    for offset, (name, found) in enumerate(detection.items()):
        values = [found[f"tpr {role}"] for role in roles]
        at = np.arange(len(roles)) + 0.16 * offset
        errors = np.array([[m.value - m.low, m.high - m.value] for m in values]).T
        label = f"{name} (FPR {100 * found['fpr benign'].value:.2g} %)"
        axis.bar(at, [m.value for m in values], 0.16, yerr=np.abs(errors), capsize=1, label=label)
    axis.set(xticks=np.arange(len(roles)) + 0.4, ylim=(0, 1.05), ylabel="flagged")
    axis.set_xticklabels(roles, fontsize=8)
    axis.legend(fontsize=7, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure


def plot_scores(scores: Mapping[str, Mapping[str, Scores]], request_id: str) -> plt.Figure:
    """Distributions of every detector's scores for one request, with its threshold."""
    figure, axes = plt.subplots(1, len(scores), figsize=(3 * len(scores), 2.8), layout="constrained")
    for axis, (name, found) in zip(axes, scores.items(), strict=True):
        item = found[request_id]
        off = np.concatenate(list(item.negative.values()))
        on = np.concatenate([item.positive[r] for r in NAMED if r in item.positive])
        bins: Sequence[float] = np.histogram_bin_edges(np.concatenate([on, off]), 40).tolist()
        axis.hist(off, bins, alpha=0.6, label="benign, neighbours, retain", density=True)
        axis.hist(on, bins, alpha=0.6, label="name the target", density=True)
        axis.axvline(item.threshold, color="black", linewidth=0.8)
        axis.set(title=name, yscale="log")
    axes[0].legend(fontsize=6)
    return figure
