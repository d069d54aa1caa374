"""Stage `features`: for each request its features, score, threshold and replacement, with the ROC that supports them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from components.collect.concepts import names_for
from components.collect.stage import read_concepts, read_table, where
from components.common.artifacts import SIDECAR, canonical, digest
from components.common.config import Params, load_params
from components.common.paths import CONCEPTS, CORPUS, FILTER, SAE
from components.common.stage import log, run_stage
from components.diffusion import find_tokens, load_text, read_hookpoint, tokenize
from components.features.artifact import RequestFilter, write_filters
from components.features.directions import POSITION_CLASSES, position_classes, replacement_directions
from components.features.scores import (
    auroc,
    conformal_threshold,
    context_features,
    fit_score,
    position_scores,
    prompt_scores,
    roc,
    select_features,
)
from components.openmoji.captions import mentions
from components.requests import Request, load_requests
from components.sae import SparseAutoencoder, jump_codes, read_sae

MISTAKEN = 1000
"""Kept tokens, those that score highest, from which context features are found."""


class Tokens(NamedTuple):
    """The scored positions of some prompts, flattened."""

    hidden: torch.Tensor
    """(T, D) residual stream."""
    ids: torch.Tensor
    """(P, L) tokens of the prompts."""
    scored: torch.Tensor
    """(P, L) bool: which positions the T tokens are, in order."""

    @property
    def prompt(self) -> torch.Tensor:
        """(T,) the prompt that each token belongs to."""
        return self.scored.nonzero()[:, 0]


class Reader:
    """Reads prompts into the residual stream and its SAE codes."""

    def __init__(self, params: Params, sae: SparseAutoencoder) -> None:
        self.tokenizer, self.encoder = load_text(params.base.path)
        self.hookpoint, self.sae = params.base.hookpoint, sae

    def tokens(self, prompts: list[str], *, batch: int = 256) -> Tokens:
        """The scored positions of `prompts`."""
        encoded = tokenize(self.tokenizer, prompts)
        parts = [
            read_hookpoint(self.encoder, self.hookpoint, encoded.input_ids[i : i + batch])[
                encoded.scored[i : i + batch]
            ]
            for i in range(0, len(prompts), batch)
        ]
        return Tokens(torch.cat(parts), encoded.input_ids, encoded.scored)

    def codes(self, hidden: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (..., F) by threshold alone, so that each latent decides for itself (with TopK the threshold is 0)."""
        keep = slice(None) if features is None else features
        sae = self.sae
        return jump_codes(hidden, sae.W_enc[:, keep], sae.b_enc[keep], sae.b_dec, sae.threshold[keep])

    def firing(self, hidden: torch.Tensor, *, batch: int = 4096) -> torch.Tensor:
        """How often each latent fires at these tokens (T, D): (F,)."""
        counts = [(self.codes(hidden[i : i + batch]) > 0).sum(0) for i in range(0, len(hidden), batch)]
        return torch.stack(counts).sum(0) / len(hidden)

    def name_labels(self, tokens: Tokens, names: list[str]) -> torch.Tensor:
        """(T,) index of the name whose last token a position is, or -1."""
        labels = torch.full(tokens.ids.shape, -1)
        for index, name in enumerate(names):
            labels[find_tokens(tokens.ids, self.tokenizer(name, add_special_tokens=False).input_ids)] = index
        return labels[tokens.scored]


