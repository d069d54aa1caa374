"""Measures detection on prompts alone: the product's filter against published and plain detectors, on the same prompts.

    P prompts, T tokens (scored positions), D = d_in, F = d_sae, S features, N names of the target, R requests

    score or name what ships: the decision of `FilteredTextEncoder`, at the threshold in the filter
    logistic      its score alone: the largest over positions, without the list of names
    feature sum   the largest over positions of Σ contrast_s · z_s over the request's own features
    distance      ItD (arXiv 2503.09446): mean of (y - h)² with the own features times -8 and y the whole reconstruction;
                  over scored positions of the full-length prompt, so that it does not depend on the batch
    cosine        Semantic Surgery (arXiv 2510.22851): cos(e(prompt) - e(""), e(name) - e("")), the best of the names
    word list     whether a known name stands in the prompt

All thresholds come from the calibration split by the same rule and for the same budget; a word list needs none. The list
of names lacks the alias that is reserved for the evaluation, so that prompts with it are about a name that nobody listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from tqdm import tqdm

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.collect.spelling import misspellings
from components.collect.tables import where
from components.common.roc import auroc
from components.common.words import mentions
from components.diffusion.encode import spelling_patterns, tokenize
from components.evaluate.metrics import Metric, mean_interval, proportion
from components.features.fit import Shared, fit_request
from components.features.params import FeaturesParams
from components.features.reading import Reader
from components.features.scores import conformal_threshold, strictest_threshold
from components.filter.artifact import RequestFilter
from components.filter.encoder import Decision, FilteredTextEncoder
from components.filter.scores import position_scores
from components.requests.requests import Request
from components.worlds.base import World
from research.filter.prompts import NAMED, POSITIVE

SHIPPED = "score or name"
FLIP = -8.0
"""ItD's multiplier of a deactivated feature."""
_BATCH = 64  # prompts that all filters see at once
_TOKENS = 8192


class Reading(NamedTuple):
    """What detectors may look at for P prompts."""

    texts: list[str]
    hidden: torch.Tensor
    """(T, D) residual stream at the scored positions."""
    prompt: torch.Tensor
    """(T,) the prompt of each token."""
    error: torch.Tensor
    """(T, D) x̂ - h, the SAE's error at each token."""
    pooled: torch.Tensor
    """(P, D) the encoder's final EOS state, less that of the empty prompt."""

    def take(self, chosen: Sequence[bool]) -> Reading:
        """The reading of some of the prompts."""
        rows = torch.tensor(chosen, dtype=torch.bool)
        texts = [text for text, wanted in zip(self.texts, chosen, strict=True) if wanted]
        tokens, index = rows[self.prompt], rows.cumsum(0) - 1
        return Reading(texts, self.hidden[tokens], index[self.prompt[tokens]], self.error[tokens], self.pooled[rows])

    def maxima(self, values: torch.Tensor) -> np.ndarray:
        """The largest value (T,) of each prompt, (P,)."""
        empty = torch.full((len(self.texts),), float("-inf"))
        return empty.scatter_reduce(0, self.prompt, values, "amax").numpy()

    def means(self, values: torch.Tensor) -> np.ndarray:
        """The mean value (T,) of each prompt, (P,)."""
        return torch.zeros(len(self.texts)).scatter_reduce(0, self.prompt, values, "mean", include_self=False).numpy()


def join(readings: Sequence[Reading]) -> Reading:
    """Several readings as one."""
    starts = np.cumsum([0, *(len(r.texts) for r in readings)])
    return Reading(
        [text for r in readings for text in r.texts],
        torch.cat([r.hidden for r in readings]),
        torch.cat([r.prompt + int(start) for r, start in zip(readings, starts, strict=False)]),
        torch.cat([r.error for r in readings]),
        torch.cat([r.pooled for r in readings]),
    )


@torch.no_grad()
def read(reader: Reader, texts: list[str]) -> Reading:
    """Reads prompts once for all detectors and requests."""
    tokens = reader.tokens(texts)
    error = torch.cat([reader.sae.decode(reader.codes(part)) - part for part in tokens.hidden.split(_TOKENS)])
    prompt = torch.arange(len(texts)).repeat_interleave(tokens.scored.sum(1))
    return Reading(texts, tokens.hidden, prompt, error, pooled(reader, texts) - pooled(reader, [""]))


@torch.no_grad()
def pooled(reader: Reader, texts: Sequence[str], *, batch: int = 256) -> torch.Tensor:
    """The final EOS states (P, D)."""
    ids = tokenize(reader.tokenizer, texts).input_ids
    encoder = reader.towers.first.encoder
    return torch.cat([encoder(part.to(reader.towers.first.device)).pooler_output.cpu() for part in ids.split(batch)])


@torch.no_grad()
def decide(reader: Reader, filters: Mapping[str, RequestFilter], texts: Sequence[str]) -> Decision:
    """What the product decides about P prompts with R filters, (P, R)."""
    encoder, encoded = FilteredTextEncoder(reader.towers, filters), reader.towers.tokenize(texts)
    starts = tqdm(range(0, len(texts), _BATCH), desc="decide", unit="batch", leave=False)
    parts = [encoder.encode(encoded.rows(slice(start, start + _BATCH)))[1] for start in starts]
    return Decision(tuple(filters), *(torch.cat([getattr(p, f).cpu() for p in parts]) for f in ("scores", "flagged")))


