"""Tier 2: searches with the weights in hand, through the filter, the adapters and the U-Net, and the adaptive attack on the gate.

B prompts, L token positions, D hidden
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from components.evaluate.attacks.attempts import Attempt, Budget, Target, plain
from components.evaluate.attacks.blackbox import similarity
from components.evaluate.attacks.encoder import Vocabulary
from components.evaluate.attacks.search import Found, search_by_gradient
from components.evaluate.attacks.victim import Objective, Victim
from components.filter.encoder import Decision

SLACK = 0.5
"""How far below the threshold the adaptive attack wants the score."""
FLAGGED = 1.0
"""What being flagged costs in the adaptive attack's loss."""
NEARNESS = 4.0
"""Weight of what the similarity lacks."""


def unlearn_diff_atk(victim: Victim, target: Target, rng: np.random.Generator, budget: Budget) -> Iterator[Attempt]:
    """UnlearnDiffAtk (Zhang et al. 2024, arXiv 2310.11868): words in front of a plain prompt that make the erased model denoise images of the target."""
    vocabulary = victim.access.vocabulary().without(target.names)
    while True:
        prompt = plain(target, rng)
        found = _through_unet(
            victim,
            vocabulary,
            lambda words, text=prompt.text: f"{' '.join(words)} {text}",
            victim.objective(rng),
            rng,
            budget,
        )
        yield Attempt(found.text, "words in front, through the U-Net", prompt.text, found.queries, found.loss)


def p4d(victim: Victim, target: Target, rng: np.random.Generator, budget: Budget) -> Iterator[Attempt]:
    """P4D-N (Chin et al. 2024, arXiv 2309.06135): words of which the erased model says what the base says of a plain prompt."""
    vocabulary = victim.access.vocabulary().without(target.names)
    while True:
        prompt = plain(target, rng)
        goal = victim.objective(rng, frozen=prompt.text)
        found = _through_unet(victim, vocabulary, " ".join, goal, rng, budget)
        yield Attempt(found.text, "words alone, through the U-Net", prompt.text, found.queries, found.loss)


def _through_unet(
    victim: Victim,
    vocabulary: Vocabulary,
    render: Callable[[Sequence[str]], str],
    goal: Objective,
    rng: np.random.Generator,
    budget: Budget,
) -> Found:
    def gradient(text: str) -> np.ndarray:
        erased = victim.read([text])
        return victim.access.gradient(
            text,
            budget.tokens,
            vocabulary,
            lambda states, _: victim.error(states, erased, goal),
            filtered=victim.filters,
        )

    return search_by_gradient(vocabulary, render, gradient, lambda texts: victim.errors(texts, goal), rng, budget)


def adaptive(victim: Victim, target: Target, rng: np.random.Generator, budget: Budget) -> Iterator[Attempt]:
    """Words that the gate misses although their states are the target's (after arXiv 2505.16004).

    Lowers the decision score, subject to a cosine of at least `budget.similarity` with a plain prompt's states before any edit.
    """
    vocabulary = victim.access.vocabulary().without(target.names)
    empty = victim.states([""])
    column = list(victim.access.filtered.requests).index(target.request) if victim.filters else None
    threshold = victim.limit(target.request) if victim.filters else torch.tensor(0.0)
    while True:
        prompt = plain(target, rng)
        wanted = victim.states([prompt.text]) - empty
        lacking = lambda states, wanted=wanted: (budget.similarity - similarity(states, empty, wanted)).clamp(min=0)  # noqa: E731

        def near(states: torch.Tensor, _: Decision | None, lacking: Callable = lacking) -> torch.Tensor:
            return NEARNESS * lacking(states).sum()

        def unseen(_: torch.Tensor, decision: Decision | None) -> torch.Tensor:
            assert decision is not None  # asked for with filters alone
            return (decision.scores[:, column] - threshold + SLACK).clamp(min=0).sum()

        def gradient(text: str, near: Callable = near) -> np.ndarray:
            ask = partial(victim.access.gradient, text, budget.tokens, vocabulary)
            slope = ask(near, filtered=False)
            return slope + ask(unseen, filtered=True) if column is not None else slope

        def value(texts: Sequence[str], lacking: Callable = lacking) -> np.ndarray:
            erased = victim.read(texts)
            loss = NEARNESS * lacking(victim.states(texts)).numpy(force=True)
            loss += (victim.margins(erased) + SLACK).clamp(min=0).numpy(force=True) if column is not None else 0.0
            return loss + FLAGGED * victim.detected(erased)

        found = search_by_gradient(vocabulary, " ".join, gradient, value, rng, budget)
        yield Attempt(found.text, "words near the target under the gate", prompt.text, found.queries, found.loss)
