"""Selects a target's features and fits the score over them.

T tokens, S selected features, N names of the target

Three regressions follow each other: over the target's own features; with the context features that separate the target from
what the first mistakes for it; and once more with the tokens that the second finds hardest counted twice. With `fit: exact`
they see all tokens to retain, some 60,000. With `fit: sample` the hardest are rows of their own, and the others are sampled at
even distances, each row standing for as many tokens as there are from one to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from components.features.params import FeaturesParams
from components.features.regression import Score, fit_score
from components.features.scores import context_features, select_features
from components.features.store import TokenSet

MISTAKEN = 1000
"""Tokens to retain, those that score highest, from which context features are found."""
HARDEST = 10_000
"""Tokens to retain, those that score highest, that count twice in the last fit."""
NEAR = 15_000
"""Tokens to retain, those that the first fit scores highest, among which the second looks for the hardest."""


class Sizes(NamedTuple):
    """How many rows of a regression are tokens to retain."""

    hard: int
    """Tokens that score highest: each is a row."""
    middle: int
    """Rows for the others of the hardest."""
    easy: int
    """Rows for all others."""


_ALL = 10**9
SIZES: dict[str, tuple[Sizes, Sizes, Sizes]] = {
    "exact": (Sizes(_ALL, _ALL, _ALL), Sizes(_ALL, _ALL, _ALL), Sizes(_ALL, _ALL, _ALL)),
    "sample": (Sizes(0, 0, 8000), Sizes(500, 500, 1000), Sizes(500, 500, 2000)),
}
"""Of the three regressions, by `features.fit`: `sample` is about nine times faster and finds up to 1.5 points fewer unlisted names
(docs/decisions/0022)."""


class Fitted(NamedTuple):
    """A target's features and the score over them."""

    features: torch.Tensor
    """(S,) the target's own first, then context."""
    own: int
    """How many of them are its own."""
    contrast: torch.Tensor
    """(own,)"""
    score: Score


class Sample(NamedTuple):
    """Some tokens that stand for all."""

    rows: np.ndarray
    """Ascending."""
    counts: np.ndarray
    """How many tokens each stands for."""


def fit_scores(
    named: TokenSet,  # tokens at which a name ends
    labels: np.ndarray,  # (T,) which name it is
    retain: Sequence[TokenSet],  # groups of tokens to retain that every fit sees
    rest: TokenSet,  # further tokens to retain, searched for those that score highest
    settings: FeaturesParams,
) -> Fitted:
    """Selects a target's features and fits its score; `UserError` if no latent separates the target from the rest."""
    sizes, others = SIZES[settings.fit], retain[0].join(retain[1:])
    every = others.join([rest])
    by_name = torch.stack([named.take(np.flatnonzero(labels == name)).firing() for name in range(labels.max() + 1)])
    groups = torch.stack([group.firing() for group in retain])
    own, contrast = select_features(
        by_name, groups, max_features=settings.max_features, min_contrast=settings.min_contrast
    )

    def fit(features: torch.Tensor, sample: Sample) -> Score:
        codes = [tokens.columns(features).toarray() for tokens in (named, every.take(sample.rows))]
        counts = np.concatenate([np.ones(len(named)), sample.counts])
        return fit_score(np.concatenate(codes), np.concatenate([labels, np.full(len(sample.rows), -1)]), counts)

    counts = every.holds(others).astype(float)
    first = fit(own, draw_sample(counts, np.array([], dtype=int), sizes[0]))
    likeness = every.scores(own, first)
    near = highest(likeness, NEAR)
    ranked = near[np.argsort(-likeness[near], kind="stable")]
    mistaken_for = every.take(np.sort(ranked[:MISTAKEN]))
    features = torch.cat([own, context_features(by_name, mistaken_for.firing(), own, settings.context_features)])
    second = fit(features, draw_sample(counts, ranked[:HARDEST], sizes[1]))
    hardest = near[np.argsort(-every.take(near).scores(features, second), kind="stable")][:HARDEST]
    counts[hardest] += 1
    return Fitted(features, len(own), contrast, fit(features, draw_sample(counts, hardest, sizes[2])))


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices, ascending, of the `count` largest values, or of all."""
    count = min(count, len(values))
    return np.sort(np.argpartition(-values, count - 1)[:count])


def draw_sample(counts: np.ndarray, ranked: np.ndarray, sizes: Sizes) -> Sample:
    """A sample of tokens that count `counts` (T,) times; `ranked` are the hardest of them, the hardest first."""
    easy = counts > 0
    easy[ranked] = False
    parts = [
        _even(ranked[: sizes.hard], sizes.hard),
        _even(ranked[sizes.hard :], sizes.middle),
        _even(np.flatnonzero(easy), sizes.easy),
    ]
    rows, each = (np.concatenate(part) for part in zip(*parts, strict=True))
    weights = counts[rows] * each
    order = np.argsort(rows, kind="stable")
    order = order[weights[order] > 0]
    return Sample(rows[order], weights[order])


def _even(rows: np.ndarray, count: int) -> Sample:
    """At most `count` of `rows`, at even distances."""
    some = rows[:: max(1, -(-len(rows) // max(1, count)))]
    return Sample(some, np.full(len(some), len(rows) / max(1, len(some))))
