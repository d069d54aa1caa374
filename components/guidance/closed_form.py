"""The linear map of hidden states that takes the target's to the anchor's, in closed form: where an adapter starts.

    P prompts about the target, K prompts to retain, L token positions, D hidden, r rank, O outputs of a projection

Keys and values of cross-attention read a prompt's hidden states h through a weight W. Unified Concept Editing (Gandikota et
al. 2024, arXiv 2308.14761) asks of each of them, over states c of the target, a of the anchor and k to retain,

    min_V  E |V c - W a|² + μ E |V k - W k|²

Without an anchor a is the state of the empty prompt; in front of the target's name, where c has not read it, a is c. With
V = W (I + M) one M solves it for every W, so that to edit all layers is to edit the hidden states:

    M = (E a cᵀ - E c cᵀ) S⁻¹,    S = E c cᵀ + μ E k kᵀ + ν E u uᵀ + ρ I,    u states of the empty prompt

Among all M of rank r the best is U Uᵀ M, U the leading eigenvectors of M S Mᵀ (reduced-rank regression, Izenman 1975). A
LoRA represents it exactly: B = W U, A = Uᵀ M. One map for all layers cannot separate everything; the rest is left to training,
whose trajectories show few prompts; so what is minimised here stays part of its loss, for all the other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from tqdm import tqdm

from components.collect.tables import where
from components.common.errors import UserError
from components.diffusion.encode import special_tokens, tokenize
from components.diffusion.text import towers_of
from components.guidance import recipe
from components.guidance.adapters import adapted_layers

_BATCH = 256


class Moments(NamedTuple):
    """Second moments of hidden states, (D, D) each, float64."""

    target: torch.Tensor
    """E c cᵀ over all positions of prompts about the target."""
    wanted: torch.Tensor
    """E a cᵀ, a the state at the position that corresponds in the same prompt about the anchor."""
    retain: torch.Tensor
    """E k kᵀ over prompts to retain."""
    uncond: torch.Tensor
    """E u uᵀ over the empty prompt."""


def corresponding(target_ids: torch.Tensor, anchor_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """For every position (P, L) of a prompt the position that corresponds in its counterpart.

    Two prompts are alike up to where the names begin and again from where these end. In between, tokens are matched from
    the last one backwards, for the last is the one that has read the name.
    """
    length = target_ids.shape[1]
    position = torch.arange(length)
    rows = []
    for target, anchor in zip(target_ids, anchor_ids, strict=True):
        n, m = (int((ids == eos_token_id).int().argmax()) for ids in (target, anchor))
        short = min(n, m)
        before = int((target[:short] == anchor[:short]).int().cumprod(0).sum())
        left = short - before
        after = int((target[n - left : n].flip(0) == anchor[m - left : m].flip(0)).int().cumprod(0).sum())
        shifted = (position + m - n).clamp(min(before, max(m - after - 1, 0)), length - 1)
        rows.append(torch.where(position < before, position, shifted))
    return torch.stack(rows)


def moments(pipe: StableDiffusionPipeline, table: pd.DataFrame, *, bf16: bool = False) -> Moments:
    """The moments of one request's prompts in `table`, never of the evaluation's.

    Every prompt that names the target counts as one about it, everyday English too: such a prompt is nothing to retain.
    With `bf16` the text encoder computes in bfloat16: three times as fast on a CPU that can, and the map's objective keeps
    four digits, where half of the prompts would cost 1 %.
    """
    table = where(table, table["split"] != "evaluate")
    about = where(table, table["names_target"])
    retained = where(table, ~table["names_target"])["prompt"].drop_duplicates().tolist()
    anchored = bool((about["counterpart"] != "").all())
    towers = towers_of(pipe)
    tokenizer = towers.first.tokenizer
    eos, _ = special_tokens(tokenizer)

    def states(prompts: Sequence[str]) -> torch.Tensor:
        with torch.autocast(towers.first.device.type, dtype=torch.bfloat16, enabled=bf16):
            return towers.encode(prompts, batch=_BATCH).states.double()

    empty = states([""])
    length, size = empty.shape[1:]
    target, wanted, retain = torch.zeros(3, size, size, dtype=torch.float64)
    for start in tqdm(range(0, len(about), _BATCH), desc="states target", unit="batch", mininterval=5):
        rows = about.iloc[start : start + _BATCH]
        prompts, counterparts = rows["prompt"].tolist(), rows["counterpart"].tolist()
        c = states(prompts)
        if anchored:
            here, there = (tokenize(tokenizer, each).input_ids for each in (prompts, counterparts))
            a = states(counterparts).gather(1, corresponding(here, there, eos)[:, :, None].expand(c.shape))
        else:
            before = [p.partition(name)[0] for p, name in zip(prompts, rows["name_used"], strict=True)]
            begins = (tokenize(tokenizer, before).input_ids == eos).int().argmax(1)  # where the name begins, (P,)
            has_read = torch.arange(length) >= begins[:, None]  # (P, L)
            a = torch.where(has_read[:, :, None], empty, c)
        target += torch.einsum("pld,ple->de", c, c)
        wanted += torch.einsum("pld,ple->de", a, c)
    for start in tqdm(range(0, len(retained), _BATCH), desc="states retain", unit="batch", mininterval=5):
        k = states(retained[start : start + _BATCH]).flatten(0, 1)
        retain += k.T @ k
    erased, survive = max(1, len(about) * length), max(1, len(retained) * length)
    return Moments(target / erased, wanted / erased, retain / survive, empty[0].T @ empty[0] / length)


def _system(given: Moments, *, retain_weight: float, uncond_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(S, E (a - c) cᵀ) of the module's equations, (D, D) each."""
    scatter = given.target + retain_weight * given.retain + uncond_weight * given.uncond
    return scatter + recipe.RIDGE * torch.eye(len(scatter), dtype=scatter.dtype), given.wanted - given.target


