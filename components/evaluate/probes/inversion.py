"""Tier 3: textual inversion (Gal et al. 2022, arXiv 2208.01618) through the eraser: an embedding learned to draw the target in spite of it.

N images, L token positions, D hidden, V vectors of the embedding
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from components.common.seeding import stream_seed
from components.diffusion.encode import Encoded
from components.eraser import Erased
from components.evaluate.attacks.encoder import embedding, with_states
from components.evaluate.probes.given import Given, draw_from

TEMPLATE = "{} picture"
"""The learned word stands at the front, as an adjective of something neutral."""
VECTORS = 2
RATE = 0.02
STATES = 4


def textual_inversion(given: Given) -> list[np.ndarray]:
    """Images of embeddings that were learned through the filter, the gate and the adapters; each row of images is one way."""
    per = len(given.images)
    out = []
    for i in range(given.size.inversions):
        learned = learn(given, i)
        erased = read_learned(given, learned, per)
        out.append(draw_from(given, erased, given.noise("inversion", i)))
    return out


def placed(given: Given, learned: torch.Tensor) -> tuple[Encoded, torch.Tensor]:
    """(tokens of one prompt, embeddings (1, L, D)) of the template with `learned` (V, D) in its place."""
    access = given.victim.access
    word = access.vocabulary().words[0]
    tokens = access.towers.tokenize([TEMPLATE.format(" ".join([word] * VECTORS))])
    embedded = access.table[tokens.input_ids].clone()
    return tokens, torch.cat([embedded[:, :1], learned[None], embedded[:, 1 + VECTORS :]], 1)


@contextmanager
def encoded(given: Given, learned: torch.Tensor) -> Iterator[tuple[torch.Tensor, Erased]]:
    """(states (1, L, D) with gradient, what acts on them) of the learned word, as the eraser's own encoder and gate have it."""
    access, victim = given.victim.access, given.victim
    tokens, embedded = placed(given, learned)
    plain = victim.read([TEMPLATE.format("some")])
    with embedding(access.encoder, embedded):
        if victim.filters:
            cond, decision = access.filtered.encode(tokens)
            columns = {
                name: flagged | (scores >= victim.limit(name))
                for name, flagged, scores in zip(
                    decision.requests, decision.flagged.unbind(1), decision.scores.unbind(1), strict=True
                )
            }
        else:
            cond, decision, columns = access.towers.run(tokens), plain.decision, {}
        everyone = torch.ones(1, dtype=torch.bool)
        acting = {name: everyone if plain.everywhere else columns.get(name, everyone).detach() for name in plain.acting}
        yield cond.states, plain._replace(decision=decision, acting=acting)


def learn(given: Given, number: int) -> torch.Tensor:
    """An embedding (V, D) by Adam on the U-Net's error at noised real images, with everything that acts on it."""
    rng = np.random.default_rng(stream_seed(given.seed, "inversion", given.victim.variant, number))
    table = given.victim.access.table
    start = table[torch.from_numpy(rng.integers(0, len(table), VECTORS))]
    with torch.enable_grad():
        learned = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([learned], lr=RATE * float(table.norm(dim=1).mean()))
        for _ in range(given.size.inversion_steps):
            goal = given.victim.objective(rng, states=STATES)
            with encoded(given, learned) as (states, erased):
                loss = given.victim.error(states, erased, goal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return learned.detach()


def read_learned(given: Given, learned: torch.Tensor, count: int) -> Erased:
    """`count` prompts of the learned word, with what the eraser's encoder and gate make of it."""
    with torch.no_grad(), encoded(given, learned) as (states, erased):
        one = with_states(erased, states.detach())
    return one.take([0] * count)
