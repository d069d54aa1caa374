"""What is compared in training a sparse autoencoder: the product's loop, Interpret-then-Deactivate's, SAELens' and sparsify's.

    T tokens a batch, D = d_in, F = d_sae

Every contender takes its batches from the same file, in float32, and steps Adam.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from components.common.seeding import generator
from components.sae.activations import ActivationStore
from components.sae.model import SparseAutoencoder
from components.sae.params import SaeParams
from components.sae.train import train_sae

BASELINE = "interpret-then-deactivate"
AUXK, AUXK_COEFFICIENT, LR, EPS = 256, 1 / 32, 1e-4, 6.25e-10
NEVER = 10**12
"""Tokens or batches after which a latent counts as dead, where none should."""


class Shape(NamedTuple):
    """Sizes of one run."""

    d_in: int
    d_sae: int
    k: int
    batch: int


SHAPES = {
    "small": Shape(256, 2**11, 16, 1024),  # what ships
    "medium": Shape(768, 2**14, 64, 1024),
    "large": Shape(768, 2**17, 64, 256),  # a quarter of Interpret-then-Deactivate's width
}


class Task(NamedTuple):
    """What a contender is given."""

    shape: Shape
    store: ActivationStore
    device: torch.device
    busy: bool
    """Whether latents that did not fire in the last batch are dead; otherwise none ever is."""


def ours(task: Task, activation: str) -> Iterator[object]:
    """`components.sae.train_sae` as it is; yields after every step, as all contenders do."""
    d_in, d_sae, k, batch = task.shape
    params = SaeParams.model_validate(
        {
            "activation": activation, "d_sae": d_sae, "k": k, "steps": 10**6, "batch": batch, "lr": LR, "auxk": AUXK,
            "auxk_coefficient": AUXK_COEFFICIENT, "dead_after": 1 if task.busy else NEVER, "padding": 0.0, "seed": 0,
        }
    )  # fmt: skip
    return train_sae(SparseAutoencoder(d_in, d_sae, k=k), task.store, params)


class PlainSae(nn.Module):
    """Interpret-then-Deactivate's autoencoder (arXiv 2503.09446), written from its equations.

    pre = W_enc (x - b_pre) + b_lat,   z = ReLU(TopK(pre)),   x̂ = W_dec z + b_pre        columns of W_dec have norm 1
    """

    def __init__(self, d_in: int, d_sae: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.W_enc = nn.Parameter(torch.randn(d_sae, d_in) / d_in**0.5)
        self.W_dec = nn.Parameter(F.normalize(self.W_enc.detach().T, dim=0).contiguous())
        self.b_lat, self.b_pre = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(d_in))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(pre-activations (T, F), code (T, F), reconstruction (T, D))."""
        pre = F.linear(x - self.b_pre, self.W_enc, self.b_lat)
        values, indices = pre.topk(self.k, dim=-1)
        z = torch.zeros_like(pre).scatter(-1, indices, values.relu())
        return pre, z, F.linear(z, self.W_dec) + self.b_pre


def plain_loss(
    x: torch.Tensor,  # (T, D)
    pre: torch.Tensor,  # (T, F)
    decoded: torch.Tensor,  # (T, D)
    w_dec: torch.Tensor,  # (D, F)
    dead: torch.Tensor,  # (F,) bool
    mse_scale: float | torch.Tensor,  # 1 / variance of the first activations
) -> torch.Tensor:
    """mse_scale · MSE(x̂, x) + 1/32 · |ê - e|² / |e|², where ê is what the 256 strongest dead latents make of e = x - x̂.

    The second term is computed whether or not anything is dead, as it is there.
    """
    residual = (x - decoded).detach()
    values, indices = (pre * dead).topk(min(AUXK, len(dead)), dim=-1)
    code = torch.zeros_like(pre).scatter(-1, indices, values.relu())
    auxiliary = (F.linear(code, w_dec) - residual).square().mean(1) / residual.square().mean(1)
    return mse_scale * F.mse_loss(decoded, x) + AUXK_COEFFICIENT * auxiliary.nan_to_num(0.0).mean()


