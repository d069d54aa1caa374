"""Detection and replacement for one request, as pure functions of the residual stream.

B prompts, L token positions, D = d_in, S features, K = 4 position classes
"""

from __future__ import annotations

import torch

from components.diffusion.trie import build_trie, find_names
from components.filter.artifact import RequestFilter
from components.filter.positions import position_classes
from components.filter.scores import position_scores
from components.sae.model import jump_codes


def codes(hidden: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """JumpReLU codes of the selected features: (B, L, D) to (B, L, S)."""
    return jump_codes(hidden, item.w_enc, item.b_enc, item.b_dec, item.jump)


def spelt(input_ids: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """Where a name of the request ends, spelt to the letter: tokens (B, L) to (B, L) bool."""
    return find_names(input_ids, build_trie([item.spellings], item.word_ends))[..., 0]


def evidence(code: torch.Tensor, named: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """The request's score at each position, (B, L), from codes (B, L, S); at least the threshold where a name stands.

    The logistic score finds what no list holds; a name of the list, (B, L) `named`, needs no finding.
    """
    scores = position_scores(code, item.weights, item.bias)
    return torch.where(named, scores.clamp(min=item.threshold), scores)


def step(
    code: torch.Tensor,  # (B, L, S)
    scores: torch.Tensor,  # (B, L) as `evidence` has them
    scored: torch.Tensor,  # (B, L) bool
    item: RequestFilter,
    *,
    gains: bool = True,  # False where it is known that `item.gain` is 0, which saves the product
) -> torch.Tensor:
    """What replacing the target adds to the residual stream of a prompt that is flagged, (B, L, D).

    Every position from the target on, of a class that is edited, takes its class's step towards the anchor; or, where the
    request has none, its own features are turned down by `gain` and the SAE's error is kept: gain · z W_dec.
    """
    classes = position_classes(scores >= item.threshold, scored)  # (B, L)
    steps = torch.cat([item.directions * item.classes[:, None], torch.zeros_like(item.directions[:1])])
    towards = steps[classes]
    if not gains:
        return towards
    acting = torch.cat([item.classes, torch.zeros_like(item.classes[:1])])[classes][..., None]  # (B, L, 1): -1 is none
    return towards + item.gain * acting * ((code * item.own) @ item.w_dec)