def features() -> None:
    """Selects on one split, calibrates on another, and writes the filter of every request."""
    params, requests = load_params(), load_requests()
    table, corpus = read_concepts(requests), read_table(CORPUS)
    sae, _ = read_sae(SAE)
    reader = Reader(params, sae)
    benign = corpus.loc[corpus["split"] == "calibrate", "prompt"].tolist()
    background = corpus.loc[corpus["split"] == "train", "prompt"].tolist()[: len(benign)]
    read = {"benign": (benign, reader.tokens(benign)), "background": (background, reader.tokens(background))}
    filters: dict[str, RequestFilter] = {}
    facts: dict[str, Any] = {}
    for request_id, request in requests.items():
        if "filter" not in request.channels:
            continue
        own = where(table, table["request"] == request_id)
        filters[request_id], facts[request_id] = fit_request(request, own, reader, read, params)
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
    request: Request, table: pd.DataFrame, reader: Reader, read: dict[str, tuple[list[str], Tokens]], params: Params
) -> tuple[RequestFilter, dict[str, Any]]:
    """The filter of one request and the facts about it."""
    settings = params.features
    chosen = where(table, table["split"] == "select").reset_index(drop=True)
    names = names_for(request, "select")
    carrying = reader.tokens(chosen.loc[chosen["carries"], "prompt"].tolist())
    labels = reader.name_labels(carrying, names)
    names = [n for i, n in enumerate(names) if bool((labels == i).any())]
    labels = reader.name_labels(carrying, names)
    kept = {
        role: reader.tokens(rows["prompt"].tolist())
        for role, rows in where(chosen, ~chosen["carries"]).groupby("role", sort=True)
    }
    text, tokens = read["background"]
    kept["background"] = without(tokens, [mentions(t, request.names) for t in text])
    named, others = carrying.hidden[labels >= 0], torch.cat([group.hidden for group in kept.values()])
    wanted = np.concatenate([labels[labels >= 0].numpy(), np.full(len(others), -1)])
    by_name = torch.stack([reader.firing(named[labels[labels >= 0] == i]) for i in range(len(names))])
    groups = torch.stack([reader.firing(group.hidden) for group in kept.values()])
    own, contrast = select_features(
        by_name, groups, max_features=settings.max_features, min_contrast=settings.min_contrast
    )

    def fit(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, bias = fit_score(reader.codes(torch.cat([named, others]), indices).numpy(), wanted)
        return torch.from_numpy(weights).float(), torch.from_numpy(bias).float()

    first = position_scores(reader.codes(others, own), *fit(own))
    mistaken = others[first.topk(min(MISTAKEN, len(first))).indices]
    context = context_features(by_name, reader.firing(mistaken), own, settings.context_features)
    indices = torch.cat([own, context])
    weights, bias = fit(indices)

    def scores(tokens: Tokens) -> np.ndarray:
        each = torch.full(tokens.scored.shape, float("-inf"))
        each[tokens.scored] = position_scores(reader.codes(tokens.hidden, indices), weights, bias)
        return prompt_scores(each, tokens.scored).numpy()

    held = where(table, table["split"] == "calibrate")
    positives = scores(reader.tokens(held.loc[held["carries"], "prompt"].tolist()))
    text, tokens = read["benign"]
    clean = without(tokens, [mentions(t, request.names) for t in text])
    negatives = np.concatenate([scores(reader.tokens(held.loc[~held["carries"], "prompt"].tolist())), scores(clean)])
    threshold = conformal_threshold(negatives, settings.fpr)
    item = RequestFilter(
        features=indices,
        own=(torch.arange(len(indices)) < len(own)).float(),
        w_enc=reader.sae.W_enc[:, indices],
        b_enc=reader.sae.b_enc[indices],
        jump=reader.sae.threshold[indices],
        w_dec=reader.sae.W_dec[indices],
        b_dec=reader.sae.b_dec,
        weights=weights,
        bias=bias,
        threshold=torch.tensor(threshold, dtype=torch.float32),
        directions=fit_directions(chosen, reader, names),
    )
    curve = roc(positives, negatives)
    keep = np.unique(np.linspace(0, len(curve.fpr) - 1, 200).astype(int))
    facts = {
        "names": names,
        "contrast": [round(float(c), 4) for c in contrast],
        "features": own.tolist(),
        "context_features": context.tolist(),
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


def without(tokens: Tokens, drop: list[bool]) -> Tokens:
    """The tokens of the prompts that are not dropped."""
    keep = ~torch.tensor(drop)
    return Tokens(tokens.hidden[keep[tokens.prompt]], tokens.ids[keep], tokens.scored[keep])


def fit_directions(chosen: pd.DataFrame, reader: Reader, names: list[str]) -> torch.Tensor:
    """Replacement steps (K, D) from the selection prompts that have a counterpart about the anchor; else zeros."""
    paired = where(chosen, chosen["counterpart"] != "")
    if paired.empty:
        return torch.zeros(len(POSITION_CLASSES), reader.sae.d_in)
    hidden, scored, named = [], [], []
    for column in ("prompt", "counterpart"):
        encoded = tokenize(reader.tokenizer, paired[column].tolist())
        hidden.append(read_hookpoint(reader.encoder, reader.hookpoint, encoded.input_ids))
        scored.append(encoded.scored)
        found = [find_tokens(encoded.input_ids, reader.tokenizer(n, add_special_tokens=False).input_ids) for n in names]
        named.append(torch.stack(found).any(0))
    classes = position_classes(named[0], scored[0])
    return replacement_directions(hidden[0], hidden[1], classes, scored[0].sum(1), scored[1].sum(1))


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
