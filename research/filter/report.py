"""The report on the filter: `expunge filter report` writes `reports/filter/`, from prompts and from images.

Detection is compared on text alone, over the requests that ship and others made from the world; edits are compared on
images, since what an edit is worth shows only there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from components.collect.corpus import SOURCES
from components.collect.tables import read_concepts, read_table, where
from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.paths import CORPUS, FILTER, FILTER_REPORT, SAE
from components.common.sections import Params
from components.common.words import mentions
from components.diffusion.load import accelerator_device, load_pipeline
from components.diffusion.text import load_text
from components.evaluate.metrics import Metric, proportion
from components.evaluate.page import png
from components.features.fit import shared_tokens
from components.features.reading import Reader
from components.filter.artifact import read_filters
from components.requests.requests import Request
from components.sae.model import read_sae
from components.worlds.openmoji.judge import Judge
from research.filter.detection import (
    DETECTORS,
    Detector,
    Reading,
    Scores,
    fit_all,
    read,
    score_request,
    shared_distance,
    summarise,
    unnamed,
)
from research.filter.editing import compare_edits
from research.filter.prompts import NAMED, benign_prompts, evaluate_prompts, world_requests

SHIPPED = "score or name"
"""The detector of the product."""
COUNTS = (1, 10, 40)
"""How many requests act at once."""


def report_filter(
    params: Params,
    requests: dict[str, Request],
    *,
    count: int,
    benign: int,
    images: int,
    out: Path = FILTER_REPORT,
) -> dict[str, Any]:
    """Compares detectors over `count` requests and edits over the shipped ones; writes metrics, plots and grids."""
    reader = Reader(*load_text(params.base.path), params.base.hookpoint, read_sae(SAE)[0])
    corpus = read_table(CORPUS)
    shared = shared_tokens(corpus, reader)
    wanted = world_requests(count, requests, seed=params.concepts.seed)
    table, detectors = fit_all(wanted, params, reader, shared)
    ordinary = read(reader, benign_prompts(benign, seed=params.concepts.seed))
    calibrate = where(corpus, corpus["split"] == "calibrate")
    english, *traffic = (
        read(reader, rows["prompt"].tolist()) for _, rows in calibrate.groupby(calibrate["source"] == SOURCES)
    )
    prompts = evaluate_prompts(wanted, table, per_role=24, seed=params.concepts.seed)
    scores: dict[str, dict[str, Scores]] = {name: {} for name in DETECTORS}
    carrying: dict[str, Reading] = {}
    for request_id, detector in tqdm(detectors.items(), desc="detect", unit="request"):
        readings = {role: read(reader, texts) for role, texts in prompts[request_id].items()}
        rows = where(table, (table["request"] == request_id) & (table["split"] == "calibrate") & ~table["carries"])
        groups = [join([english, read(reader, rows["prompt"].tolist())]), *traffic]
        own = [unnamed(group, wanted[request_id], detector) for group in groups]
        carrying[request_id] = join([readings[role] for role in NAMED if role in readings])
        for name in DETECTORS:
            scores[name][request_id] = score_request(
                name, detector, wanted[request_id], reader, own, readings, ordinary, params.features.fpr
            )
    detection = {name: summarise(found) for name, found in scores.items()}
    shipped = {name: summarise({k: v for k, v in found.items() if k in requests}) for name, found in scores.items()}
    together = {
        str(n): measure_together(n, wanted, detectors, carrying, scores[SHIPPED], reader, ordinary, english, params)
        for n in sorted({min(n, len(wanted)) for n in COUNTS})
    }
    pictures: list[tuple[str, np.ndarray]] = []
    edits: dict[str, Any] = {}
    if images:
        filters, hookpoint = read_filters(FILTER)
        edits = compare_edits(
            load_pipeline(params.base.path, accelerator_device()), Judge.load(params.base.judge), filters, hookpoint, reader.sae,
            requests, read_concepts(requests), params.evaluate, count=images, pictures=pictures,
        )  # fmt: skip
    record = {
        "requests": list(wanted),
        "benign": len(ordinary.texts),
        "detection": _plain(detection),
        "detection_shipped": _plain(shipped),
        "together": _plain(together),
        "edits": {k: _plain(v) for k, v in edits.items()},
        "base": digest(params.base.path / SIDECAR),
        "sae": digest(SAE / SIDECAR),
    }
    with new_folder(out) as folder:
        (folder / "metrics.json").write_text(canonical(record), encoding="utf-8")
        plot_detection(detection).savefig(folder / "detection.png", dpi=80)
        plot_scores(scores, next(iter(wanted))).savefig(folder / "scores.png", dpi=80)
        for title, picture in pictures:
            (folder / f"edits-{title}.png").write_bytes(png(picture))
    plt.close("all")
    return record


def _plain(found: Mapping[str, Mapping[str, Metric]]) -> dict[str, dict[str, Any]]:
    return {name: {key: metric.record() for key, metric in group.items()} for name, group in found.items()}


def measure_together(
    count: int,
    requests: Mapping[str, Request],
    detectors: Mapping[str, Detector],
    carrying: Mapping[str, Reading],
    scores: Mapping[str, Scores],
    reader: Reader,
    benign: Reading,
    calibration: Reading,
    params: Params,
) -> dict[str, Metric]:
    """`count` requests at once: a prompt is flagged when any of them flags it; beside it ItD's one set and threshold."""
    chosen = list(requests)[:count]
    names = tuple(n for r in chosen for n in requests[r].names)
    free = np.array([not mentions(t, names) for t in benign.texts])
    flagged = np.zeros(len(benign.texts), bool)
    for request_id in chosen:
        # scores hold the prompts that do not name that request; those that name another are dropped below
        own = np.array([not mentions(t, requests[request_id].names) for t in benign.texts])
        flagged[own] |= scores[request_id].negative["benign"] >= scores[request_id].threshold
    hits = [
        values >= scores[r].threshold for r in chosen for role, values in scores[r].positive.items() if role in NAMED
    ]
    positive = join([carrying[r] for r in chosen])
    quiet = calibration.take([not mentions(t, names) for t in calibration.texts])
    ordinary = benign.take(free.tolist())
    itd = shared_distance(
        {r: detectors[r] for r in chosen}, reader, (positive, quiet), positive, ordinary, params.features.fpr
    )
    return {
        "tpr": proportion(np.concatenate(hits)),
        "fpr any": proportion(flagged[free]),
        **{f"itd {key}": metric for key, metric in itd.items()},
    }