class Detector(NamedTuple):
    """One request's filter, with what the other detectors need."""

    item: RequestFilter
    contrast: torch.Tensor
    """(S,) of the own features, 0 for context."""
    names: tuple[str, ...]
    """Names that selection saw."""
    slips: tuple[str, ...]
    """Misspelt forms of them that the filter looks for."""
    directions: torch.Tensor
    """(N, D) pooled states of the names, less that of the empty prompt."""


def own_codes(reading: Reading, reader: Reader, item: RequestFilter) -> torch.Tensor:
    """Codes of the filter's features at every token, (T, S)."""
    return torch.cat([reader.codes(part)[:, item.features] for part in reading.hidden.split(_TOKENS)])


def by_logistic(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:
    """Our score, (P,)."""
    item = detector.item
    return reading.maxima(position_scores(own_codes(reading, reader, item), item.weights, item.bias))


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
        for error, part in zip(reading.error.split(_TOKENS), code.split(_TOKENS), strict=True)
    ]
    return reading.means(torch.cat(squares))


def by_cosine(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:  # noqa: ARG001 - one signature for all
    """Semantic Surgery's cosine, (P,)."""
    return (F.normalize(reading.pooled, dim=1) @ F.normalize(detector.directions, dim=1).T).amax(1).numpy()


def by_words(reading: Reading, reader: Reader, detector: Detector) -> np.ndarray:  # noqa: ARG001 - one signature for all
    """1 where a known name stands in the prompt as whole words, else 0, (P,)."""
    return np.array([float(mentions(text, detector.names)) for text in reading.texts])


RIVALS: Mapping[str, Callable[[Reading, Reader, Detector], np.ndarray]] = {
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
    """benign, anchor, neighbour, retain."""


def fit_all(
    requests: Mapping[str, Request], world: World, concepts: ConceptsParams, features: FeaturesParams, shared: Shared
) -> tuple[pd.DataFrame, dict[str, Detector]]:
    """(all prompts, a fitted detector for each request); smaller prompt sets than the stage's, the same rules."""
    fewer = concepts.model_copy(update={"retain": 400, "mixed": 80})
    table, detectors = build_prompts(requests, world, fewer), {}
    for request_id, request in tqdm(requests.items(), desc="fit", unit="request"):
        own = where(table, table["request"] == request_id)
        item, facts = fit_request(make_record(request_id, request, world), own, shared, features)
        detectors[request_id] = make_detector(shared.reader, item, facts["contrast"], facts["names"], world)
    return table, detectors


def make_detector(
    reader: Reader, item: RequestFilter, contrast: list[float], names: list[str], world: World
) -> Detector:
    """A detector for one fitted filter, which lists no name but those that selection saw, and their misspellings."""
    padded = torch.zeros(len(item.features))
    padded[: len(contrast)] = torch.tensor(contrast)
    slips = tuple(misspellings(names, world.known_words()))
    listed = item._replace(spellings=spelling_patterns(reader.tokenizer, names, slips))
    return Detector(listed, padded, tuple(names), slips, pooled(reader, names) - pooled(reader, [""]))


def unnamed(reading: Reading, request: Request, detector: Detector) -> Reading:
    """Those prompts that contain no name of the target, nor a slip of one that selection saw; the stage calibrates on such."""
    named = (*request.names, *detector.slips)
    return reading.take([not mentions(text, named) for text in reading.texts])


def rival_threshold(
    name: str,
    detector: Detector,
    reader: Reader,
    calibration: Sequence[Reading],  # groups that do not name the target, in each of which the budget is kept
    fpr: float,
) -> float:
    """The threshold of one of `RIVALS`, by the product's rule."""
    if name == "word list":
        return 1.0
    return strictest_threshold([RIVALS[name](group, reader, detector) for group in calibration], fpr)


def scores_of(
    compute: Callable[[Reading], np.ndarray],
    threshold: float,
    request: Request,
    readings: Mapping[str, Reading],
    benign: Reading,
) -> Scores:
    """One detector's scores of every group of prompts; prompts that name the target are no negatives."""
    positive: dict[str, np.ndarray] = {}
    negative: dict[str, np.ndarray] = {}
    for role, reading in {"benign": benign, **readings}.items():
        found = compute(reading)
        if role in POSITIVE:
            positive[role] = found
        else:
            negative[role] = found[[not mentions(text, request.names) for text in reading.texts]]
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
    calibration: tuple[Reading, Reading],  # prompts that name a target, and benign ones
    positive: Reading,
    negative: Reading,
    fpr: float,
) -> dict[str, Metric]:
    """ItD as published: one feature set and one threshold for all requests, by its rule (0.99 · min) and at our budget."""
    own = {int(f) for d in detectors.values() for f in d.item.features[d.item.own > 0]}
    features = torch.tensor(sorted(own))
    w_dec = reader.sae.W_dec[features]

    def score(reading: Reading) -> np.ndarray:
        code = torch.cat([reader.codes(part)[:, features] for part in reading.hidden.split(_TOKENS)])
        return reconstruction_distance(reading, code, w_dec)

    limits = {
        "published rule": 0.99 * float(score(calibration[0]).min()),
        "our budget": conformal_threshold(score(calibration[1]), fpr),
    }
    on, off = score(positive), score(negative)
    return {f"tpr, {rule}": proportion(on >= limit) for rule, limit in limits.items()} | {
        f"fpr, {rule}": proportion(off >= limit) for rule, limit in limits.items()
    }
