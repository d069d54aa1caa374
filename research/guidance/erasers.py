"""The published erasers that guidance is compared with, as pure functions, written from their equations.

    B samples, Z latent channels, h = w latent side, N token states, D = width of the text encoder, O outputs of a projection

They work in the model's own output space, like `components.guidance.losses`. For v-prediction ε = α v + σ x_t with
α² + σ² = 1, so at one x_t a combination of outputs whose coefficients sum to 1 is the same combination in ε and in v,
and a difference in ε is α times the one in v: a loss in ε would say nothing at zero terminal SNR, where α = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F


class Diffused(NamedTuple):
    """A noised sample and what a model of the velocity should say there."""

    latents: torch.Tensor
    """(B, Z, h, w) x_t = α x_0 + σ ε."""
    velocity: torch.Tensor
    """(B, Z, h, w) v = α ε - σ x_0."""


def signal_and_noise(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(α, σ) at timesteps (B,), each (B, 1, 1, 1)."""
    signal = alphas_cumprod[timesteps][:, None, None, None]
    return signal.sqrt(), (1 - signal).sqrt()


def diffuse(x0: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> Diffused:
    """Noises x_0 (B, Z, h, w) (Salimans & Ho 2022, appendix D)."""
    return Diffused(alpha * x0 + sigma * noise, alpha * noise - sigma * x0)


def esd_loss(
    out_target: torch.Tensor,  # (B, Z, h, w) of the trained model, prompt = target
    frozen_uncond: torch.Tensor,  # (B, Z, h, w)
    frozen_target: torch.Tensor,  # (B, Z, h, w)
    *,
    erasure_scale: float,  # η
) -> torch.Tensor:
    """Erased Stable Diffusion (Gandikota et al. 2023, arXiv 2303.07345): away from the target, as the frozen model sees it.

    |out_θ(x_t, c) - (out*(x_t, ∅) - η (out*(x_t, c) - out*(x_t, ∅)))|², x_t sampled by the model being trained.
    """
    return F.mse_loss(out_target, frozen_uncond - erasure_scale * (frozen_target - frozen_uncond))


def ablation_loss(
    out_target: torch.Tensor,  # (B, Z, h, w) of the trained model, prompt = target
    out_anchor: torch.Tensor,  # (B, Z, h, w) of the trained model, prompt = anchor
    velocity: torch.Tensor,  # (B, Z, h, w) of the diffused anchor image
    *,
    diffusion_weight: float,
) -> torch.Tensor:
    """Concept ablation, model-based (Kumari et al. 2023, arXiv 2303.13516), x_t a noised image of the anchor.

    |out_θ(x_t, target) - sg out_θ(x_t, anchor)|² + weight · |out_θ(x_t, anchor) - v|²; the second is their regulariser.
    """
    return F.mse_loss(out_target, out_anchor.detach()) + diffusion_weight * F.mse_loss(out_anchor, velocity)


def uce_weight(
    weight: torch.Tensor,  # (O, D) of a projection without bias
    edited: torch.Tensor,  # (N, D) states of the target
    wanted: torch.Tensor,  # (N, D) states of the anchor, row by row
    preserved: torch.Tensor,  # (N', D) states whose outputs must stay
    *,
    preserve_weight: float,
    ridge: float,
) -> torch.Tensor:
    """Unified Concept Editing (Gandikota et al. 2024, arXiv 2308.14761): the weight that solves its least squares.

    min_W  Σ |W c - W* a|² + w Σ |W p - W* p|² + ridge |W - W*|²   over (c, a) edited and wanted, p preserved, so that
    W (Σ c cᵀ + w Σ p pᵀ + ridge I) = W* (Σ a cᵀ + w Σ p pᵀ + ridge I).
    """
    w, c, a, p = (part.double() for part in (weight, edited, wanted, preserved))
    stay = preserve_weight * p.T @ p + ridge * torch.eye(w.shape[1], dtype=w.dtype)
    return torch.linalg.solve(c.T @ c + stay, w @ (a.T @ c + stay), left=False).to(weight.dtype)


def aligned(
    target: torch.Tensor,  # (L, D) states of a prompt
    anchor: torch.Tensor,  # (L, D) states of its counterpart
    target_at: int,  # position of the last token of the target's name
    anchor_at: int,  # position of the last token of the anchor's name
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states from the names on, which are all that differ under causal attention, side by side: (N, D) twice."""
    count = len(target) - max(target_at, anchor_at)
    return target[target_at : target_at + count], anchor[anchor_at : anchor_at + count]
