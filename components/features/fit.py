"""Fits the filter of one request: reads its prompts, selects features, fits and calibrates the score, takes the replacement.

P prompts, L token positions, T tokens, D = d_in, F = d_sae, S selected features, N names of the target
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch

from components.collect.concepts import names_for
from components.collect.corpus import SOURCES
from components.collect.spelling import known_words, misspellings
from components.collect.tables import where
from components.common.words import mentions
from components.diffusion.encode import spelling_patterns, tokenize
from components.diffusion.hooks import read_hookpoint
from components.diffusion.trie import build_trie, find_names
from components.features.directions import replacement_directions
from components.features.params import FeaturesParams
from components.features.reading import Codes, HiddenCodes, Reader, Tokens, without
from components.features.scores import (
    auroc,
    context_features,
    fit_score,
    roc,
    select_features,
    stands_alone,
    strictest_threshold,
)
from components.filter.artifact import RequestFilter
from components.filter.positions import POSITION_CLASSES, position_classes
from components.filter.scores import position_scores, prompt_scores
from components.requests.requests import Request

GAIN = {"replace": 0.0, "zero": -1.0, "flip": -9.0}
"""What each edit adds to the stream for every unit of an own feature's code; flip is ItD's multiplier of -8."""
MISTAKEN = 1000
"""Kept tokens, those that score highest, from which context features are found."""
HARDEST = 10_000
"""Kept tokens, those that score highest, that the last fit sees a second time."""
SHARE = 7
"""One in so many background tokens is in every fit; the others are searched for those that score highest."""


C = TypeVar("C", bound=Codes)
Score = tuple[torch.Tensor, torch.Tensor]
"""(weights (N, S), bias (N,))."""


class Fitted(NamedTuple):
    """A target's features and the score over them."""

    features: torch.Tensor
    """(S,) the target's own first, then context."""
    own: int
    """How many of them are its own."""
    contrast: torch.Tensor
    """(own,)"""
    weights: torch.Tensor
    """(N, S)"""
    bias: torch.Tensor
    """(N,)"""


def fit_scores(
    named: C,  # tokens of the target's names
    labels: torch.Tensor,  # (T,) which name each of them is
    kept: Sequence[C],  # groups of tokens to retain that every fit sees
    rest: C,  # further tokens to retain, searched for those that score highest
    settings: FeaturesParams,
    *,
    mistaken: int = MISTAKEN,
    hardest: int = HARDEST,
    merge: bool = False,
) -> Fitted:
    """Selects a target's features and fits its score.

    With `merge` all kept tokens at which no feature fires are one row of the regression that counts so often.
    """
    others = kept[0].join(kept[1:])
    every = others.join([rest])
    by_name = torch.stack([named.take((labels == i).nonzero()[:, 0]).firing() for i in range(int(labels.max()) + 1)])
    groups = torch.stack([group.firing() for group in kept])
    own, contrast = select_features(
        by_name, groups, max_features=settings.max_features, min_contrast=settings.min_contrast
    )

    def fit(features: torch.Tensor, against: C) -> Score:
        wanted = torch.cat([labels, torch.full((len(against),), -1)]).numpy()
        codes, counts = named.join([against]).columns(features).numpy(), None
        if merge:
            idle = (wanted < 0) & ~codes.any(1)
            row = np.flatnonzero(idle)[:1]
            counts = np.concatenate([np.ones((~idle).sum()), np.full(len(row), idle.sum())])
            codes, wanted = (np.concatenate([part[~idle], part[row]]) for part in (codes, wanted))
        weights, bias = fit_score(codes, wanted, counts=counts)
        return torch.from_numpy(weights).float(), torch.from_numpy(bias).float()

    def most_like(features: torch.Tensor, score: Score, count: int) -> C:
        """The tokens to keep that this score over these features takes most for the target."""
        found = every.scores(features, *score)
        return every.take(found.topk(min(count, len(found))).indices)

    first = fit(own, others)
    mistaken_for = most_like(own, first, mistaken)
    context = context_features(by_name, mistaken_for.firing(), own, settings.context_features)
    features = torch.cat([own, context])
    second = fit(features, others)
    weights, bias = fit(features, others.join([most_like(features, second, hardest)]))
    return Fitted(features, len(own), contrast, weights, bias)


def shared_tokens(corpus: pd.DataFrame, reader: Reader) -> dict[str, tuple[list[str], Tokens]]:
    """The prompts, and their tokens, that every request is selected and calibrated against; `traffic` are the user's own."""
    calibrate, own = corpus["split"] == "calibrate", corpus["source"] == SOURCES
    parts = {"benign": calibrate & ~own, "traffic": calibrate & own, "background": corpus["split"] == "train"}
    texts = {name: where(corpus, rows)["prompt"].tolist() for name, rows in parts.items()}
    return {name: (listed, reader.tokens(listed)) for name, listed in texts.items() if listed}


