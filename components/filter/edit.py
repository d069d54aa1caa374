"""Detection and replacement for one request, as pure functions of the residual stream.

B prompts, L token positions, D = d_in, S features, K = 4 position classes
"""

from __future__ import annotations

import torch

from components.diffusion import spelt_positions
from components.features import RequestFilter, position_classes, position_scores, prompt_scores
from components.sae import jump_codes


def codes(hidden: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """JumpReLU codes of the selected features: (B, L, D) to (B, L, S)."""
    return jump_codes(hidden, item.w_enc, item.b_enc, item.b_dec, item.jump)


def spelt(input_ids: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """Where a name of the request ends, spelt to the letter: tokens (B, L) to (B, L) bool."""
    return spelt_positions(input_ids, item.spellings, item.word_ends)


def evidence(code: torch.Tensor, named: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """The request's score at each position, (B, L), from codes (B, L, S); at least the threshold where a name stands.

    The logistic score finds what no list holds; a name of the list, (B, L) `named`, needs no finding.
    """
    scores = position_scores(code, item.weights, item.bias)
    return torch.where(named, scores.clamp(min=item.threshold), scores)


def score(code: torch.Tensor, named: torch.Tensor, scored: torch.Tensor, item: RequestFilter) -> torch.Tensor:
    """The request's score (B,) from codes (B, L, S)."""
    return prompt_scores(evidence(code, named, item), scored)


def edit(
    hidden: torch.Tensor, code: torch.Tensor, named: torch.Tensor, scored: torch.Tensor, item: RequestFilter
) -> torch.Tensor:
    """The residual stream (B, L, D) with the target replaced, for prompts that are flagged.

    Every position from the target on, of a class that is edited, takes its class's step towards the anchor; or, where the
    request has none, its own features are turned down by `gain` and the SAE's error is kept: h + gain · z W_dec.
    """
    classes = position_classes(evidence(code, named, item) >= item.threshold, scored)  # (B, L)
    steps = torch.cat([item.directions * item.classes[:, None], torch.zeros_like(item.directions[:1])])
    acting = torch.cat([item.classes, torch.zeros_like(item.classes[:1])])[classes][..., None]  # (B, L, 1): -1 is none
    return hidden + steps[classes] + item.gain * acting * ((code * item.own) @ item.w_dec)
