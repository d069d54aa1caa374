"""Stage `features`: for each request its features, score, threshold and replacement, with the ROC that supports them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from components.collect.tables import read_concepts, read_table, where
from components.common.files import SIDECAR, canonical, digest
from components.common.paths import CONCEPTS, CORPUS, FILTER, SAE
from components.common.sections import load_params
from components.common.stage import log, run_stage
from components.diffusion.load import load_text
from components.features.fit import fit_request, shared_tokens
from components.features.reading import Reader
from components.filter.artifact import RequestFilter, write_filters
from components.requests.requests import load_requests
from components.sae.model import read_sae


def features() -> None:
    """Selects on one split, calibrates on another, and writes the filter of every request."""
    params, requests = load_params(), load_requests()
    table, corpus = read_concepts(requests), read_table(CORPUS)
    reader = Reader(*load_text(params.base.path), params.base.hookpoint, read_sae(SAE)[0])
    read = shared_tokens(corpus, reader)
    filters: dict[str, RequestFilter] = {}
    facts: dict[str, Any] = {}
    for request_id, request in tqdm(requests.items(), desc="features", unit="request"):
        if "filter" not in request.channels:
            continue
        own = where(table, table["request"] == request_id)
        filters[request_id], facts[request_id] = fit_request(request, own, reader, read, params.features)
        log.info("%s %r: %s", request_id, request.target, facts[request_id]["calibration"])
    inputs = {"sae": digest(SAE / SIDECAR), "concepts": digest(CONCEPTS), "corpus": digest(CORPUS)}
    write_filters(
        FILTER,
        filters,
        hookpoint=params.base.hookpoint,
        params=params.features.model_dump(),
        inputs=inputs,
        facts={"detail": {k: {n: v for n, v in f.items() if n != "roc"} for k, f in facts.items()}},
    )
    (FILTER / "roc.json").write_text(canonical({k: f["roc"] for k, f in facts.items()}), encoding="utf-8")
    plot_roc(FILTER / "roc.png", {f"{requests[k].target}": f["roc"] for k, f in facts.items()})


def plot_roc(path: Path, curves: dict[str, dict[str, list[float]]]) -> None:
    """One ROC a request, with a logarithmic false-positive axis."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(np.maximum(curve["fpr"], 1e-5), curve["tpr"], drawstyle="steps-post", label=name)
    axes.set(xscale="log", xlabel="false-positive rate", ylabel="true-positive rate", xlim=(1e-5, 1), ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    run_stage(features)