def fit_request(
    request: Request,
    table: pd.DataFrame,
    reader: Reader,
    read: Mapping[str, tuple[list[str], Tokens]],
    settings: FeaturesParams,
) -> tuple[RequestFilter, dict[str, Any]]:
    """The filter of one request and the facts about it.

    `table` holds its prompts; `read` the prompts, and their tokens, that all requests share: `benign` and `traffic` to
    calibrate and `background` to select against. `UserError` when nothing tells the target apart or the budget cannot be supported.
    """
    chosen = where(table, table["split"] == "select").reset_index(drop=True)
    rows = where(chosen, chosen["carries"])
    carrying, spoken = reader.tokens(rows["prompt"].tolist()), rows["spoken"].tolist()
    names = [n for n in names_for(request, "select") if n in spoken]
    which = torch.tensor([names.index(s) for s in spoken])
    labels = torch.where(reader.last_tokens(carrying.ids, spoken), which[:, None], -1)[carrying.scored]  # (T,)
    kept = {
        role: reader.tokens(rows["prompt"].tolist())
        for role, rows in where(chosen, ~chosen["carries"]).groupby("role", sort=True)
    }
    listed = names_for(request, "evaluate")
    spellings = spelling_patterns(reader.tokenizer, listed, misspellings(listed, known_words()))
    trie = build_trie([spellings], reader.word_ends)

    def unnamed(part: str) -> Tokens:
        """Those of the prompts that all requests share that do not name the target, however it is spelt."""
        text, tokens = read[part]
        spelt = find_names(tokens.ids, trie)[..., 0].any(1).tolist()
        return without(tokens, [s or mentions(t, tuple(listed)) for s, t in zip(spelt, text, strict=True)])

    pool = unnamed("background").hidden
    groups = [group.hidden for group in kept.values()] + [pool[: len(pool) // SHARE]]
    fitted = fit_scores(
        HiddenCodes(reader, carrying.hidden[labels >= 0]),
        labels[labels >= 0],
        [HiddenCodes(reader, group) for group in groups],
        HiddenCodes(reader, pool[len(pool) // SHARE :]),
        settings,
    )
    indices, weights, bias = fitted.features, fitted.weights, fitted.bias
    own, context, contrast = indices[: fitted.own], indices[fitted.own :], fitted.contrast

    def scores(tokens: Tokens) -> np.ndarray:
        each = torch.full(tokens.scored.shape, float("-inf"))
        each[tokens.scored] = position_scores(reader.codes(tokens.hidden, indices), weights, bias)
        return prompt_scores(each, tokens.scored).numpy()

    held = where(table, table["split"] == "calibrate")
    carries = where(held, held["carries"])
    heard = reader.tokens(carries["prompt"].tolist())
    whole = reader.last_tokens(heard.ids, carries["spoken"].tolist()).any(1)  # in a long prompt the name may be cut off
    positives = scores(heard)[whole.numpy()]
    near = scores(reader.tokens(held.loc[~held["carries"], "prompt"].tolist()))
    benign, *traffic = (scores(unnamed(part)) for part in ("benign", "traffic") if part in read)
    groups = [np.concatenate([near, benign]), *traffic]
    threshold, negatives = strictest_threshold(groups, settings.fpr), np.concatenate(groups)
    replaces = settings.edit == "replace" and bool(request.anchor)
    directions = fit_directions(chosen, reader) if replaces else torch.zeros(len(POSITION_CLASSES), reader.sae.d_in)
    gain = 0.0 if replaces else GAIN["zero" if settings.edit == "replace" else settings.edit]
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
        directions=directions,
        gain=torch.tensor(gain),
        classes=torch.tensor([float(name in settings.positions) for name in POSITION_CLASSES]),
        spellings=spellings,
        word_ends=reader.word_ends,
    )
    curve = roc(positives, negatives)
    keep = np.unique(np.linspace(0, len(curve.fpr) - 1, 200).astype(int))
    facts: dict[str, Any] = {
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
    for heard in traffic:
        flagged = {"fpr": round(float((heard >= threshold).mean()), 6)} if len(heard) else {}
        facts["calibration"]["traffic"] = {"n": len(heard), "alone": stands_alone(heard, settings.fpr)} | flagged
    return item, facts


def fit_directions(chosen: pd.DataFrame, reader: Reader) -> torch.Tensor:
    """Replacement steps (K, D) from the selection prompts that have a counterpart about the anchor."""
    paired = where(chosen, chosen["counterpart"] != "")
    encoded = [tokenize(reader.tokenizer, paired[column].tolist()) for column in ("prompt", "counterpart")]
    hidden = [read_hookpoint(reader.encoder, reader.hookpoint, e.input_ids) for e in encoded]
    scored = [e.scored for e in encoded]
    classes = position_classes(reader.last_tokens(encoded[0].input_ids, paired["spoken"].tolist()), scored[0])
    return replacement_directions(hidden[0], hidden[1], classes, scored[0].sum(1), scored[1].sum(1))