def steer(
    given: Moments, *, rank: int, retain_weight: float, uncond_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(U (D, r), Uᵀ M (r, D)) of the module's equations, with μ = `retain_weight` and ν = `uncond_weight`."""
    size = len(given.target)
    if rank > size:
        raise UserError(f"guidance.rank={rank} exceeds the {size} dimensions of the prompt's hidden states", "lower it")
    scatter, change = _system(given, retain_weight=retain_weight, uncond_weight=uncond_weight)
    full = torch.linalg.solve(scatter, change, left=False)  # M, (D, D)
    _, vectors = torch.linalg.eigh(full @ scatter @ full.T)  # ascending
    up = vectors[:, -rank:].flip(1)
    return up, up.T @ full


@torch.no_grad()
def start_in_closed_form(
    unet: UNet2DConditionModel,
    name: str,
    given: Moments,
    *,
    rank: int,
    retain_weight: float,
    uncond_weight: float,
) -> None:
    """Sets keys and values of the adapter `name` to the solution; other layers that it has stay as they are."""
    up, down = steer(given, rank=rank, retain_weight=retain_weight, uncond_weight=uncond_weight)
    for layer in adapted_layers(unet, name):
        raised = layer.get_submodule("base_layer").get_parameter("weight").cpu().double() @ up  # (O, r)
        balance = (down.norm() / raised.norm()).sqrt()  # so that A and B are of one size, and learn at one rate
        layer.get_parameter(f"lora_A.{name}.weight").copy_(down / balance)
        layer.get_parameter(f"lora_B.{name}.weight").copy_(raised * balance)


def principal_axes(
    given: Moments,
    empty: torch.Tensor,  # (e, D) orthonormal, as `empty_directions` gives it; e = 0: nothing is left out
    *,
    retain_weight: float,
    uncond_weight: float,
) -> torch.Tensor:
    """Q (D - e, D), orthonormal: the axes along which hidden states spread, least first, all orthogonal to `empty`.

    They are the eigenvectors of N S N, with N = I - Vᵀ V for the rows V of `empty` and S of the module's equations. Trained
    are the entries of A in these axes: states spread a thousand times as far along some as along others, and Adam, which
    has one step length for each entry, then adapts to it. SOAP (arXiv 2409.11321) runs Adam in the eigenvectors of a
    preconditioner for the same reason.
    """
    project = torch.eye(empty.shape[1], dtype=torch.float64) - empty.T.double() @ empty.double()
    scatter, _ = _system(given, retain_weight=retain_weight, uncond_weight=uncond_weight)
    axes = torch.linalg.eigh(project @ scatter @ project).eigenvectors.T  # ascending: what `empty` spans comes first
    return axes[len(empty) :].float()


def closed_form_loss(
    unet: UNet2DConditionModel,
    name: str,
    given: Moments,
    *,
    retain_weight: float,
    uncond_weight: float,
) -> Callable[[], torch.Tensor]:
    """What the closed form minimises, as a loss of the adapter `name`: the mean over its layers, carrying gradient.

    With Δ = B A, for one projection and up to a constant,

        (E |Δ c - W (a - c)|² + μ E |Δ k|² + ν E |Δ u|² + ρ |Δ|²) / E |W c|² = (tr Δ S Δᵀ - 2 tr Δ E c (a - c)ᵀ Wᵀ) / tr W E c cᵀ Wᵀ

    It costs as much for thousands of prompts as for one, since it reads their moments alone.
    """
    scatter, change = _system(given, retain_weight=retain_weight, uncond_weight=uncond_weight)
    spread, scatter, change = given.target.float(), scatter.float(), change.float()
    parts = []
    for layer in adapted_layers(unet, name):
        weight = layer.get_submodule("base_layer").get_parameter("weight").detach().float().cpu()  # (O, D)
        down, up = (layer.get_submodule(f"lora_{m}.{name}") for m in "AB")  # of (r, D) and (O, r)
        parts.append((down, up, weight @ change, torch.einsum("od,de,oe->", weight, spread, weight)))

    def loss() -> torch.Tensor:
        each = []
        for down, up, wanted, scale in parts:
            a, b = down.weight.cpu(), up.weight.cpu()  # the moments stay where they are
            each.append((((b.T @ b) * (a @ scatter @ a.T)).sum() - 2 * (b * (wanted @ a.T)).sum()) / scale)
        return torch.stack(each).mean()

    return loss
