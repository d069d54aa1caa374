"""One adapter in the place of several that are summed: each answers prompts that carry its own target, and those alone.

    R requests, P prompts, L token positions, D hidden, r rank of an adapter, O outputs of a projection

Summed, adapters answer each other's prompts too, and a little of everything. Gates (gating.py) forbid that, but ask a
filter, which a file of weights does not have. The linear maps of hidden states that come closest to gated adapters, over
states h of prompts that carry a target, k of prompts that carry none and u of the empty prompt, minimise

    Σ_p w_p E |Δ' h_p - Σ_{i: p carries i} Δ_i h_p|² + μ E |Δ' k|² + ν E |Δ' u|² + ρ |Δ'|²,    Δ_i = B_i A_i

    Δ' = Σ_i B_i A_i C_i S⁻¹,   C_i = Σ_{p: p carries i} w_p E h_p h_pᵀ,   S = Σ_p w_p E h_p h_pᵀ + μ E k kᵀ + ν E u uᵀ + ρ I

This is how RegMean merges linear layers (Jin et al. 2023, arXiv 2212.09849). Each A_i is changed and B_i stays, so that all of
them, one below the other, are a LoRA again, of the ranks' sum. The adapters that it is made from are not touched: to add or to
withdraw a request is to fuse anew. What one linear map cannot tell apart, no weighing by μ can: gates cost less.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from components.collect.concepts import carried
from components.collect.stage import where
from components.common.artifacts import digest, fill_artifact, new_folder, read_artifact, read_sidecar
from components.common.errors import UserError
from components.common.seeding import stream_seed
from components.diffusion import encode, load_pipeline
from components.guidance.adapters import FORMAT, SUFFIXES, WEIGHTS, empty_directions
from components.requests import Request

RETAIN_WEIGHT = 6.0
"""μ: docs/decisions/0012 has what others cost."""
_UNCOND_WEIGHT = 1.0  # ν
_RIDGE = 1e-4  # ρ, as of the closed form
_KEPT = 4000  # prompts that carry no target, at most
_BATCH = 256


class Scatter(NamedTuple):
    """Second moments of hidden states, float64."""

    own: torch.Tensor
    """(R, D, D) C_i: over the prompts that carry the target of request i."""
    carrying: torch.Tensor
    """(D, D) over the prompts that carry any target, each once; those of one target weigh 1 together."""
    keep: torch.Tensor
    """(D, D) E k kᵀ."""
    uncond: torch.Tensor
    """(D, D) E u uᵀ."""


def confine(given: Scatter, *, retain_weight: float) -> torch.Tensor:
    """(R, D, D) C_i S⁻¹ of the module's equations: what each A_i is multiplied by from the right."""
    scatter = given.carrying + retain_weight * given.keep + _UNCOND_WEIGHT * given.uncond
    scatter = scatter + _RIDGE * torch.eye(len(scatter), dtype=scatter.dtype)
    return torch.linalg.solve(scatter, given.own, left=False)


