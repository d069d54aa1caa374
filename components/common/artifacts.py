"""Artifacts on disk: a folder of `*.safetensors` beside one deterministic sidecar, `artifact.json`.

The sidecar names format and version, the parameters, the digests of the inputs and, of every tensor, shape and dtype.
Nothing volatile is in it (no time, host or revision), and nothing is in the safetensors header, whose key order is not
deterministic: same inputs, same bytes. A reader refuses an unknown format, a missing tensor, a wrong shape or dtype, and
bytes whose digest is not the one named.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from components.common.errors import ArtifactError

SIDECAR = "artifact.json"
WEIGHTS = "model.safetensors"
VERSION = 1


def canonical(value: object) -> str:
    """JSON with sorted keys and a final newline: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files by sorted relative name; `ArtifactError` if there is nothing."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    if not files:
        raise ArtifactError(f"{path} holds no file", "run the stage that writes it: dvc repro")
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return whole.hexdigest()


def key_of(parts: Mapping[str, str]) -> str:
    """A short name for a combination of inputs, under which resumable state is kept."""
    return hashlib.sha256(canonical(dict(parts)).encode()).hexdigest()[:16]


def code_of(*slices: str) -> str:
    """A digest of the source files of some slices of `components`: part of the key of what their code has made."""
    root = Path(__file__).parents[1]
    texts = {str(p.relative_to(root)): p.read_text(encoding="utf-8") for s in slices for p in (root / s).rglob("*.py")}
    return key_of(texts)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill; it takes the place of `folder` only once the block ends without an error.

    A full disk or a crash half-way leaves the old folder as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(
            f"{folder} could not be written ({error.strerror or error})", "free some space; what was there is unchanged"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file in one move: readers see the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)  # noqa: PTH105 - Path.replace is the same call
    except OSError as error:
        raise ArtifactError(
            f"{path} could not be written ({error.strerror or error})", "free some space; what was there is unchanged"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


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
    (folder / SIDECAR).write_text(canonical(sidecar), encoding="utf-8")


def read_sidecar(folder: Path, kind: str) -> dict[str, Any]:
    """The sidecar of an artifact of format `kind`; `ArtifactError` otherwise."""
    try:
        sidecar = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{folder} holds no {SIDECAR}", "run the stage that writes it: dvc repro") from error
    except ValueError as error:
        raise ArtifactError(f"{folder / SIDECAR} is not JSON", "restore it: dvc checkout or git checkout") from error
    named = sidecar.get("format"), sidecar.get("version")
    if named != (kind, VERSION):
        raise ArtifactError(
            f"{folder} has format {named[0]!r} version {named[1]!r}, not {kind!r} version {VERSION}",
            "write it again with this version: dvc repro",
        )
    return sidecar


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
