"""Fits the filter of one request: reads its prompts, selects features, fits and calibrates the score, takes the replacement.

P prompts, L token positions, T tokens, D = d_in, F = d_sae, S selected features, N names of the target
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import CLIPTokenizer

from components.collect.concepts import names_for
from components.collect.stage import where
from components.common.config import FeaturesParams
from components.diffusion import find_tokens, read_hookpoint, spelling_patterns, tokenize, word_ends
from components.features.artifact import RequestFilter
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
from components.features.spelling import known_words, misspellings
from components.openmoji.captions import mentions
from components.requests import Request
from components.sae import SparseAutoencoder, jump_codes

GAIN = {"replace": 0.0, "zero": -1.0, "flip": -9.0}
"""What each edit adds to the stream for every unit of an own feature's code; flip is ItD's multiplier of -8."""
MISTAKEN = 1000
"""Kept tokens, those that score highest, from which context features are found."""
HARDEST = 10_000
"""Kept tokens, those that score highest, that the last fit sees a second time."""
SHARE = 7
"""One in so many background tokens is in every fit; the others are searched for those that score highest."""


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

    def __init__(self, tokenizer: CLIPTokenizer, encoder: nn.Module, hookpoint: str, sae: SparseAutoencoder) -> None:
        self.tokenizer, self.encoder, self.hookpoint, self.sae = tokenizer, encoder, hookpoint, sae
        self.word_ends = word_ends(tokenizer)

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

    def last_tokens(self, ids: torch.Tensor, spoken: list[str]) -> torch.Tensor:
        """(P, L) bool: where the name as each prompt spells it ends; ids are (P, L)."""
        patterns = {name: self.tokenizer(name, add_special_tokens=False).input_ids for name in set(spoken)}
        return torch.cat([find_tokens(row[None], patterns[name]) for row, name in zip(ids, spoken, strict=True)])


class Codes(Protocol):
    """SAE codes of some tokens, T of them, however they are kept."""

    def __len__(self) -> int:
        """T."""
        ...

    def firing(self) -> torch.Tensor:
        """How often each latent fires at these tokens, (F,)."""
        ...

    def columns(self, features: torch.Tensor) -> torch.Tensor:
        """The codes of some features, (T, S)."""
        ...

    def scores(self, features: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Each token's score, (T,)."""
        ...

    def take(self, rows: torch.Tensor) -> Self:
        """Some of the tokens."""
        ...

    def join(self, others: Sequence[Self]) -> Self:
        """These tokens and then those of `others`."""
        ...


C = TypeVar("C", bound=Codes)


class HiddenCodes:
    """Codes that are computed anew from the residual stream whenever they are asked for."""

    def __init__(self, reader: Reader, hidden: torch.Tensor) -> None:
        self.reader, self.hidden = reader, hidden

    def __len__(self) -> int:
        return len(self.hidden)

    def firing(self) -> torch.Tensor:
        """How often each latent fires at these tokens, (F,)."""
        return self.reader.firing(self.hidden)

    def columns(self, features: torch.Tensor) -> torch.Tensor:
        """The codes of some features, (T, S)."""
        return self.reader.codes(self.hidden, features)

    def scores(self, features: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Each token's score, (T,)."""
        return position_scores(self.columns(features), weights, bias)

    def take(self, rows: torch.Tensor) -> HiddenCodes:
        """Some of the tokens."""
        return HiddenCodes(self.reader, self.hidden[rows])

    def join(self, others: Sequence[HiddenCodes]) -> HiddenCodes:
        """These tokens and then those of `others`."""
        return HiddenCodes(self.reader, torch.cat([self.hidden, *(other.hidden for other in others)]))


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

    def fit(features: torch.Tensor, against: C) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = torch.cat([labels, torch.full((len(against),), -1)]).numpy()
        codes, counts = named.join([against]).columns(features).numpy(), None
        if merge:
            idle = (wanted < 0) & ~codes.any(1)
            row = np.flatnonzero(idle)[:1]
            counts = np.concatenate([np.ones((~idle).sum()), np.full(len(row), idle.sum())])
            codes, wanted = (np.concatenate([part[~idle], part[row]]) for part in (codes, wanted))
        weights, bias = fit_score(codes, wanted, counts=counts)
        return torch.from_numpy(weights).float(), torch.from_numpy(bias).float()

    def most_like(features: torch.Tensor, count: int) -> C:
        """The tokens to keep that a score over these features takes most for the target."""
        found = every.scores(features, *fit(features, others))
        return every.take(found.topk(min(count, len(found))).indices)

    context = context_features(by_name, most_like(own, mistaken).firing(), own, settings.context_features)
    features = torch.cat([own, context])
    weights, bias = fit(features, others.join([most_like(features, hardest)]))
    return Fitted(features, len(own), contrast, weights, bias)


def shared_tokens(corpus: pd.DataFrame, reader: Reader) -> dict[str, tuple[list[str], Tokens]]:
    """The prompts, and their tokens, that every request is selected and calibrated against."""
    benign = corpus.loc[corpus["split"] == "calibrate", "prompt"].tolist()
    background = corpus.loc[corpus["split"] == "train", "prompt"].tolist()
    return {"benign": (benign, reader.tokens(benign)), "background": (background, reader.tokens(background))}


def fit_request(
    request: Request,
    table: pd.DataFrame,
    reader: Reader,
    read: Mapping[str, tuple[list[str], Tokens]],
    settings: FeaturesParams,
) -> tuple[RequestFilter, dict[str, Any]]:
    """The filter of one request and the facts about it.

    `table` holds its prompts; `read` the prompts, and their tokens, that all requests share: `benign` to calibrate and
    `background` to select against. `UserError` when nothing tells the target apart or the budget cannot be supported.
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
    text, tokens = read["background"]
    pool = without(tokens, [mentions(t, request.names) for t in text]).hidden
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
    text, tokens = read["benign"]
    clean = without(tokens, [mentions(t, request.names) for t in text])
    negatives = np.concatenate([scores(reader.tokens(held.loc[~held["carries"], "prompt"].tolist())), scores(clean)])
    threshold = conformal_threshold(negatives, settings.fpr)
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
        spellings=spelling_patterns(
            reader.tokenizer, listed := names_for(request, "evaluate"), misspellings(listed, known_words())
        ),
        word_ends=reader.word_ends,
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


def fit_directions(chosen: pd.DataFrame, reader: Reader) -> torch.Tensor:
    """Replacement steps (K, D) from the selection prompts that have a counterpart about the anchor."""
    paired = where(chosen, chosen["counterpart"] != "")
    encoded = [tokenize(reader.tokenizer, paired[column].tolist()) for column in ("prompt", "counterpart")]
    hidden = [read_hookpoint(reader.encoder, reader.hookpoint, e.input_ids) for e in encoded]
    scored = [e.scored for e in encoded]
    classes = position_classes(reader.last_tokens(encoded[0].input_ids, paired["spoken"].tolist()), scored[0])
    return replacement_directions(hidden[0], hidden[1], classes, scored[0].sum(1), scored[1].sum(1))
