"""One adapter in place of several that are summed: each answers the prompts that name its own target, and no others.

    R requests, P prompts, L token positions, D hidden, r rank of an adapter, O outputs of a projection

Summed, adapters answer each other's prompts too, and a little of everything. Gates (gating.py) forbid that, but ask a
filter, which a file of weights does not have. Fusing takes the linear maps of hidden states that come closest to gated
adapters, over states h of prompts that name a target, k of prompts that name none and u of the empty prompt (E: the mean
over positions, for k over prompts too):

    Σ_p w_p E |Δ' h_p - Σ_{i: p names i} Δ_i h_p|² + μ E |Δ' k|² + ν E |Δ' u|² + ρ |Δ'|²  ->  min,   Δ_i = B_i A_i,   Δ' V = 0

V is a basis (D, e) of the empty prompt's directions, w_p = Σ_{i: p names i} 1 / n_i, n_i the number of prompts that name i.
With P = I - V Vᵀ,

    Δ' = Σ_i B_i A_i C_i P (P S P)⁺,   C_i = Σ_{p: p names i} w_p E h_p h_pᵀ,   S = Σ_p w_p E h_p h_pᵀ + μ E k kᵀ + ν E u uᵀ + ρ I

This is how RegMean merges linear layers (Jin et al. 2023, arXiv 2212.09849). Each A_i is changed and B_i stays, so that
stacked they are a LoRA again, of the ranks' sum. The adapters that it is made from are not touched: to add or to withdraw a
request is to fuse anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from components.collect.record import RequestRecord
from components.collect.tables import where
from components.common.artifacts import fill_artifact, read_artifact
from components.common.errors import ArtifactError, UserError
from components.common.files import SIDECAR, digest, key_of, new_folder, read_sidecar
from components.common.splits import Split
from components.common.words import mentions
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.load import load_pipeline
from components.diffusion.text import towers_of
from components.guidance.adapters import FORMAT, LAYERS, WEIGHTS, empty_directions
from components.guidance.recipe import RIDGE

RETAIN_WEIGHT = 6.0
"""μ: with ten requests, 6 draws 52 of 60 anchors and costs 8 points of unrelated concepts; 2 draws 56 and costs 13, 20 draws 40
and costs 4."""
_UNCOND_WEIGHT = 1.0  # ν
_RETAINED = 4000  # prompts that name no target, at most
_BATCH = 256


class FusionPrompts(NamedTuple):
    """The prompts that adapters are fused on."""

    prompts: list[str]
    """P: first those that name a target, then those that name none."""
    names_target: np.ndarray
    """(P, R) bool."""


class FusionMoments(NamedTuple):
    """Second moments of hidden states, (D, D) each, float64."""

    by_request: torch.Tensor
    """(R, D, D) C_i."""
    target: torch.Tensor
    """Σ_p w_p E h_p h_pᵀ."""
    retain: torch.Tensor
    """E k kᵀ."""
    uncond: torch.Tensor
    """E u uᵀ."""


def fit_right_maps(given: FusionMoments, empty: torch.Tensor, *, retain_weight: float) -> torch.Tensor:
    """(R, D, D) C_i P (P S P)⁺ of the module's equations, by which each A_i is multiplied from the right; `empty` (e, D) is Vᵀ."""
    eye = torch.eye(len(given.retain), dtype=given.retain.dtype)
    scatter = given.target + retain_weight * given.retain + _UNCOND_WEIGHT * given.uncond + RIDGE * eye
    project = eye - empty.T @ empty
    inner = (
        project @ scatter @ project + empty.T @ empty
    )  # of full rank; its inverse is the pseudoinverse where P is not 0
    return torch.linalg.solve(inner, given.by_request @ project, left=False)


def choose_prompts(table: pd.DataFrame, records: Mapping[str, RequestRecord]) -> FusionPrompts:
    """The prompts of these requests in `table`, but the evaluation's and those with a name that is reserved for it.

    A prompt counts by the names that are in it, whichever request it was written for. `UserError` for a request whose target
    no prompt names.
    """
    rows = where(table, (table["split"] != "evaluate") & table["request"].isin(list(records)))
    prompts = rows["prompt"].drop_duplicates().tolist()
    naming = _naming(prompts, records, "select")
    allowed = np.flatnonzero((naming == _naming(prompts, records, "evaluate")).all(1))
    prompts, naming = [prompts[i] for i in allowed], naming[allowed]
    if missing := [name for name, count in zip(records, naming.sum(0), strict=True) if not count]:
        raise UserError(f"no prompt names the target of {missing[0]}", "write them again: dvc repro concepts")
    some, none = np.flatnonzero(naming.any(1)), np.flatnonzero(~naming.any(1))
    none = np.random.default_rng(0).permutation(none)[:_RETAINED]
    order = np.concatenate([some, none])
    return FusionPrompts([prompts[i] for i in order], naming[order])


