"""Artifacts on disk: a folder of `*.safetensors` beside one deterministic sidecar, `artifact.json`.

The sidecar names format and version, the parameters, the digests of the inputs and, of every tensor, shape and dtype.
Nothing volatile is in it (no time, host or revision), and nothing is in the safetensors header, whose key order is not
deterministic: same inputs, same bytes. A reader refuses an unknown format, a missing tensor, a wrong shape or dtype, and
bytes whose digest is not the one named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from components.common.errors import ArtifactError
from components.common.files import VERSION, digest, read_sidecar, write_sidecar

WEIGHTS = "model.safetensors"


def fill_artifact(
    folder: Path,
    *,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    params: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    weights: str = WEIGHTS,
) -> None:
    """Writes tensors and sidecar into `folder`, which a `new_folder` block holds open."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in sorted(tensors.items())}
    try:
        save_file(plain, folder / weights)
    except SafetensorError as error:  # its way of saying that the disk is full
        raise OSError(str(error)) from error
    sidecar = {
        "format": kind,
        "version": VERSION,
        "params": dict(params or {}),
        "inputs": dict(inputs or {}),
        "facts": dict(facts or {}),
        "weights": {"file": weights, "sha256": digest(folder / weights)},
        "tensors": {
            k: {"shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")} for k, v in plain.items()
        },
    }
    write_sidecar(folder, sidecar)


def read_artifact(folder: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, sidecar) of an artifact; `ArtifactError` for any byte, name, shape or dtype that is not as declared."""
    sidecar = read_sidecar(folder, kind)
    path = folder / sidecar["weights"]["file"]
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", "restore it: dvc checkout or git checkout")
    if digest(path) != sidecar["weights"]["sha256"]:
        raise ArtifactError(
            f"{path} has sha256 {digest(path)[:12]}…, not {sidecar['weights']['sha256'][:12]}… as its sidecar says",
            "it was altered or cut short: restore it with dvc checkout or git checkout",
        )
    tensors = load_file(path)
    found = {k: {"shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")} for k, v in tensors.items()}
    if found != sidecar["tensors"]:
        wrong = sorted(k for k in found.keys() | sidecar["tensors"].keys() if found.get(k) != sidecar["tensors"].get(k))
        raise ArtifactError(f"{path} and its sidecar disagree on {', '.join(wrong)}", "restore both: dvc checkout")
    return tensors, sidecar
