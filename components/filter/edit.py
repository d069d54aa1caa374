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
    return jump_codes(hidden, item.w_enc, item.b_enc, item.b_dec, item.latent_threshold)


def find_target(input_ids: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """The tokens of the target's names, spelt to the letter or in a listed misspelling: tokens (B, L) to (B, L) bool."""
    return find_names(input_ids, build_trie([item.spellings], item.word_ends))[..., 0]


def evidence(code: torch.Tensor, named: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """The request's score at each position, (B, L), from codes (B, L, S).

    At the tokens of a name, (B, L) `named`, the score is at least the decision threshold. The logistic score finds what
    no list contains.
    """
    scores = position_scores(code, item.weights, item.bias)
    return torch.where(named, scores.clamp(min=item.decision_threshold), scores)


def delta(
    code: torch.Tensor,  # (B, L, S)
    scores: torch.Tensor,  # (B, L) from `evidence`
    scored: torch.Tensor,  # (B, L) bool
    item: RequestFilter,
    *,
    zeroes: bool = True,  # False where `item.gain` is known to be 0, which saves the product
) -> torch.Tensor:
    """What the edit of a flagged prompt adds to the residual stream, (B, L, D).

    Every position from the target on, if its class is edited, moves by its class's direction towards the anchor. A request
    without an anchor has no directions: its own features are switched off by gain · z W_dec, and the SAE's error stays.
    """
    classes = position_classes(scores >= item.decision_threshold, scored)  # (B, L)
    directions = torch.cat([item.directions * item.classes[:, None], torch.zeros_like(item.directions[:1])])
    towards = directions[classes]
    if not zeroes:
        return towards
    acting = torch.cat([item.classes, torch.zeros_like(item.classes[:1])])[classes][..., None]  # (B, L, 1): -1 is none
    return towards + item.gain * acting * ((code * item.own) @ item.w_dec)