def _naming(prompts: Sequence[str], records: Mapping[str, RequestRecord], split: Split) -> np.ndarray:
    """(P, R) bool: which prompts name which request's target, by the names of `split`."""
    named = [[mentions(prompt, record.names[split]) for record in records.values()] for prompt in prompts]
    return np.array(named, dtype=bool).reshape(-1, len(records))


def fusion_moments(pipe: StableDiffusionPipeline, chosen: FusionPrompts) -> FusionMoments:
    """The moments of the hidden states that the text encoder of `pipe` gives for these prompts."""
    prompts, naming = chosen
    some = np.asarray(naming.any(1))
    weight = (naming / naming.sum(0)).sum(1)  # (P,)
    weight[~some] = 1 / max(1, int((~some).sum()))
    towers = towers_of(pipe)
    empty = towers.encode([""]).states.double()
    length, size = empty.shape[1:]
    by_request = torch.zeros(naming.shape[1], size, size, dtype=torch.float64)
    target, retain = torch.zeros(2, size, size, dtype=torch.float64)
    for start in tqdm(range(0, len(prompts), _BATCH), desc="states fuse", unit="batch", mininterval=5):
        part = slice(start, start + _BATCH)
        h = towers.encode(prompts[part]).states.double()
        h = h * torch.from_numpy(weight[part] / length).sqrt()[:, None, None]
        masks = [*naming[part].T, some[part], ~some[part]]
        for mask, total in zip(masks, [*by_request, target, retain], strict=True):
            flat = h[torch.from_numpy(mask)].flatten(0, 1)
            total += flat.T @ flat
    return FusionMoments(by_request, target, retain, empty[0].T @ empty[0] / length)


def check_fusible(adapters: Mapping[str, Path]) -> None:
    """`UserError` for a single adapter, and for one of other layers than keys and values: that is no map of hidden states."""
    if len(adapters) == 1:
        name, folder = next(iter(adapters.items()))
        raise UserError(f"{name} alone is nothing to fuse", f"load {folder} as it is")
    for name, folder in adapters.items():
        keys = read_sidecar(folder, FORMAT)["tensors"]
        if {next((layer for layer in LAYERS if f".{layer}." in key), key) for key in keys} != set(LAYERS):
            raise UserError(
                f"the adapter {name} does not change the keys and values of cross-attention alone",
                "train it again with this version: dvc repro",
            )


def fuse(
    parts: Mapping[str, Mapping[str, torch.Tensor]],  # each adapter's tensors, (r, D) down and (O, r) up
    right: Mapping[str, torch.Tensor],  # (D, D) each, as `fit_right_maps` gives them
) -> dict[str, torch.Tensor]:
    """The tensors of one adapter of the ranks' sum in every layer, under the same names as in `parts`."""
    fused = {}
    for key in sorted(next(iter(parts.values()))):
        if ".down." in key:
            stacked = torch.cat([tensors[key].double() @ right[name] for name, tensors in parts.items()])  # (R r, D)
        else:
            stacked = torch.cat([tensors[key] for tensors in parts.values()], dim=1)  # (O, R r)
        fused[key] = stacked.float()
    return fused


def write_fused(
    folder: Path,
    base: Path,
    adapters: Mapping[str, Path],
    records: Mapping[str, RequestRecord],  # of these adapters and perhaps of others
    table: pd.DataFrame,  # the requests' prompts, as `read_prompts` gives them
) -> None:
    """Writes one adapter in place of `adapters`, by request, which `pipe.load_lora_weights` reads.

    The old folder stays until the new one is whole. `UserError` for what cannot be fused, `ArtifactError` for an altered
    adapter, both before the model is loaded.
    """
    check_fusible(adapters)
    chosen = choose_prompts(table, {name: records[name] for name in adapters})
    parts = {name: read_artifact(path, FORMAT)[0] for name, path in adapters.items()}
    pipe = load_pipeline(base)
    empty = empty_directions(towers_of(pipe).encode([""]).states).double()
    right = fit_right_maps(fusion_moments(pipe, chosen), empty, retain_weight=RETAIN_WEIGHT)
    inputs = {f"adapter/{name}": digest(path) for name, path in adapters.items()} | part_digests(
        base, (*TEXT_PARTS, "unet", "scheduler")
    )
    inputs["prompts"] = key_of({"prompts": "\n".join(chosen.prompts)})
    with new_folder(folder.resolve()) as partial:
        fill_artifact(
            partial, kind=FORMAT, tensors=fuse(parts, dict(zip(adapters, right, strict=True))), inputs=inputs,
            params={"retain_weight": RETAIN_WEIGHT}, facts={"requests": sorted(adapters)}, weights=WEIGHTS,
        )  # fmt: skip


def fused_files(folder: Path) -> set[str]:
    """The names of the files of a fused adapter; `ArtifactError` for a folder without one, such as a trained adapter's."""
    sidecar = read_sidecar(folder, FORMAT)
    if "requests" not in sidecar["facts"]:
        raise ArtifactError(f"{folder} holds an adapter that was trained", "name another folder")
    return {SIDECAR, sidecar["weights"]["file"]}
