"""Measures detection on prompts alone: our score against published and plain ones, on the same held-out prompts.

    P prompts, T tokens (scored positions), D = d_in, F = d_sae, S features, N names of the target

    logistic      max over positions of the calibrated logistic over own and context features
    score or name the same, and any known name that stands in the prompt to the letter, or one slip away from it (what ships)
    feature sum   max over positions of Σ contrast_s · z_s over the request's own features
    distance      ItD (arXiv 2503.09446): mean of (y - h)² with the own features times -8 and y the whole reconstruction;
                  over scored positions of the full-length prompt, so that it does not depend on the batch
    cosine        Semantic Surgery (arXiv 2510.22851): cos(e(prompt) - e(""), e(name) - e("")), the best of the names
    word list     whether a known name stands in the prompt

Every threshold comes from the calibration split by the same rule and for the same budget; a word list needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from components.collect.concepts import build_prompts
from components.collect.spelling import known_words, misspellings
from components.collect.tables import where
from components.common.roc import auroc
from components.common.sections import Params
from components.common.words import mentions
from components.diffusion.encode import tokenize
from components.evaluate.metrics import Metric, mean_interval, proportion
from components.features.fit import fit_request
from components.features.reading import Reader, Tokens, without
from components.features.scores import conformal_threshold, strictest_threshold
from components.filter.artifact import RequestFilter
from components.filter.scores import position_scores
from components.requests.requests import Request
from research.filter.prompts import NAMED, POSITIVE

FLIP = -8.0
"""ItD's multiplier of a deactivated feature."""


class Reading(NamedTuple):
    """What detectors may look at for P prompts."""

    texts: list[str]
    tokens: Tokens
    error: torch.Tensor
    """(T, D) x̂ - h, the SAE's error at each token."""
    pooled: torch.Tensor
    """(P, D) the encoder's final EOS state, less that of the empty prompt."""

    def take(self, keep: list[bool]) -> Reading:
        """The reading of some of the prompts."""
        rows = torch.tensor(keep)
        texts = [text for text, k in zip(self.texts, keep, strict=True) if k]
        return Reading(
            texts, without(self.tokens, (~rows).tolist()), self.error[rows[self.tokens.prompt]], self.pooled[rows]
        )

    def maxima(self, values: torch.Tensor) -> np.ndarray:
        """The largest value (T,) of each prompt, (P,)."""
        empty = torch.full((len(self.texts),), float("-inf"))
        return empty.scatter_reduce(0, self.tokens.prompt, values, "amax").numpy()

    def means(self, values: torch.Tensor) -> np.ndarray:
        """The mean value (T,) of each prompt, (P,)."""
        return torch.zeros(len(self.texts)).scatter_reduce(
            0, self.tokens.prompt, values, "mean", include_self=False
        ).numpy()  # fmt: skip


@torch.no_grad()
def read(reader: Reader, texts: list[str], *, batch: int = 256) -> Reading:
    """Reads prompts once for all detectors and requests."""
    tokens = reader.tokens(texts)
    sae = reader.sae
    error = torch.cat([
        sae.decode(reader.codes(part)) - part for part in tokens.hidden.split(8192)
    ])  # fmt: skip
    empty = pooled(reader, [""])
    return Reading(texts, tokens, error, pooled(reader, texts, batch=batch) - empty)


@torch.no_grad()
def pooled(reader: Reader, texts: list[str], *, batch: int = 256) -> torch.Tensor:
    """The final EOS states (P, D)."""
    ids = tokenize(reader.tokenizer, texts).input_ids
    return torch.cat([reader.encoder(ids[i : i + batch]).pooler_output for i in range(0, len(ids), batch)])


class Detector(NamedTuple):
    """One request's filter with what the outsiders need."""

    item: RequestFilter
    contrast: torch.Tensor
    """(S,) of the own features, 0 for context."""
    names: tuple[str, ...]
    """Names that selection saw."""
    slips: tuple[str, ...]
    """Misspelt forms of them that the filter looks for."""
    directions: torch.Tensor
    """(N, D) pooled states of the names, less that of the empty prompt."""


def make_detector(reader: Reader, item: RequestFilter, contrast: list[float], names: list[str]) -> Detector:
    """A detector for one fitted filter."""
    padded = torch.zeros(len(item.features))
    padded[: len(contrast)] = torch.tensor(contrast)
    slips = tuple(misspellings(names, known_words()))
    return Detector(item, padded, tuple(names), slips, pooled(reader, names) - pooled(reader, [""]))


def own_codes(reading: Reading, reader: Reader, item: RequestFilter) -> torch.Tensor:
    """Codes of the filter's features at every token, (T, S)."""
    return reader.codes(reading.tokens.hidden, item.features)


