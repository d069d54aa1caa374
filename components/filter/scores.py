"""The score of a request: at each position, and of a whole prompt.

    P prompts, L token positions, S features, N names of the target

    score(prompt) = max over scored positions j and names n of  w_n · z_j[S] + b_n

The score is taken position by position: features that fire at different words of a prompt do not add up to a concept.
"""

from __future__ import annotations

import torch


def position_scores(codes: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Each position's score, the best of its names': codes (..., S), weights (N, S) and bias (N,) to (...)."""
    return (codes @ weights.T + bias).amax(-1)


def prompt_scores(scores: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Each prompt's score, the best of its scored positions': (P, L) and (P, L) bool to (P,)."""
    return scores.masked_fill(~scored, float("-inf")).amax(1)
