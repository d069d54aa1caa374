"""Fits the filter of one request: reads its prompts, selects features, fits and calibrates the score, takes the replacement.

P prompts, L token positions, T tokens, D = d_in, S selected features, N names of the target

What all requests are selected and calibrated against is read once, into `Shared`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from components.collect.record import RequestRecord
from components.collect.tables import REAL, SOURCES, where
from components.common.roc import auroc, roc
from components.diffusion.encode import spelling_patterns
from components.features.directions import replacement_directions
from components.features.params import FeaturesParams
from components.features.reading import Reader
from components.features.scores import gate_threshold, stands_alone, strictest_threshold
from components.features.selection import Fitted, fit_scores
from components.features.store import Store, TokenSet
from components.filter.artifact import RequestFilter
from components.filter.positions import POSITION_CLASSES, position_classes

SHARE = 7
"""One in so many background tokens is in every fit; the others are searched for those that score highest."""
_POINTS = 200  # of the ROC in the facts


class Shared(NamedTuple):
    """What every request is selected and calibrated against."""

    reader: Reader
    background: Store
    """Prompts to select against."""
    benign: Store
    """Prompts to calibrate against."""
    traffic: Store | None
    """The user's own prompts to calibrate against, if there are any."""
    real: Store | None = None
    """Prompts that people wrote, to calibrate against."""


class OwnPrompts(NamedTuple):
    """The prompts of one request, as they were read."""

    select: Store
    names: list[str]
    """The target's names that selection prompts use."""
    labels: np.ndarray
    """(T,) which name ends at a token of `select`, or -1."""
    retain: list[np.ndarray]
    """Tokens of `select` in prompts that do not name the target, a group for each role."""
    calibrate: Store
    names_target: np.ndarray
    """(P,) bool: prompts of `calibrate` that name the target, those aside in which the tokenizer cut the name off."""
    negative: np.ndarray
    """(P,) bool: prompts of `calibrate` that do not name it."""
    directions: torch.Tensor
    """(K, D)"""


def read_shared(corpus: pd.DataFrame, reader: Reader) -> Shared:
    """Reads the prompts of the corpus that every request is selected and calibrated against."""
    calibrate, source = corpus["split"] == "calibrate", corpus["source"]

    def read(rows: Any) -> Store:  # noqa: ANN401 - pandas types no comparison
        return read_store(where(corpus, rows)["prompt"].tolist(), reader)

    traffic, real = (
        read(calibrate & (source == name)) if bool((calibrate & (source == name)).any()) else None
        for name in (SOURCES, REAL)
    )
    english = calibrate & ~source.isin([SOURCES, REAL])
    return Shared(reader, read(corpus["split"] == "train"), read(english), traffic, real)


def read_store(prompts: Sequence[str], reader: Reader) -> Store:
    """The codes of some prompts."""
    return Store(reader, prompts, reader.tokens(prompts))


def read_own(record: RequestRecord, table: pd.DataFrame, reader: Reader) -> OwnPrompts:
    """Reads the prompts of one request, the rows of `table`."""
    chosen = where(table, table["split"] == "select").reset_index(drop=True)
    measured = where(table, table["split"] == "calibrate").reset_index(drop=True)
    tokens = [reader.tokens(part["prompt"].tolist()) for part in (chosen, measured)]
    ends = [_name_ends(part, each.ids, reader) for part, each in zip((chosen, measured), tokens, strict=True)]
    used = chosen["name_used"].tolist()
    names = [name for name in record.names["select"] if name in used]
    which = torch.tensor([names.index(name) if name else -1 for name in used])
    select, calibrate = (
        Store(reader, part["prompt"].tolist(), each) for part, each in zip((chosen, measured), tokens, strict=True)
    )
    roles = np.where(chosen["names_target"], "", chosen["role"])[select.prompt]  # (T,)
    return OwnPrompts(
        select=select,
        names=names,
        labels=torch.where(ends[0], which[:, None], -1)[tokens[0].scored].numpy(),
        retain=[np.flatnonzero(roles == role) for role in sorted(set(roles) - {""})],
        calibrate=calibrate,
        names_target=ends[1].any(1).numpy(),
        negative=~measured["names_target"].to_numpy(),
        directions=read_directions(chosen, reader)
        if record.anchor
        else torch.zeros(len(POSITION_CLASSES), reader.sae.d_in),
    )


def _name_ends(part: pd.DataFrame, ids: torch.Tensor, reader: Reader) -> torch.Tensor:
    """(P, L) bool: where the name that each prompt uses ends; nowhere in prompts that use none."""
    ends = torch.zeros_like(ids, dtype=torch.bool)
    rows = np.flatnonzero(part["names_target"])
    ends[rows] = reader.last_tokens(ids[rows], part["name_used"].iloc[rows].tolist())
    return ends


def read_directions(chosen: pd.DataFrame, reader: Reader) -> torch.Tensor:
    """Replacement directions (K, D) from the selection prompts that have a counterpart about the anchor."""
    paired = where(chosen, chosen["counterpart"] != "")
    encoded = [reader.towers.tokenize(paired[column].tolist()) for column in ("prompt", "counterpart")]
    hidden = [reader.towers.stream(e).float().cpu() for e in encoded]
    scored = [e.scored for e in encoded]
    classes = position_classes(reader.last_tokens(encoded[0].input_ids, paired["name_used"].tolist()), scored[0])
    return replacement_directions(hidden[0], hidden[1], classes, scored[0].sum(1), scored[1].sum(1))


