"""One adapter in the place of several that are summed: each answers prompts that carry its own target, and those alone.

    R requests, P prompts, L token positions, D hidden, r rank of an adapter, O outputs of a projection

Summed, adapters answer each other's prompts too, and a little of everything. Gates (gating.py) forbid that, but ask a
filter, which a file of weights does not have. Here the linear maps of hidden states are taken that come closest to gated
adapters, over states h of prompts that carry a target, k of prompts that carry none and u of the empty prompt (E: the mean
over positions, of k over prompts too):

    Σ_p w_p E |Δ' h_p - Σ_{i: p carries i} Δ_i h_p|² + μ E |Δ' k|² + ν E |Δ' u|² + ρ |Δ'|²  ->  min,   Δ_i = B_i A_i,   Δ' V = 0

V is a basis (D, e) of the directions that carry the empty prompt, w_p = Σ_{i: p carries i} 1 / n_i, n_i the number of prompts that
carry i. With P = I - V Vᵀ,

    Δ' = Σ_i B_i A_i C_i P (P S P)⁺,   C_i = Σ_{p: p carries i} w_p E h_p h_pᵀ,   S = Σ_p w_p E h_p h_pᵀ + μ E k kᵀ + ν E u uᵀ + ρ I

This is how RegMean merges linear layers (Jin et al. 2023, arXiv 2212.09849). Each A_i is changed and B_i stays, so that all of
them, one below the other, are a LoRA again, of the ranks' sum. The adapters that it is made from are not touched: to add or to
withdraw a request is to fuse anew.
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
from components.collect.tables import where
from components.common.artifacts import fill_artifact, read_artifact
from components.common.errors import ArtifactError, UserError
from components.common.files import SIDECAR, digest, key_of, new_folder, read_sidecar
from components.diffusion.encode import encode
from components.diffusion.load import load_pipeline
from components.guidance.adapters import FORMAT, SUFFIXES, WEIGHTS, empty_directions
from components.requests.requests import Request

RETAIN_WEIGHT = 6.0
"""μ: docs/decisions/0012 has what others cost."""
_UNCOND_WEIGHT = 1.0  # ν
_RIDGE = 1e-4  # ρ, as of the closed form
_KEPT = 4000  # prompts that carry no target, at most
_BATCH = 256


class Chosen(NamedTuple):
    """The prompts that adapters are fused on."""

    prompts: list[str]
    """P: first those that carry a target, then those that carry none."""
    carries: np.ndarray
    """(P, R) bool."""


class Scatter(NamedTuple):
    """Second moments of hidden states, (D, D) each, float64."""

    own: torch.Tensor
    """(R, D, D) C_i."""
    carrying: torch.Tensor
    """Σ_p w_p E h_p h_pᵀ."""
    keep: torch.Tensor
    """E k kᵀ."""
    uncond: torch.Tensor
    """E u uᵀ."""


def confine(given: Scatter, known: torch.Tensor, *, retain_weight: float) -> torch.Tensor:
    """(R, D, D) C_i P (P S P)⁺ of the module's equations, which each A_i is multiplied by from the right; `known` (e, D) is Vᵀ."""
    eye = torch.eye(len(given.keep), dtype=given.keep.dtype)
    scatter = given.carrying + retain_weight * given.keep + _UNCOND_WEIGHT * given.uncond + _RIDGE * eye
    blind = eye - known.T @ known
    inner = blind @ scatter @ blind + known.T @ known  # of full rank; its inverse is the pseudoinverse where P is not 0
    return torch.linalg.solve(inner, given.own @ blind, left=False)


def choose_prompts(table: pd.DataFrame, requests: Mapping[str, Request]) -> Chosen:
    """From the prompts of `requests` in `table`, never the evaluation's, and none with a name that is kept for it.

    A prompt counts by the names that are in it, whosever it is. `UserError` for a request that none of them carries.
    """
    rows = where(table, (table["split"] != "evaluate") & table["request"].isin(list(requests)))
    prompts = rows["prompt"].drop_duplicates().tolist()
    carries = carried(prompts, requests, "select")
    heard = np.flatnonzero((carries == carried(prompts, requests, "evaluate")).all(1))
    prompts, carries = [prompts[i] for i in heard], carries[heard]
    if missing := [name for name, count in zip(requests, carries.sum(0), strict=True) if not count]:
        raise UserError(f"no prompt carries the target of {missing[0]}", "write them again: dvc repro concepts")
    some, free = np.flatnonzero(carries.any(1)), np.flatnonzero(~carries.any(1))
    free = np.random.default_rng(0).permutation(free)[:_KEPT]
    order = np.concatenate([some, free])
    return Chosen([prompts[i] for i in order], carries[order])


