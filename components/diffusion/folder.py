"""What can be known of a pipeline's folder without reading a weight; it refuses what the erasers do not support."""

from __future__ import annotations

import json
from pathlib import Path

from components.common.errors import ArtifactError, UserError
from components.common.files import SIDECAR, digest, key_of

FORMAT = "expunge/base"
SUPPORTED = {"StableDiffusionPipeline": {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel"}}


def check_folder(folder: Path) -> None:
    """Everything that can be known of a pipeline folder without reading a weight.

    `UserError` for a folder that is no pipeline or of an architecture that is not supported; `ArtifactError` for a
    component without weights, and, where the folder has a sidecar, for bytes that are not the ones it names.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} is no diffusers pipeline (it has no model_index.json)", "mend base.path in params.yaml"
        )
    try:
        named = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{index} is not JSON", "restore it: git checkout") from error
    kind = named.get("_class_name")
    if kind not in SUPPORTED:
        raise UserError(f"{folder} is a {kind}, which is not supported", f"use a {' or '.join(SUPPORTED)}")
    for part, wanted in SUPPORTED[kind].items():
        found = (named.get(part) or [None, None])[1]
        if found != wanted:
            raise UserError(f"{part} of {folder} is a {found}, which is not supported", f"use a {wanted}")
    for part in ("text_encoder", "unet", "vae"):
        if not any((folder / part).glob("*.safetensors")):
            raise ArtifactError(f"{folder / part} holds no safetensors file", "restore the weights, as safetensors")
    sidecar = folder / SIDECAR
    if sidecar.is_file():
        for name, wanted in json.loads(sidecar.read_text(encoding="utf-8"))["files"].items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"{path} is missing", "restore it: git checkout or dvc checkout")
            if digest(path) != wanted:
                raise ArtifactError(f"{path} was altered or cut short", "restore it: git checkout or dvc checkout")


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the pipeline but the sidecar and the judge, by relative name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    keep = [p.relative_to(folder) for p in files if p.name != SIDECAR]
    return {p.as_posix(): digest(folder / p) for p in keep if p.parts[0] != "judge" and p.suffix != ".md"}


def base_digest(folder: Path) -> str:
    """A short name for the pipeline's bytes: equal files, equal name."""
    return key_of(folder_digests(folder))
