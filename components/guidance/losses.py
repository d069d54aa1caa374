"""The All-but-One objective, derived from the paper's abstract (arXiv 2312.12807); the paper's own equations may differ.

    B samples, C more with the empty prompt alone, Z latent channels, h = w latent side

    g(x_t, c) = out(x_t, c) - out(x_t, ∅)
    L = |g_θ(x_t, target) - g*(x_t, anchor)|² + λ |out_θ(x_t, ∅) - out*(x_t, ∅)|² + μ |out_θ(x_t, r) - out*(x_t, r)|²

* is the frozen model, r a prompt to retain. `out` is the model's own output, in whose space classifier-free guidance
acts: for v-prediction ε(c) - ε(∅) = √ᾱ (v(c) - v(∅)), so g in ε would vanish at zero terminal SNR, where the layout is
decided. The first term alone could be met by moving out_θ(∅); the second forbids it, and so must carry gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F


class GuidanceLoss(NamedTuple):
    """The weighted sum of the three terms, and the terms unweighted."""

    total: torch.Tensor
    target_loss: torch.Tensor
    uncond_loss: torch.Tensor
    retain_loss: torch.Tensor


def classifier_guidance(out_cond: torch.Tensor, out_uncond: torch.Tensor) -> torch.Tensor:
    """The implicit classifier's direction g, (B, Z, h, w)."""
    return out_cond - out_uncond


def guidance_loss(
    out_target: torch.Tensor,  # (B, Z, h, w) of the trained model, prompt = target
    out_uncond: torch.Tensor,  # (B + C, Z, h, w) of the trained model, empty prompt; carries gradient
    g_anchor: torch.Tensor,  # (B, Z, h, w) of the frozen model; zeros without an anchor
    frozen_uncond: torch.Tensor,  # (B + C, Z, h, w)
    out_retain: torch.Tensor,  # (B', Z, h, w)
    frozen_retain: torch.Tensor,  # (B', Z, h, w)
    *,
    uncond_weight: float,  # λ
    retain_weight: float,  # μ
) -> GuidanceLoss:
    """The module's loss; every term is a mean over elements. The first B of `out_uncond` are at the states of `out_target`."""
    target_loss = F.mse_loss(classifier_guidance(out_target, out_uncond[: len(out_target)]), g_anchor)
    uncond_loss = F.mse_loss(out_uncond, frozen_uncond)
    retain_loss = F.mse_loss(out_retain, frozen_retain)
    total = target_loss + uncond_weight * uncond_loss + retain_weight * retain_loss
    return GuidanceLoss(total, target_loss, uncond_loss, retain_loss)


def relative_drift(edited: torch.Tensor, frozen: torch.Tensor) -> torch.Tensor:
    """|edited - frozen| / |frozen| for each sample: (B, Z, h, w) twice to (B,)."""
    return (edited - frozen).flatten(1).norm(dim=1) / frozen.flatten(1).norm(dim=1)