def scatter_of(pipe: StableDiffusionPipeline, chosen: Chosen) -> Scatter:
    """The moments of what the text encoder of `pipe` makes of these prompts."""
    prompts, carries = chosen
    some = np.asarray(carries.any(1))
    weight = (carries / carries.sum(0)).sum(1)  # (P,)
    weight[~some] = 1 / max(1, int((~some).sum()))
    empty = encode(pipe.text_encoder, pipe.tokenizer, [""]).double()
    length, size = empty.shape[1:]
    own = torch.zeros(carries.shape[1], size, size, dtype=torch.float64)
    carrying, keep = torch.zeros(2, size, size, dtype=torch.float64)
    for start in tqdm(range(0, len(prompts), _BATCH), desc="states fuse", unit="batch", mininterval=5):
        part = slice(start, start + _BATCH)
        h = encode(pipe.text_encoder, pipe.tokenizer, prompts[part]).double()
        h = h * torch.from_numpy(weight[part] / length).sqrt()[:, None, None]
        masks = [*carries[part].T, some[part], ~some[part]]
        for mask, total in zip(masks, [*own, carrying, keep], strict=True):
            flat = h[torch.from_numpy(mask)].flatten(0, 1)
            total += flat.T @ flat
    return Scatter(own, carrying, keep, empty[0].T @ empty[0] / length)


def check_fusible(adapters: Mapping[str, Path]) -> None:
    """`UserError` for a single adapter, and for one that trains more than keys and values: that is no map of hidden states."""
    if len(adapters) == 1:
        name, folder = next(iter(adapters.items()))
        raise UserError(f"{name} alone is nothing to fuse", f"load {folder} as it is")
    for name, folder in adapters.items():
        tensors = read_sidecar(folder, FORMAT)["tensors"]
        if beyond := sorted(key for key in tensors if not any(f".{s}." in key for s in SUFFIXES["xattn-kv"])):
            raise UserError(
                f"the adapter {name} changes {beyond[0]}, and only keys and values of cross-attention can be fused",
                "train it with guidance.parameters: xattn-v, or export the sum: expunge export diffusers --sum",
            )


def fuse(
    parts: Mapping[str, Mapping[str, torch.Tensor]],  # each adapter's tensors, (r, D) down and (O, r) up
    right: Mapping[str, torch.Tensor],  # (D, D): what `confine` says of each
) -> dict[str, torch.Tensor]:
    """The tensors of one adapter of the ranks' sum in every layer, under the names that those of `parts` have.

    A layer that an adapter lacks, as one of values alone lacks keys, counts as one that changes nothing.
    """
    ranks = {name: next(t.shape[0] for key, t in tensors.items() if ".down." in key) for name, tensors in parts.items()}
    fused = {}
    for key in sorted(set().union(*parts.values())):
        like = next(tensors[key] for tensors in parts.values() if key in tensors)
        if ".down." in key:
            own = [
                t.get(key, like.new_zeros(ranks[name], like.shape[1])).double() @ right[name]
                for name, t in parts.items()
            ]
            fused[key] = torch.cat(own).float()  # (R r, D)
        else:
            own = [t.get(key, like.new_zeros(len(like), ranks[name])) for name, t in parts.items()]
            fused[key] = torch.cat(own, dim=1).float()  # (O, R r)
    return fused


def write_fused(
    folder: Path, base: Path, adapters: Mapping[str, Path], requests: Mapping[str, Request], table: pd.DataFrame
) -> None:
    """Writes one adapter in the place of `adapters`, by request; `table` holds the requests' prompts.

    It is one that `pipe.load_lora_weights` reads. The old folder stays until the new one is whole. `UserError` for what
    cannot be fused, `ArtifactError` for an altered adapter, both before the model is loaded.
    """
    check_fusible(adapters)
    chosen = choose_prompts(table, {name: requests[name] for name in adapters})
    parts = {name: read_artifact(path, FORMAT)[0] for name, path in adapters.items()}
    pipe = load_pipeline(base)
    known = empty_directions(encode(pipe.text_encoder, pipe.tokenizer, [""])).double()
    right = confine(scatter_of(pipe, chosen), known, retain_weight=RETAIN_WEIGHT)
    inputs = {f"adapter/{name}": digest(path) for name, path in adapters.items()} | {"base": digest(base / "unet")}
    inputs |= {part: digest(base / part) for part in ("text_encoder", "tokenizer")}
    inputs["prompts"] = key_of({"prompts": "\n".join(chosen.prompts)})
    with new_folder(folder.resolve()) as partial:
        fill_artifact(
            partial, kind=FORMAT, tensors=fuse(parts, dict(zip(adapters, right, strict=True))), inputs=inputs,
            params={"retain_weight": RETAIN_WEIGHT}, facts={"requests": sorted(adapters)}, weights=WEIGHTS,
        )  # fmt: skip


def fused_files(folder: Path) -> set[str]:
    """The names of the files of a fused adapter; `ArtifactError` for a folder that holds none, such as a trained one."""
    sidecar = read_sidecar(folder, FORMAT)
    if "requests" not in sidecar["facts"]:
        raise ArtifactError(f"{folder} holds an adapter that was trained", "name another folder")
    return {SIDECAR, sidecar["weights"]["file"]}
