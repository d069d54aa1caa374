"""Files without torch: canonical JSON, digests, and writing that leaves either the old bytes or the new ones.

An artifact is a folder whose sidecar, `artifact.json`, says what the folder holds (components/common/artifacts.py).
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

from components.common.errors import ArtifactError

SIDECAR = "artifact.json"
VERSION = 1


def canonical(value: object) -> str:
    """JSON with sorted keys and a final newline: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files by sorted relative name; `ArtifactError` if there is nothing."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
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
