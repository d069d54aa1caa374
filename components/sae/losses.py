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
    pre: torch.Tensor,  # (T, F'), of the dead latents alone
    w_dec: torch.Tensor,  # (F', D), theirs too
    auxk: int,
) -> torch.Tensor:
    """The dead latents' own reconstruction of the residual (Gao et al. 2024, A.2), as a fraction of its variance.

    Zero, and without a gradient, while nothing is dead.
    """
    if pre.shape[1] == 0:
        return residual.new_zeros(())
    code = pre.relu()
    if pre.shape[1] > auxk:
        values, indices = code.topk(auxk, dim=-1, sorted=False)
        code = torch.zeros_like(code).scatter(-1, indices, values)
    return fvu(residual, code @ w_dec).nan_to_num(0.0)
