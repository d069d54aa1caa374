"""An adapter under kohya's names, which ComfyUI, A1111, Forge and InvokeAI read.

    <module>.lora.down.weight  ->  lora_unet_<module, dots as underscores>.lora_down.weight, .lora_up.weight, .alpha

The modules keep diffusers' names, in SDXL too: ComfyUI lists `lora_unet_` and each of diffusers' names beside its own, and
A1111 rewrites down_blocks_i_attentions_j to input_blocks_{1 + 3 i + j}_1 and up_blocks_i_attentions_j to
output_blocks_{3 i + j}_1. `alpha` is the rank, so that the weights act as they were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from components.common.artifacts import fill_artifact, read_artifact
from components.common.files import SIDECAR, digest, new_folder, read_sidecar
from components.guidance.adapters import FORMAT as ADAPTER

FORMAT = "expunge/kohya"
WEIGHTS = "expunge_lora.safetensors"


def kohya_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's tensors, `unet.<module>.lora.down.weight` (r, D) and `….up.weight` (O, r), under kohya's names, with alpha ()."""
    found = {}
    for key, value in tensors.items():
        module, _, kind = key.removeprefix("unet.").removesuffix(".weight").partition(".lora.")
        name = f"lora_unet_{module.replace('.', '_')}"
        found[f"{name}.lora_{kind}.weight"] = value
        if kind == "down":
            found[f"{name}.alpha"] = torch.tensor(float(len(value)))
    return found


def write_kohya(folder: Path, adapter: Path, requests: list[str]) -> None:
    """Writes the adapter in folder `adapter`, of these requests, under kohya's names; `ArtifactError` for an altered one."""
    tensors, sidecar = read_artifact(adapter, ADAPTER)
    with new_folder(folder.resolve()) as partial:
        fill_artifact(
            partial, kind=FORMAT, tensors=kohya_tensors(tensors), weights=WEIGHTS, facts={"requests": sorted(requests)},
            inputs=sidecar["inputs"] | {"adapter": digest(adapter)},
        )  # fmt: skip


def kohya_files(folder: Path) -> set[str]:
    """The names of the files of a previous export; `ArtifactError` for a folder that holds none."""
    return {SIDECAR, read_sidecar(folder, FORMAT)["weights"]["file"]}
