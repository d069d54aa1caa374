"""Searches over words: greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043), and a genetic search without gradients.

K words that may be chosen, M words of the vocabulary, B candidates
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from components.evaluate.attacks.attempts import Budget
from components.evaluate.attacks.encoder import Vocabulary

Render = Callable[[Sequence[str]], str]
"""K words to a prompt."""
Value = Callable[[Sequence[str]], np.ndarray]
"""B prompts to their losses (B,)."""
Gradient = Callable[[str], np.ndarray]
"""A prompt to (K, M): the loss's slope towards each word at each place."""
BEST = 64
"""Words of each place among which candidates are drawn."""


class Found(NamedTuple):
    """The best prompt of a search."""

    text: str
    loss: float
    queries: int


def search_by_gradient(
    vocabulary: Vocabulary, render: Render, gradient: Gradient, value: Value, rng: np.random.Generator, budget: Budget
) -> Found:
    """Replaces one word at a time: candidates by the gradient, the best by their true losses; never gets worse."""
    chosen = rng.integers(0, len(vocabulary.words), budget.tokens)
    write = lambda row: render([vocabulary.words[i] for i in row])  # noqa: E731 - short, and used thrice
    best, queries = float(value([write(chosen)])[0]), 1
    for _ in range(budget.iterations):
        slope = gradient(write(chosen))
        top = np.argpartition(slope, min(BEST, slope.shape[1] - 1), axis=1)[:, :BEST]
        rows = np.repeat(chosen[None], budget.candidates, 0)
        places = rng.integers(0, budget.tokens, budget.candidates)
        rows[np.arange(budget.candidates), places] = top[places, rng.integers(0, top.shape[1], budget.candidates)]
        losses = value([write(row) for row in rows])
        queries += len(rows)
        if float(losses.min()) < best:
            best, chosen = float(losses.min()), rows[int(losses.argmin())]
        if budget.spent():
            break
    return Found(write(chosen), best, queries)


def search_by_breeding(
    vocabulary: Vocabulary,
    render: Render,
    value: Value,
    rng: np.random.Generator,
    budget: Budget,
    *,
    mutation: float = 0.15,
) -> Found:
    """A genetic search: the better half lives on, its children mix two parents and mutate."""
    size, k, m = 2 * max(4, budget.candidates), budget.tokens, len(vocabulary.words)
    rows = rng.integers(0, m, (size, k))
    write = lambda row: render([vocabulary.words[i] for i in row])  # noqa: E731 - short, and used twice
    losses, queries = value([write(row) for row in rows]), size
    for _ in range(budget.iterations):
        order = np.argsort(losses, kind="stable")[: size // 2]
        parents = rows[order]
        pairs = rng.integers(0, len(parents), (size - len(parents), 2))
        children = np.where(rng.random((len(pairs), k)) < 0.5, parents[pairs[:, 0]], parents[pairs[:, 1]])
        children = np.where(rng.random(children.shape) < mutation, rng.integers(0, m, children.shape), children)
        born = value([write(row) for row in children])
        rows, losses, queries = (
            np.concatenate([parents, children]),
            np.concatenate([losses[order], born]),
            queries + len(born),
        )
        if budget.spent():
            break
    return Found(write(rows[int(losses.argmin())]), float(losses.min()), queries)
