"""Trains and calibrates the judge of the embedded world.

B images, H = W = 64 pixels, C concepts, S styles
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from components.common.checkpoint import load_checkpoint, save_checkpoint
from components.common.seeding import generator, stream_seed
from components.diffusion.images import to_model
from components.worlds.openmoji.judge import JudgeNet
from components.worlds.openmoji.scenes import Scene
from components.worlds.openmoji.world import WORLD
from training.openmoji.vae import Step, schedule


def augment(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Heavy but meaning-preserving: small turns and zooms, colour, blur, smooth warps, noise, an occasional patch."""
    b = len(x)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=rng)

    angle, zoom = uniform(-0.12, 0.12), uniform(0.9, 1.12)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom * angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -zoom * angle.sin(), zoom * angle.sin()
    theta[:, :, 2] = uniform(-0.06, 0.06, 2)
    warp = F.interpolate(uniform(-1, 1, 2, 5, 5), size=x.shape[-2:], mode="bicubic", align_corners=True)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    grid = grid + warp.permute(0, 2, 3, 1) * uniform(0, 0.05, 1, 1, 1)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, soft, uniform(0, 1, 1, 1, 1))
    x = x * uniform(0.8, 1.15, 1, 1, 1) + uniform(-0.12, 0.12, 3, 1, 1)
    x = x + torch.randn(x.shape, generator=rng) * uniform(0, 0.15, 1, 1, 1)
    return x.clamp(-1, 1)


def ruin(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Images in which nothing is recognisable: noise, one colour, strong blur, collages of small patches, mixtures."""
    b, _, height, width = x.shape
    kinds = torch.randint(5, (b,), generator=rng)
    noise = torch.randn(x.shape, generator=rng) * (0.2 + torch.rand(b, 1, 1, 1, generator=rng))
    blank = (torch.rand(b, 3, 1, 1, generator=rng) * 2 - 1).expand_as(x)
    real = x[torch.arange(b), :, :1, :1].expand_as(x)  # the styles' own backgrounds, empty
    blank = torch.where(torch.rand(b, 1, 1, 1, generator=rng) < 0.5, blank, real)
    blur = F.interpolate(F.adaptive_avg_pool2d(x, 4), size=(height, width), mode="bicubic", align_corners=False)
    patches = F.unfold(x, 8, stride=8)  # (B, 3 * 64, 64)
    order = torch.rand(b, patches.shape[-1], generator=rng).argsort(1)
    donor = torch.randint(b, (b, patches.shape[-1]), generator=rng)
    shuffled = patches[donor, :, order].transpose(1, 2)  # any image's any patch
    collage = F.fold(shuffled, (height, width), 8, stride=8)
    mixture = torch.stack([x[torch.randperm(b, generator=rng)] for _ in range(4)]).mean(0)
    options = torch.stack([blank + noise, blank + 0.05 * noise, blur, collage, mixture])  # (5, B, 3, H, W)
    return options[kinds, torch.arange(b)].clamp(-1, 1)


def labels(listed: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Multi-hot concepts (B, C) and style indices (B,)."""
    concepts = torch.zeros(len(listed), len(WORLD.concepts))
    for row, scene in enumerate(listed):
        for name in scene.concepts:
            concepts[row, WORLD.concept_names.index(name)] = 1
    return concepts, torch.tensor([WORLD.style_names.index(s.style) for s in listed])


def judge_loss(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor], concepts: torch.Tensor, styles: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy over concepts (summed) and none, cross-entropy over styles; rows without a concept are none."""
    concept, style, none = logits
    empty = concepts.sum(1) == 0
    loss = F.binary_cross_entropy_with_logits(concept, concepts, reduction="none").sum(1).mean()
    loss = loss + F.binary_cross_entropy_with_logits(none, empty.float())
    return loss + F.cross_entropy(style[~empty], styles[~empty])


def train_judge(
    net: JudgeNet,
    images: np.ndarray,
    listed: list[Scene],
    *,
    steps: int,
    batch: int = 64,
    ruined: float = 0.2,  # part of each batch in which nothing is recognisable
    lr: float = 2e-3,
    seed: int = 0,
    checkpoint: Path,
    every: int = 200,
) -> Iterator[Step]:
    """Trains `net` in place; yields after every step, writes and resumes from `checkpoint`."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    start, _ = load_checkpoint(checkpoint, {"judge": net}, optimizer)
    concepts, styles = labels(listed)
    for step in range(start, steps):
        rng, choose = generator(seed, "judge", step), np.random.default_rng(stream_seed(seed, "judge", step))
        rows = choose.integers(0, len(images), batch)
        x = augment(to_model(np.stack([images[r] for r in rows])), rng)
        wanted, count = concepts[rows].clone(), int(ruined * batch)
        x[:count] = ruin(x, rng)[:count]
        wanted[:count] = 0
        loss = judge_loss(net.train()(x), wanted, styles[rows])
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, {"judge": net}, optimizer, step + 1)
        yield Step(step + 1, loss.item())


@torch.no_grad()
def calibrate(net: JudgeNet, images: np.ndarray, listed: list[Scene], *, seed: int = 0) -> None:
    """Sets one temperature a head by a search over the log-likelihood of held-out, augmented and ruined renders."""
    net.eval()
    rng = generator(seed, "judge calibrate")
    clean = torch.cat([augment(to_model(images[i : i + 256]), rng) for i in range(0, len(images), 256)])
    spoiled = torch.cat([ruin(clean[i : i + 256], rng) for i in range(0, len(clean), 256)])
    concepts, styles = labels(listed)
    concepts = torch.cat([concepts, torch.zeros_like(concepts)])
    empty = (concepts.sum(1) == 0).float()
    x = torch.cat([clean, spoiled])
    parts = [net(x[i : i + 256]) for i in range(0, len(x), 256)]
    concept, style, none = (torch.cat(column) for column in zip(*parts, strict=True))
    grid = torch.logspace(-0.7, 0.7, 57)

    def best(nll: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return grid[torch.stack([nll(t) for t in grid]).argmin()]

    net.temperature[0] = best(lambda t: F.binary_cross_entropy_with_logits(concept / t, concepts))
    net.temperature[1] = best(lambda t: F.cross_entropy(style[: len(styles)] / t, styles))
    net.temperature[2] = best(lambda t: F.binary_cross_entropy_with_logits(none / t, empty))
