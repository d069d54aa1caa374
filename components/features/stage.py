"""Stage `features`: for each request its features, score, threshold and replacement, with the ROC that supports them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from components.collect.stage import read_concepts, read_table
from components.common.artifacts import SIDECAR, canonical, digest
from components.common.config import Params, load_params
from components.common.paths import CONCEPTS, CORPUS, FILTER, SAE
from components.common.stage import log, run_stage
from components.diffusion import load_text, read_hookpoint, tokenize
from components.features.artifact import RequestFilter, write_filters
from components.features.directions import POSITION_CLASSES, position_classes, replacement_directions
from components.features.scores import auroc, conformal_threshold, fit_score, pooled_codes, roc, select_features
from components.openmoji.captions import mentions
from components.requests import Request, load_requests
from components.sae import SparseAutoencoder, read_sae


class Reader:
    """Reads prompts into SAE codes with one encoder, a batch at a time."""

    def __init__(self, params: Params, sae: SparseAutoencoder) -> None:
        self.tokenizer, self.encoder = load_text(params.base.path)
        self.hookpoint, self.sae = params.base.hookpoint, sae

    def hidden(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream (P, L, D) and scored positions (P, L)."""
        encoded = tokenize(self.tokenizer, prompts)
        return read_hookpoint(self.encoder, self.hookpoint, encoded.input_ids), encoded.scored

    def codes(self, hidden: torch.Tensor) -> torch.Tensor:
        """Codes (P, L, F) by threshold alone, so that each latent decides for itself (with TopK the threshold is 0)."""
        pre = self.sae.pre_activations(hidden)
        return pre * (pre > self.sae.threshold)

    def pooled(self, prompts: list[str], *, batch: int = 64) -> torch.Tensor:
        """Each latent's largest activation in each prompt, (P, F)."""
        parts = []
        for start in range(0, len(prompts), batch):
            hidden, scored = self.hidden(prompts[start : start + batch])
            parts.append(pooled_codes(self.codes(hidden), scored))
        return torch.cat(parts) if parts else torch.zeros(0, self.sae.d_sae)


def features() -> None:
    """Selects on one split, calibrates on another, and writes the filter of every request."""
    params, requests = load_params(), load_requests()
    table, corpus = read_concepts(requests), read_table(CORPUS)
    sae, _ = read_sae(SAE)
    reader = Reader(params, sae)
    benign = corpus.loc[corpus["split"] == "calibrate", "prompt"].tolist()
    benign_pooled = reader.pooled(benign)
    background = corpus.loc[corpus["split"] == "train", "prompt"].tolist()[: len(benign)]
    background_pooled = reader.pooled(background)
    filters: dict[str, RequestFilter] = {}
    facts: dict[str, Any] = {}
    for request_id, request in requests.items():
        if "filter" not in request.channels:
            continue
        filters[request_id], facts[request_id] = fit_request(
            request,
            table[table["request"] == request_id],
            reader,
            (background, background_pooled),
            (benign, benign_pooled),
            params,
        )
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


def fit_request(
    request: Request,
    table: pd.DataFrame,
    reader: Reader,
    background: tuple[list[str], torch.Tensor],
    benign: tuple[list[str], torch.Tensor],
    params: Params,
) -> tuple[RequestFilter, dict[str, Any]]:
    """The filter of one request and the facts about it."""
    settings = params.features
    chosen = table[table["split"] == "select"].reset_index(drop=True)
    pooled = reader.pooled(chosen["prompt"].tolist())
    single = chosen["role"].isin(("target", "alias"))
    names = {
        name: np.flatnonzero(single & chosen["prompt"].map(lambda text, n=name: mentions(text, (n,))))
        for name in dict.fromkeys(request.names)
    }
    if request.kind == "category":
        names = {str(c): np.flatnonzero(single & (chosen["concepts"] == c)) for c in sorted(set(chosen["concepts"][single]))}
    kept = {role: np.flatnonzero(chosen["role"] == role) for role in ("anchor", "neighbour", "retain")}
    indices, contrast = select_features(
        pooled,
        {n: rows for n, rows in names.items() if len(rows)},
        kept,
        max_features=settings.max_features,
        min_contrast=settings.min_contrast,
    )
    silent = [not mentions(text, request.names) for text in background[0]]
    activations = torch.cat([pooled[:, indices], background[1][silent][:, indices]]).numpy()
    carries = np.concatenate([chosen["carries"].to_numpy(), np.zeros(sum(silent), bool)])
    weights, bias = fit_score(activations, carries)

    def scores(codes: torch.Tensor) -> np.ndarray:
        return (codes[:, indices] @ torch.from_numpy(weights).float() + bias).numpy()

    held = table[table["split"] == "calibrate"]
    positives = scores(reader.pooled(held.loc[held["carries"], "prompt"].tolist()))
    clean = [not mentions(text, request.names) for text in benign[0]]
    negatives = np.concatenate(
        [scores(reader.pooled(held.loc[~held["carries"], "prompt"].tolist())), scores(benign[1][clean])]
    )
    threshold = conformal_threshold(negatives, settings.fpr)
    item = RequestFilter(
        features=indices,
        w_enc=reader.sae.W_enc[:, indices],
        b_enc=reader.sae.b_enc[indices],
        jump=reader.sae.threshold[indices],
        w_dec=reader.sae.W_dec[indices],
        b_dec=reader.sae.b_dec,
        weights=torch.from_numpy(weights).float(),
        bias=torch.tensor(bias, dtype=torch.float32),
        threshold=torch.tensor(threshold, dtype=torch.float32),
        directions=fit_directions(chosen, reader, indices, torch.from_numpy(weights).float()),
    )
    curve = roc(positives, negatives)
    keep = np.unique(np.linspace(0, len(curve.fpr) - 1, 200).astype(int))
    facts = {
        "contrast": [round(float(c), 4) for c in contrast],
        "features": indices.tolist(),
        "calibration": {
            "auroc": round(auroc(positives, negatives), 6),
            "tpr": round(float((positives >= threshold).mean()), 4),
            "fpr": round(float((negatives >= threshold).mean()), 6),
            "positives": len(positives),
            "negatives": len(negatives),
        },
        "roc": {
            "fpr": [round(float(v), 6) for v in curve.fpr[keep]],
            "tpr": [round(float(v), 6) for v in curve.tpr[keep]],
        },
    }
    return item, facts


def fit_directions(
    chosen: pd.DataFrame, reader: Reader, indices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Replacement steps (K, D) from the selection prompts that have a counterpart about the anchor; else zeros."""
    paired = chosen[chosen["counterpart"] != ""]
    if paired.empty:
        return torch.zeros(len(POSITION_CLASSES), reader.sae.d_in)
    target, scored = reader.hidden(paired["prompt"].tolist())
    anchor, anchor_scored = reader.hidden(paired["counterpart"].tolist())
    evidence = (reader.codes(target)[..., indices] * weights.clamp(min=0)).sum(-1)
    classes = position_classes(evidence > 0, scored)
    return replacement_directions(target, anchor, classes, scored.sum(1), anchor_scored.sum(1))


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