def scatter_of(
    pipe: StableDiffusionPipeline, table: pd.DataFrame, requests: Mapping[str, Request], *, seed: int
) -> Scatter:
    """Over the prompts of `table`, never of the evaluation's; a prompt counts for every request whose target it carries."""
    rows = where(table, (table["split"] != "evaluate") & table["request"].isin(list(requests))).drop_duplicates(
        "prompt"
    )
    prompts = rows["prompt"].to_numpy()
    carries = carried(prompts, requests, "select")  # (P, R)
    if missing := [name for name, count in zip(requests, carries.sum(0), strict=True) if not count]:
        raise UserError(
            f"no prompt carries the target of {missing[0]}", "run the stage that writes them: dvc repro concepts"
        )
    free = np.flatnonzero(~carried(prompts, requests, "evaluate").any(1))  # nor names that are kept for the evaluation
    free = np.random.default_rng(stream_seed(seed, "fuse")).permutation(free)[:_KEPT]
    weight = (carries / carries.sum(0)).sum(1)  # (P,)
    weight[free] = 1 / max(1, len(free))
    some = np.flatnonzero(carries.any(1))
    empty = encode(pipe.text_encoder, pipe.tokenizer, [""]).double()
    length, size = empty.shape[1:]
    own = torch.zeros(len(requests), size, size, dtype=torch.float64)
    carrying, keep = torch.zeros(2, size, size, dtype=torch.float64)
    chosen = np.concatenate([some, free])
    for start in tqdm(range(0, len(chosen), _BATCH), desc="states fuse", unit="batch", mininterval=5):
        part = chosen[start : start + _BATCH]
        h = encode(pipe.text_encoder, pipe.tokenizer, prompts[part].tolist()).double()
        h = h * torch.from_numpy(weight[part] / length).sqrt()[:, None, None]
        for mask, total in [*zip(carries[part].T, own, strict=True), (carries[part].any(1), carrying)]:
            flat = h[torch.from_numpy(mask)].flatten(0, 1)
            total += flat.T @ flat
        rest = h[torch.from_numpy(~carries[part].any(1))].flatten(0, 1)
        keep += rest.T @ rest
    return Scatter(own, carrying, keep, empty[0].T @ empty[0] / length)


def check_fusible(adapters: Mapping[str, Path]) -> None:
    """`UserError` for an adapter that trains more than keys and values, since what it does is no map of hidden states."""
    for name, folder in adapters.items():
        tensors = read_sidecar(folder, FORMAT)["tensors"]
        if beyond := sorted(key for key in tensors if not any(f".{s}." in key for s in SUFFIXES["xattn-kv"])):
            raise UserError(
                f"the adapter {name} changes {beyond[0]}, and only keys and values of cross-attention can be fused",
                "train it with guidance.parameters: xattn-kv, or export the sum: expunge export diffusers --sum",
            )


def fuse(
    pipe: StableDiffusionPipeline,
    adapters: Mapping[str, Path],  # by request
    requests: Mapping[str, Request],
    table: pd.DataFrame,  # the prompts of them all
    *,
    retain_weight: float = RETAIN_WEIGHT,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The tensors of one adapter in the place of `adapters`, under the names that those have, of the ranks' sum."""
    check_fusible(adapters)
    parts = {name: read_artifact(folder, FORMAT)[0] for name, folder in adapters.items()}
    given = scatter_of(pipe, table, {name: requests[name] for name in adapters}, seed=seed)
    known = empty_directions(encode(pipe.text_encoder, pipe.tokenizer, [""])).double()  # (r, D)
    blind = torch.eye(known.shape[1], dtype=torch.float64) - known.T @ known
    right = confine(given, retain_weight=retain_weight) @ blind  # (R, D, D)
    fused = {}
    for key in next(iter(parts.values())):
        if ".down." in key:
            lowered = [tensors[key].double() @ m for tensors, m in zip(parts.values(), right, strict=True)]
            fused[key] = torch.cat(lowered).float()  # (R r, D)
        else:
            fused[key] = torch.cat([tensors[key].float() for tensors in parts.values()], dim=1)  # (O, R r)
    return fused


def write_fused(
    folder: Path,
    base: Path,
    adapters: Mapping[str, Path],
    requests: Mapping[str, Request],
    table: pd.DataFrame,
    *,
    retain_weight: float = RETAIN_WEIGHT,
) -> None:
    """Writes what `fuse` returns into `folder`, as an adapter that `pipe.load_lora_weights` reads."""
    tensors = fuse(load_pipeline(base), adapters, requests, table, retain_weight=retain_weight)
    inputs = {f"adapter/{name}": digest(path) for name, path in adapters.items()} | {"base": digest(base / "unet")}
    facts = {"requests": sorted(adapters)}
    with new_folder(folder) as partial:
        fill_artifact(
            partial, kind=FORMAT, tensors=tensors, params={"fuse_retain_weight": retain_weight}, inputs=inputs,
            facts=facts, weights=WEIGHTS,
        )  # fmt: skip