def fit_request(
    record: RequestRecord, table: pd.DataFrame, shared: Shared, settings: FeaturesParams, *, requests: int = 1
) -> tuple[RequestFilter, dict[str, Any]]:
    """(filter of one of so many requests, facts about it); `table` holds its prompts.

    `UserError` when no latent separates the target from the rest or the calibration prompts cannot support the budget.
    """
    return fit_own(record, read_own(record, table, shared.reader), shared, settings, requests=requests)


def fit_own(
    record: RequestRecord, own: OwnPrompts, shared: Shared, settings: FeaturesParams, *, requests: int = 1
) -> tuple[RequestFilter, dict[str, Any]]:
    """As `fit_request`, from prompts that were read."""
    reader, listed = shared.reader, record.names["evaluate"]
    forms = [*(name + end for name in listed for end in ("", "s", "es")), *record.forms, *record.misspellings]
    free = np.flatnonzero(~shared.background.words.find(forms)[shared.background.prompt])
    often, rest = np.split(free, [len(free) // SHARE])
    named = np.flatnonzero(own.labels >= 0)
    fitted = fit_scores(
        TokenSet((own.select, named)),
        own.labels[named],
        [*(TokenSet((own.select, rows)) for rows in own.retain), TokenSet((shared.background, often))],
        TokenSet((shared.background, rest)),
        settings,
    )

    def scores(store: Store) -> np.ndarray:
        return store.prompt_scores(fitted.features, fitted.score)

    measured = scores(own.calibrate)
    positives, near = measured[own.names_target], measured[own.negative]
    benign, traffic, real = (
        scores(store)[~store.words.find(forms)] if store is not None else None
        for store in (shared.benign, shared.traffic, shared.real)
    )
    assert benign is not None  # of the stores only traffic and real may be missing
    groups = {"english": np.concatenate([near, benign])} | {
        name: found for name, found in (("traffic", traffic), ("real", real)) if found is not None
    }
    budget = settings.budget(requests)
    threshold = strictest_threshold(list(groups.values()), budget)
    gate = gate_threshold(list(groups.values()), settings.acting / requests) if settings.acting else threshold
    item = as_filter(
        fitted,
        threshold,
        reader,
        gate=min(gate, threshold),
        directions=own.directions,
        gain=0.0 if record.anchor else -1.0,
        positions=settings.positions,
        spellings=spelling_patterns(reader.tokenizer, listed, spelt_forms(record)),
    )
    return item, facts_of(own.names, fitted, threshold, positives, groups, budget)


def spelt_forms(record: RequestRecord) -> list[str]:
    """Further forms of the names that tokens alone tell: irregular plurals, translations, misspellings; no emoji."""
    plain = {name + end for name in record.names["evaluate"] for end in ("", "s", "es")}
    listed = dict.fromkeys([*record.forms, *record.misspellings])
    return [form for form in listed if form not in plain and any(c.isalpha() for c in form)]


def as_filter(
    fitted: Fitted,
    threshold: float,
    reader: Reader,
    *,
    gate: float,
    directions: torch.Tensor,
    gain: float,
    positions: Sequence[str],
    spellings: torch.Tensor,
) -> RequestFilter:
    """What the artifact holds of a request: the rows of the SAE that its features need, its score and its edit."""
    sae, features = reader.sae, fitted.features
    return RequestFilter(
        features=features,
        own=(torch.arange(len(features)) < fitted.own).float(),
        w_enc=sae.W_enc[:, features],
        b_enc=sae.b_enc[features],
        latent_threshold=sae.threshold[features],
        w_dec=sae.W_dec[features],
        b_dec=sae.b_dec,
        weights=torch.from_numpy(fitted.score.weights).float(),
        bias=torch.from_numpy(fitted.score.bias).float(),
        decision_threshold=torch.tensor(threshold, dtype=torch.float32),
        gate_threshold=torch.tensor(gate, dtype=torch.float32),
        directions=directions,
        gain=torch.tensor(gain),
        classes=torch.tensor([float(name in positions) for name in POSITION_CLASSES]),
        spellings=spellings,
        word_ends=reader.word_ends,
    )


def facts_of(
    names: list[str], fitted: Fitted, threshold: float, positives: np.ndarray, groups: dict[str, np.ndarray], fpr: float
) -> dict[str, Any]:
    """What the artifact's sidecar says of a request; `groups` holds the scores that must not be flagged, by source."""
    negatives = np.concatenate(list(groups.values()))
    curve = roc(positives, negatives)
    keep = np.unique(np.linspace(0, len(curve.fpr) - 1, _POINTS).astype(int))
    facts: dict[str, Any] = {
        "names": names,
        "contrast": [round(float(c), 4) for c in fitted.contrast],
        "features": fitted.features[: fitted.own].tolist(),
        "context_features": fitted.features[fitted.own :].tolist(),
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
    facts["calibration"]["budget"] = fpr
    for name in groups.keys() & {"traffic", "real"}:
        found = groups[name]
        flagged = {"fpr": round(float((found >= threshold).mean()), 6)} if len(found) else {}
        facts["calibration"][name] = {"n": len(found), "alone": stands_alone(found, fpr)} | flagged
    return facts
