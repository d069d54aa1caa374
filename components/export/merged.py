"""The erased model as a plain diffusers folder: the adapters' products added into the U-Net's own weights.

    W' = W + Σ_r B_r A_r          (Hu et al. 2021; one LoRA r a request, or one fused of several; its scale within B)

Only what loading the base reads is written: configurations, vocabularies and one weight file (or its shards) of each part;
other variants, `.bin` files and a safety checker are left out, since they were not edited. In the U-Net's file the changed
tensors are replaced, in the dtype that they have there. `from_pretrained` of diffusers opens the folder with nothing of ours
installed. The filter sits in the text encoders' forward passes and is no weight, so it is not part of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from components.common.errors import ArtifactError, UserError
from components.common.files import SIDECAR, VERSION, canonical, digest, new_folder, read_sidecar, write_sidecar
from components.diffusion.folder import folder_digests, loaded_files, parts_of, plain_name, read_index
from components.diffusion.load import load_pipeline
from components.guidance.adapters import load_adapters

FORMAT = "expunge/merged"
_CHANGED = """
## Changed

This is an edited copy: {added} into the U-Net's weights by `expunge export diffusers`, so that it no longer
draws what they erase. Nothing above was measured on this copy, and it has no safety checker. The licence is the base model's.
"""


def merged_files(folder: Path) -> set[str]:
    """The names of the files of a previous export; `ArtifactError` for a folder that holds none."""
    return {*read_sidecar(folder, FORMAT)["files"], SIDECAR}


def check_target(folder: Path, base: Path, written: Callable[[Path], set[str]] = merged_files) -> None:
    """`UserError` unless `folder` is new, empty, or holds nothing but what `written` says that a previous export wrote."""
    inner, outer = folder.resolve(), base.resolve()
    if inner == outer or outer in inner.parents:
        raise UserError(f"{folder} lies in the base model {base}", "name another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", "name a folder")
    above = next(p for p in inner.parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{folder} cannot be written", f"name a folder elsewhere than in {above}")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    if not present:
        return
    try:
        ours = written(folder)
    except ArtifactError as error:
        raise UserError(f"{folder} is not empty and is no previous export", "name a new or empty folder") from error
    if foreign := sorted(present - ours):
        raise UserError(f"{folder} holds {foreign[0]}, which no export wrote", "move it away or name another folder")


def merge_weights(base: Path, adapters: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """The U-Net's tensors that `adapters`, by name, change: summed into the base in fp32, under the base's own names."""
    pipe = load_pipeline(base)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    if adapters:
        load_adapters(pipe, adapters)
        pipe.fuse_lora(components=["unet"], adapter_names=list(adapters))
        pipe.unload_lora_weights()
    return {k: v for k, v in pipe.unet.state_dict().items() if not torch.equal(v, before[k])}


def write_merged(folder: Path, base: Path, adapters: Mapping[str, Path], fused: Path | None = None) -> list[str]:
    """Writes the pipeline of `base` with `adapters`, by request, into `folder`; returns the names of the changed tensors.

    Adapters are summed, or `fused`, one adapter made of them (components/guidance/fuse.py), stands in their place. The
    old folder stays until the new one is whole. `UserError` for a folder that is not ours to replace, `ArtifactError`
    for an altered adapter.
    """
    check_target(folder, base)
    changed = merge_weights(base, adapters if fused is None else {"fused": fused})
    inputs = {f"adapter/{name}": digest(path) for name, path in adapters.items()}
    added = f"the adapters of {', '.join(adapters)} were added"
    if fused is not None:
        inputs["fused"] = digest(fused)
        added = f"one adapter, fused of those of {', '.join(adapters)}, was added"
    inputs |= {f"base/{name}": value for name, value in folder_digests(base).items()}
    parts = parts_of(base)
    with new_folder(folder.resolve()) as partial:
        (partial / "model_index.json").write_text(canonical(_index(base, parts)), encoding="utf-8")
        for part in parts:
            (partial / part).mkdir()
            for path in loaded_files(base, part):
                shutil.copy(path, partial / part / plain_name(path.name))
        written = {n for path in (partial / "unet").glob("*.safetensors") for n in _replace(path, changed)}
        assert written == set(changed)  # load_pipeline read the same names from the same files
        card = base / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else "# A Stable Diffusion pipeline\n"
        (partial / "README.md").write_text(text + _CHANGED.format(added=added), encoding="utf-8")
        sidecar = {
            "format": FORMAT,
            "version": VERSION,
            "requests": sorted(adapters),
            "inputs": inputs,
            "facts": {"changed": sorted(changed), "fused": fused is not None},
            "files": {p.relative_to(partial).as_posix(): digest(p) for p in sorted(partial.rglob("*")) if p.is_file()},
        }
        write_sidecar(partial, sidecar)
    return sorted(changed)


def _index(base: Path, parts: Sequence[str]) -> dict[str, Any]:
    """model_index.json without the parts that are not written."""
    named = read_index(base)
    absent = {n: [None, None] for n, kind in named.items() if isinstance(kind, list) and n not in parts}
    checked = {"requires_safety_checker": False} if "requires_safety_checker" in named else {}
    return named | absent | checked


def _replace(path: Path, changed: Mapping[str, torch.Tensor]) -> set[str]:
    """Puts those of `changed` that the file holds into it, each in the dtype that it has there; returns their names."""
    tensors = load_file(path)
    names = tensors.keys() & changed.keys()
    try:
        fitted = {name: changed[name].to(tensors[name].dtype).contiguous() for name in names}
        save_file(tensors | fitted, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its way of saying that the disk is full
        raise OSError(str(error)) from error
    return names
