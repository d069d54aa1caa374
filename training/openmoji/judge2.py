"""Trains and packs the second judge of the embedded world: `python -m training.openmoji.judge2`, about five minutes.

It shares renderer and labels with the first judge and nothing else: another network, renders of other seeds, and
distortions of its own (recolouring, grey, cuts, coarse pixels and strong noise in place of warps). An interrupted training goes on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from components.common.artifacts import fill_artifact
from components.common.checkpoint import load_checkpoint, save_checkpoint
from components.common.files import new_folder
from components.common.seeding import generator, stream_seed
from components.common.stage import log, run_stage
from components.diffusion.images import to_model
from components.worlds.openmoji.judge import FORMAT
from components.worlds.openmoji.judge2 import ResidualNet
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, draw, render_all, scenes
from components.worlds.openmoji.world import WORLD
from training.openmoji.judge import calibrate, judge_loss, labels, ruin
from training.openmoji.vae import schedule

OUT, WORK = Path("assets/judge2"), Path("data/openmoji/judge2")
OTHER_SEEDS = 500_000
"""The first judge and the base model were trained on render seeds below this."""
STEPS, BATCH, RUINED, LR = 1000, 64, 0.15, 3e-3


def distort(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1], each shifted, recoloured, cut, coarsened or noisy; what they show stays visible."""
    b, _, height, width = x.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=rng)

    def some(part: float) -> torch.Tensor:
        return torch.rand(b, 1, 1, 1, generator=rng) < part

    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = uniform(0.9, 1.15), uniform(0.9, 1.15)
    theta[:, 0, 1], theta[:, 1, 0] = uniform(-0.15, 0.15), uniform(-0.15, 0.15)
    theta[:, :, 2] = uniform(-0.1, 0.1, 2)
    x = F.grid_sample(
        x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode="border", align_corners=False
    )
    x = torch.where(some(0.15), x.mean(1, keepdim=True).expand_as(x), x)
    mix = torch.eye(3) + uniform(-0.12, 0.12, 3, 3)
    x = torch.einsum("bij,bjhw->bihw", mix, x) * uniform(0.75, 1.2, 1, 1, 1) + uniform(-0.15, 0.15, 3, 1, 1)
    coarse = F.interpolate(F.avg_pool2d(x, 2), size=(height, width), mode="nearest")
    x = torch.where(some(0.25), coarse, x)
    blurred = F.interpolate(F.avg_pool2d(x, 2), size=(height, width), mode="bilinear", align_corners=False)
    x = torch.where(some(0.25), blurred, x)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    top, left = uniform(0, height, 1, 1), uniform(0, width, 1, 1)
    hole = (rows >= top) & (rows < top + height / 5) & (columns >= left) & (columns < left + width / 5)
    x = torch.where(hole[:, None] & some(0.3), uniform(-1, 1, 3, 1, 1).expand_as(x), x)
    return (x + torch.randn(x.shape, generator=rng) * uniform(0, 0.2, 1, 1, 1)).clamp(-1, 1)


def train(net: ResidualNet, images: np.ndarray, listed: list[Scene]) -> None:
    """Trains `net` in place from its last checkpoint."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.03)
    path = WORK / "checkpoint.safetensors"
    start, _ = load_checkpoint(path, {"judge": net}, optimizer)
    concepts, styles = labels(listed)
    for step in tqdm(range(start, STEPS), initial=start, total=STEPS, mininterval=10):
        rng, choose = generator(0, "judge2", step), np.random.default_rng(stream_seed(0, "judge2", step))
        rows = choose.integers(0, len(images), BATCH)
        x, wanted, count = (
            distort(to_model(images[np.sort(rows)]), rng),
            concepts[np.sort(rows)].clone(),
            int(RUINED * BATCH),
        )
        spoiled = torch.randperm(BATCH, generator=rng)[:count]
        x[spoiled], wanted[spoiled] = ruin(x, rng)[spoiled], 0.0
        loss = judge_loss(net.train()(x), wanted, styles[np.sort(rows)])
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(step, STEPS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == STEPS:
            save_checkpoint(path, {"judge": net}, optimizer, step + 1)
            log.info("step %d, loss %.3f", step + 1, loss.item())


def main() -> None:
    """Renders, trains, calibrates on renders of held-out seeds, and packs."""
    listed = scenes(singles=6, pairs=6000, seed=OTHER_SEEDS)
    images = render_all(listed, WORK)
    torch.manual_seed(2)
    net = ResidualNet(len(WORLD.concepts), len(WORLD.styles))
    train(net, images, listed)
    fresh = scenes(singles=1, pairs=400, seed=HELD_OUT_SEEDS + 700_000)
    calibrate(net, np.stack([draw(scene) for scene in fresh]), fresh)
    tensors = {k: v.half() if v.dtype == torch.float32 and v.ndim > 1 else v for k, v in net.state_dict().items()}
    facts = {"concepts": list(WORLD.concept_names), "styles": list(WORLD.style_names)}
    with new_folder(OUT) as partial:
        fill_artifact(partial, kind=FORMAT, tensors=tensors, params={"steps": STEPS, "batch": BATCH}, facts=facts)
        (partial / "README.md").write_text(CARD, encoding="utf-8")
    log.info("packed %s", OUT)


CARD = """---
license: cc-by-sa-4.0
---
# The second judge of the embedded world

A residual network of 0.6 M parameters that names the 85 things and 8 styles of the embedded world.
It checks the first judge (`assets/openmoji/judge`), a plain convolutional network: `expunge attack` reports where they disagree.
It was trained by `python -m training.openmoji.judge2` on renders of other seeds, with other distortions.
Training images are renders of the drawings of OpenMoji 17.0.0. All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0
"""


if __name__ == "__main__":
    run_stage(main)