def plain(task: Task) -> Iterator[object]:
    """Interpret-then-Deactivate's loop: dense decoder, columns of norm 1, gradients along them taken out, Adam."""
    d_in, d_sae, k, _ = task.shape
    torch.manual_seed(0)
    model = PlainSae(d_in, d_sae, k).to(task.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, eps=EPS)
    idle = torch.zeros(d_sae, dtype=torch.int64, device=task.device)  # batches since each latent last fired
    mse_scale: torch.Tensor | None = None
    for x in batches(task):
        if mse_scale is None:
            mse_scale = 1 / (x.mean(0) - x).square().mean()
        pre, z, decoded = model(x)
        idle = torch.where((z > 0).any(0), 0, idle + 1)
        loss = plain_loss(x, pre, decoded, model.W_dec, idle > (0 if task.busy else NEVER), mse_scale)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            model.W_dec.div_(model.W_dec.norm(dim=0))
            assert model.W_dec.grad is not None  # backward has filled it
            model.W_dec.grad.sub_((model.W_dec.grad * model.W_dec).sum(0) * model.W_dec)
        optimizer.step()
        yield loss.item()


def saelens(task: Task, activation: str) -> Iterator[object]:
    """SAELens' `SAETrainer.step`; it clips gradients, leaves the decoder's norm free, and takes d_in / 2 dead latents."""
    from sae_lens.config import SAETrainerConfig  # noqa: PLC0415 - optional
    from sae_lens.saes import batchtopk_sae, topk_sae  # noqa: PLC0415 - optional
    from sae_lens.training.sae_trainer import SAETrainer  # noqa: PLC0415 - optional

    d_in, d_sae, k, batch = task.shape
    options: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "k": k, "dtype": "float32", "device": str(task.device)}
    sae: Any
    if activation == "topk":
        sae = topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(**options))
    else:
        sae = batchtopk_sae.BatchTopKTrainingSAE(batchtopk_sae.BatchTopKTrainingSAEConfig(**options))
    config = SAETrainerConfig(
        total_training_samples=NEVER, train_batch_size_samples=batch, lr=LR, lr_end=LR, device=str(task.device),
        dead_feature_window=0 if task.busy else NEVER,
    )  # fmt: skip
    trainer = SAETrainer(config, sae, iter(()))
    for x in batches(task):
        yield trainer.step(x).loss.item()
        trainer.n_training_steps += 1


def sparsify(task: Task) -> Iterator[object]:
    """EleutherAI's `SparseCoder`, its encoder with a sparse backward and its sparse decoder, in the order of its trainer.

    Its trainer is bound to a language model, so the five lines around the forward are ours; without its autocast.
    """
    from sparsify.config import SparseCoderConfig  # noqa: PLC0415 - optional
    from sparsify.sparse_coder import SparseCoder  # noqa: PLC0415 - optional

    d_in, d_sae, k, batch = task.shape
    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k), device=task.device, dtype=torch.float32)
    forward = inspect.unwrap(SparseCoder.forward)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR, eps=EPS)
    idle = torch.zeros(d_sae, dtype=torch.int64, device=task.device)
    for x in batches(task):
        coder.set_decoder_norm_to_unit_norm()
        out = forward(coder, x, dead_mask=idle > (0 if task.busy else NEVER))
        optimizer.zero_grad()
        (out.fvu + AUXK_COEFFICIENT * out.auxk_loss).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        idle += batch
        idle[out.latent_indices.flatten()] = 0
        yield out.fvu.item()


CONTENDERS: dict[str, Callable[[Task], Iterator[object]]] = {
    BASELINE: plain,
    "expunge topk": lambda task: ours(task, "topk"),
    "expunge batchtopk": lambda task: ours(task, "batchtopk"),
    "SAELens topk": lambda task: saelens(task, "topk"),
    "SAELens batchtopk": lambda task: saelens(task, "batchtopk"),
    "sparsify topk": sparsify,
}


def batches(task: Task) -> Iterator[torch.Tensor]:
    """Batches (T, D) without end, drawn as our trainer draws its own."""
    for step in itertools.count():
        yield task.store.batch(task.shape.batch, generator(0, "benchmark", step)).to(task.device)
