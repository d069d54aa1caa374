"""Trains the autoencoder of the base model: images to latents a quarter of their side, and back.

B batch, C = 3 channels, H = W = 64 pixels, Z = 4 latent channels, h = w = 16

loss = |x - x̂| + 2 |x - x̂|² + 0.5 |∇x - ∇x̂| + β KL(q(z|x) ‖ N(0, 1))          (Kingma & Welling 2013)

The gradient term keeps lines; the square keeps colours that are rare: under |x - x̂| alone every red became brown.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch.nn import functional as F

from components.common.checkpoint import load_checkpoint, save_checkpoint
from components.common.seeding import generator
from components.diffusion.images import to_model


class Step(NamedTuple):
    """What one optimiser step yields."""

    step: int
    loss: float


def build_vae() -> AutoencoderKL:
    """The untrained autoencoder: 4× smaller sides, 4 latent channels, about 1.5 M parameters."""
    levels: Any = {  # diffusers declares tuples of one
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 48, 96),
    }
    vae = AutoencoderKL(
        **levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,  # with few channels a group, the norm before the last convolution erases flat colours
        sample_size=64,
    )
    with torch.no_grad():  # begin with little noise: at the default of 1 no colour is learned for thousands of images
        assert vae.quant_conv is not None
        assert vae.quant_conv.bias is not None
        vae.quant_conv.bias[4:] = -5.0
    return vae


def vae_loss(x: torch.Tensor, decoded: torch.Tensor, kl: torch.Tensor, beta: float) -> torch.Tensor:
    """The module's loss; all terms are means over elements, `kl` already per latent element."""
    dx = F.l1_loss(decoded.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(decoded.diff(dim=-2), x.diff(dim=-2))
    return F.l1_loss(decoded, x) + 2 * F.mse_loss(decoded, x) + 0.5 * dx + beta * kl


def train_vae(
    vae: AutoencoderKL,
    images: np.ndarray,
    *,
    steps: int,
    batch: int = 8,  # images
    lr: float = 1.2e-3,
    cooldown: int = 500,  # last steps, over which the learning rate falls to zero
    beta: float = 1e-4,  # weight of the KL term
    seed: int = 0,
    checkpoint: Path,
    every: int = 200,  # steps between checkpoints
) -> Iterator[Step]:
    """Yields after every step; writes and resumes from `checkpoint`."""
    accelerator = Accelerator()
    untyped: Any = vae  # diffusers wraps `to` and `decode` in a way that no type checker follows
    untyped.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=1e-4)
    start, _ = load_checkpoint(checkpoint, {"vae": vae}, optimizer)
    model, optimizer = accelerator.prepare(vae, optimizer)
    for step in range(start, steps):
        rng = generator(seed, "vae", step)
        rows = torch.randint(len(images), (batch,), generator=rng).sort().values.numpy()
        x = to_model(images[rows]).to(accelerator.device, memory_format=torch.channels_last)
        posterior = vae.encode(x, return_dict=False)[0]
        noise = torch.randn(posterior.mean.shape, generator=rng).to(x.device)
        decoded = untyped.decode(posterior.mean + posterior.std * noise, return_dict=False)[0]
        loss = vae_loss(x, decoded, posterior.kl().mean() / posterior.mean[0].numel(), beta)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100, (steps - step) / cooldown)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, {"vae": vae}, optimizer, step + 1)
        yield Step(step + 1, loss.item())


def schedule(step: int, steps: int, *, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine to one fiftieth: the factor on the learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