def by_logistic(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:
    """Our score, (P,)."""
    item = detector.item
    return reading.maxima(position_scores(own_codes(reading, reader, item), item.weights, item.bias))


def by_score_or_name(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:
    """Our score, and above all scores a prompt that holds a known name, well spelt or not, (P,)."""
    slip = by_words(reading, reader, detector._replace(names=detector.slips))
    return np.where(by_words(reading, reader, detector) + slip > 0, np.inf, by_logistic(reading, reader, detector))


def by_feature_sum(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:
    """Own features weighted by their contrast, (P,)."""
    return reading.maxima(own_codes(reading, reader, detector.item) @ detector.contrast)


def by_distance(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:
    """ItD's reconstruction distance, (P,)."""
    item = detector.item
    return reconstruction_distance(reading, own_codes(reading, reader, item) * item.own, item.w_dec)


def reconstruction_distance(reading: Reading, code: torch.Tensor, w_dec: torch.Tensor) -> np.ndarray:
    """Mean |y - h|² of each prompt, (P,), with y = x̂ + (FLIP - 1) z_F W_F: codes (T, S), decoder rows (S, D)."""
    squares = [
        (error + (FLIP - 1) * part @ w_dec).square().mean(1)
        for error, part in zip(reading.error.split(8192), code.split(8192), strict=True)
    ]
    return reading.means(torch.cat(squares))


def by_cosine(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:  # noqa: ARG001 - one signature for all
    """Semantic Surgery's cosine, (P,)."""
    return (F.normalize(reading.pooled, dim=1) @ F.normalize(detector.directions, dim=1).T).amax(1).numpy()


def by_words(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:  # noqa: ARG001 - one signature for all
    """1 where a known name stands in the prompt as whole words, else 0, (P,)."""
    return np.array([float(mentions(text, detector.names)) for text in reading.texts])


DETECTORS: Mapping[str, Callable[[Reading, Reader, Detector], np.ndarray]] = {
    "score or name": by_score_or_name,
    "logistic": by_logistic,
    "feature sum": by_feature_sum,
    "distance": by_distance,
    "cosine": by_cosine,
    "word list": by_words,
}


class Scores(NamedTuple):
    """One detector's scores for one request."""

    threshold: float
    positive: dict[str, np.ndarray]
    """By role."""
    negative: dict[str, np.ndarray]
    """benign, neighbour, retain."""


def fit_all(
    requests: Mapping[str, Request], params: Params, reader: Reader, shared: Mapping[str, tuple[list[str], Tokens]]
) -> tuple[pd.DataFrame, dict[str, Detector]]:
    """(all prompts, a fitted detector for each request); smaller prompt sets than the stage's, the same rules."""
    settings = params.concepts
    table = build_prompts(dict(requests), per_name=settings.per_name, retain=400, mixed=80, seed=settings.seed)
    detectors: dict[str, Detector] = {}
    for request_id, request in requests.items():
        own = where(table, table["request"] == request_id)
        item, facts = fit_request(request, own, reader, shared, params.features)
        detectors[request_id] = make_detector(reader, item, facts["contrast"], facts["names"])
    return table, detectors


def unnamed(reading: Reading, request: Request, detector: Detector) -> Reading:
    """Those prompts that hold no name of the target, nor a slip of one that selection saw; the stage calibrates on such."""
    named = (*request.names, *detector.slips)
    return reading.take([not mentions(text, named) for text in reading.texts])


def score_request(
    name: str,
    detector: Detector,
    request: Request,
    reader: Reader,
    calibration: Sequence[Reading],  # groups that do not name the target, in each of which the budget is kept
    readings: Mapping[str, Reading],
    benign: Reading,
    fpr: float,
) -> Scores:
    """One detector's threshold for one request, from `calibration`, and its scores of every group of prompts."""
    compute = DETECTORS[name]
    quiet = [compute(group, reader, detector) for group in calibration]
    threshold = 1.0 if name == "word list" else strictest_threshold(quiet, fpr)
    free = np.array([not mentions(t, request.names) for t in benign.texts])
    positive, negative = {}, {"benign": compute(benign, reader, detector)[free]}
    for role, reading in readings.items():
        found = compute(reading, reader, detector)
        if role in POSITIVE:
            positive[role] = found
        else:
            negative[role] = found[[not mentions(t, request.names) for t in reading.texts]]
    return Scores(threshold, positive, negative)


def summarise(scores: Mapping[str, Scores]) -> dict[str, Metric]:
    """Over all requests: mean AUROC, and TPR by role and FPR by group at each request's own threshold."""
    areas = [
        auroc(
            np.concatenate([s.positive[r] for r in NAMED if r in s.positive]), np.concatenate(list(s.negative.values()))
        )
        for s in scores.values()
    ]
    out = {"auroc": mean_interval(areas) if len(areas) > 1 else Metric(areas[0], 1, areas[0], areas[0])}
    hits: dict[str, list[np.ndarray]] = {}
    for found in scores.values():
        for role, values in found.positive.items():
            hits.setdefault(f"tpr {role}", []).append(values >= found.threshold)
        for group, values in found.negative.items():
            hits.setdefault(f"fpr {group}", []).append(values >= found.threshold)
    named = [h for role in NAMED for h in hits.get(f"tpr {role}", [])]
    return (
        out | {"tpr": proportion(np.concatenate(named))} | {k: proportion(np.concatenate(v)) for k, v in hits.items()}
    )


def shared_distance(
    detectors: Mapping[str, Detector],
    reader: Reader,
    calibration: tuple[Reading, Reading],  # prompts that carry a target, and benign ones
    positive: Reading,
    negative: Reading,
    fpr: float,
) -> dict[str, Metric]:
    """ItD as published: one feature set and one threshold for all requests, by its rule (0.99 · min) and at our budget."""
    features = torch.tensor(
        sorted({int(f) for d in detectors.values() for f, own in zip(d.item.features, d.item.own, strict=True) if own})
    )
    w_dec = reader.sae.W_dec[features]

    def score(reading: Reading) -> np.ndarray:
        return reconstruction_distance(reading, reader.codes(reading.tokens.hidden, features), w_dec)

    limits = {
        "published rule": 0.99 * float(score(calibration[0]).min()),
        "our budget": conformal_threshold(score(calibration[1]), fpr),
    }
    on, off = score(positive), score(negative)
    return {f"tpr, {rule}": proportion(on >= limit) for rule, limit in limits.items()} | {
        f"fpr, {rule}": proportion(off >= limit) for rule, limit in limits.items()
    }