def join(readings: list[Reading]) -> Reading:
    """Several readings as one."""
    tokens = [r.tokens for r in readings]
    return Reading(
        [t for r in readings for t in r.texts],
        type(tokens[0])(*(torch.cat(column) for column in zip(*tokens, strict=True))),
        torch.cat([r.error for r in readings]),
        torch.cat([r.pooled for r in readings]),
    )


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
    axis.set(xticks=np.arange(len(roles)) + 0.32, ylim=(0, 1.05), ylabel="flagged")
    axis.set_xticklabels(roles, fontsize=8)
    axis.legend(fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure


def plot_scores(scores: Mapping[str, Mapping[str, Scores]], request_id: str) -> plt.Figure:
    """Distributions of every detector's scores for one request, with its threshold."""
    figure, axes = plt.subplots(1, len(scores), figsize=(3 * len(scores), 2.8), layout="constrained")
    for axis, (name, found) in zip(axes, scores.items(), strict=True):
        item = found[request_id]
        off = np.concatenate(list(item.negative.values()))
        on = np.concatenate([item.positive[r] for r in NAMED if r in item.positive])
        on = np.minimum(on, max(float(off.max()), *on[np.isfinite(on)], item.threshold))  # a name's score is infinite
        bins = np.histogram_bin_edges(np.concatenate([on, off]), 40).tolist()
        axis.hist(off, bins, alpha=0.6, label="benign, neighbours, retain", density=True)
        axis.hist(on, bins, alpha=0.6, label="carry the target", density=True)
        axis.axvline(item.threshold, color="black", linewidth=0.8)
        axis.set(title=name, yscale="log")
    axes[0].legend(fontsize=6)
    return figure
