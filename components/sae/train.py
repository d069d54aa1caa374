"""Trains the autoencoder: a generator of typed steps, resumable, whose randomness is a function of (seed, step).

T tokens a batch, D = d_in, F = d_sae
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from components.common.checkpoint import load_checkpoint, save_checkpoint
from components.common.seeding import generator
from components.sae.activations import ActivationStore
from components.sae.losses import auxk_loss, fvu
from components.sae.model import Active, SparseAutoencoder, topk_entries
from components.sae.params import SaeParams

DENSE = 32
"""Dead latents for each that a token may use, up to which a dense product costs less than to gather rows."""


class SaeStep(NamedTuple):
    """What one optimiser step yields."""

    step: int
    fvu: float
    """Fraction of variance unexplained on the batch."""
    auxk: float
    """Auxiliary loss, 0 while no latent is dead."""
    dead_fraction: float
    """Part of the latents that did not fire in the last `dead_after` tokens."""


def geometric_median(x: torch.Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> torch.Tensor:
    """The point of least summed distance to the rows of x (T, D), by Weiszfeld's iteration."""
    guess = x.mean(0)
    for _ in range(iterations):
        weight = 1 / (x - guess).norm(dim=1).clamp(min=1e-8)
        new = (weight[:, None] * x).sum(0) / weight.sum()
        if (new - guess).norm() <= tolerance * guess.norm().clamp(min=1e-8):
            return new
        guess = new
    return guess


