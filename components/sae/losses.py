"""Losses of the autoencoder; each takes what it compares and returns a scalar.

T tokens, D = d_in, F = d_sae
"""

from __future__ import annotations

import torch


def fvu(x: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Fraction of variance unexplained: |x - x̂|² / |x - mean x|² over tokens (T, D)."""
    return (x - decoded).square().sum() / (x - x.mean(0)).square().sum()


def auxk_loss(
    residual: torch.Tensor,  # (T, D): x - x̂, detached
    pre: torch.Tensor,  # (T, F)
    w_dec: torch.Tensor,  # (F, D)
    dead: torch.Tensor,  # (F,) bool
    auxk: int,
) -> torch.Tensor:
    """The dead latents' own reconstruction of the residual (Gao et al. 2024, A.2), as a fraction of its variance.

    Zero, and without a gradient, while nothing is dead.
    """
    count = min(auxk, int(dead.sum()))
    if count == 0:
        return pre.new_zeros(())
    candidates = pre.masked_fill(~dead, float("-inf"))
    values, indices = candidates.topk(count, dim=-1)
    code = torch.zeros_like(pre).scatter(-1, indices, values.relu())
    return fvu(residual, code @ w_dec).nan_to_num(0.0)