def initial_weights(x: torch.Tensor, d_sae: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(b_dec (D,), rows (F, D)): the geometric median of tokens x (T, D), and steps from it to tokens drawn at random.

    Latents that begin at tokens can each stand for one word, which random directions did not reach (docs/decisions/0004).
    A little noise sets apart latents that drew the same token.
    """
    median = geometric_median(x)
    drawn = x[torch.randint(len(x), (d_sae,), generator=rng)] - median
    return median, drawn + 0.1 * drawn.norm(dim=1).mean() / x.shape[1] ** 0.5 * torch.randn(drawn.shape, generator=rng)


@torch.no_grad()
def fit_encoder_scale(sae: SparseAutoencoder, x: torch.Tensor) -> None:
    """Scales the encoder so that the first reconstruction of x (T, D) is as large as x.

    Latents that start at neighbouring tokens point the same way, and together would overshoot many times.
    """
    decoded, *_ = sae(x, "batchtopk")
    step, wanted = decoded - sae.b_dec, x - sae.b_dec
    sae.W_enc.mul_((step * wanted).sum() / step.square().sum().clamp(min=1e-12))


def auxiliary_loss(
    sae: SparseAutoencoder,
    x: torch.Tensor,  # (T, D)
    residual: torch.Tensor,  # (T, D)
    dead: torch.Tensor,  # (F,) bool
    auxk: int,
    pre: torch.Tensor,  # (T, F) pre-activations of x; overwritten
) -> torch.Tensor:
    """`auxk_loss` of the dead latents: dense where they are few, by the chosen entries alone where they are many."""
    latents = dead.nonzero().squeeze(1)
    if len(latents) <= DENSE * auxk:
        return auxk_loss(residual, sae.pre_activations(x, latents), sae.W_dec[latents], auxk)
    strongest = topk_entries(pre.index_fill_(1, (~dead).nonzero().squeeze(1), float("-inf")), auxk)
    return fvu(residual, sae.decode_active(x, strongest) - sae.b_dec).nan_to_num(0.0)


def train_sae(
    sae: SparseAutoencoder,
    store: ActivationStore,
    params: SaeParams,
    *,
    checkpoint: Path | None = None,
    every: int = 100,  # steps between checkpoints
) -> Iterator[SaeStep]:
    """Trains `sae` in place and leaves it in its stored form; yields after every step.

    Inputs are scaled to a mean norm of √D while training, and the scale is folded into biases and threshold at the end.
    A run that is killed goes on from `checkpoint`: it first yields again the steps that were taken before, and ends in the
    same bytes as one that was not. Under several processes each draws batches of its own, and gradients, dead latents and
    threshold are shared.
    """
    accelerator = Accelerator()
    device = accelerator.device
    first = store.batch(min(len(store), 8192), generator(params.seed, "sae", "init"))
    scale = first.shape[1] ** 0.5 / first.norm(dim=1).mean()
    sae.initialise(*initial_weights(first * scale, sae.d_sae, generator(params.seed, "sae", "weights")))
    fit_encoder_scale(sae, first[:1024] * scale)
    optimizer = torch.optim.Adam(sae.parameters(), lr=params.lr, eps=6.25e-10, fused=True)
    idle = torch.zeros(sae.d_sae, dtype=torch.int64)  # tokens since each latent last fired
    threshold = torch.zeros(())
    start, extra = load_checkpoint(checkpoint, {"sae": sae}, optimizer) if checkpoint else (0, {})
    idle, threshold = extra.get("idle", idle), extra.get("threshold", threshold)
    taken = [SaeStep(index, *terms) for index, terms in enumerate(extra.get("terms", torch.empty(0, 3)).tolist(), 1)]
    yield from taken
    sae.to(device)
    model, optimizer = accelerator.prepare(sae, optimizer)
    workspace = torch.empty(params.batch, sae.d_sae, device=device)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    for step in range(start, params.steps):
        x = store.batch(params.batch, generator(params.seed + rank, "sae", step)).to(device) * scale
        decoded, *entries = model(x, params.activation, workspace)
        active = Active(*entries)
        positive = active.values > 0
        fired: Any = accelerator.reduce(torch.zeros_like(sae.b_enc).index_fill(0, active.latents[positive], 1.0))
        fired = fired.cpu() > 0
        idle = torch.where(fired, 0, idle + len(x) * ranks)
        dead = idle > params.dead_after
        unexplained = fvu(x, decoded)
        auxiliary = auxiliary_loss(sae, x, (x - decoded).detach(), dead.to(device), params.auxk, workspace)
        optimizer.zero_grad()
        accelerator.backward(unexplained + params.auxk_coefficient * auxiliary)
        sae.project_gradient()
        for group in optimizer.param_groups:
            group["lr"] = params.lr * min(1.0, (step + 1) / 100, (params.steps - step) / (0.2 * params.steps))
        optimizer.step()
        sae.normalise_decoder()
        least = active.values[positive].min() if bool(positive.any()) else threshold.to(device)
        shared: Any = accelerator.reduce(least, "mean")
        least = shared.cpu()
        threshold = least if step == 0 else 0.99 * threshold + 0.01 * least
        taken.append(SaeStep(step + 1, unexplained.item(), auxiliary.item(), dead.float().mean().item()))
        if checkpoint is not None and (step + 1) % every == 0 and accelerator.is_main_process:
            terms = torch.tensor([done[1:] for done in taken], dtype=torch.float64)  # (steps, 3)
            state = {"idle": idle, "threshold": threshold, "terms": terms}
            save_checkpoint(checkpoint, {"sae": sae}, optimizer, step + 1, state)
        yield taken[-1]
    with torch.no_grad():
        sae.b_enc.div_(scale)
        sae.b_dec.div_(scale)
        sae.threshold.fill_(threshold / scale)


@torch.no_grad()
def evaluate_sae(sae: SparseAutoencoder, store: ActivationStore, *, batch: int = 4096) -> dict[str, float]:
    """Held-out `fvu`, `l0` (active latents a token) and `dead_fraction` (latents that never fire on it)."""
    total = torch.zeros(())
    errors, active = torch.zeros(()), torch.zeros(())
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    mean = torch.stack([torch.from_numpy(store.tokens[i : i + batch]).sum(0) for i in range(0, len(store), batch)]).sum(
        0
    ) / len(store)
    for start in range(0, len(store), batch):
        x = torch.from_numpy(store.tokens[start : start + batch])
        z = sae.encode(x)
        errors += (x - sae.decode(z)).square().sum()
        total += (x - mean).square().sum()
        active += (z > 0).sum()
        fired |= (z > 0).any(0)
    return {
        "fvu": (errors / total).item(),
        "l0": (active / len(store)).item(),
        "dead_fraction": 1 - fired.float().mean().item(),
        "tokens": float(len(store)),
    }
