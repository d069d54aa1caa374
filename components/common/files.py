"""Files without torch: canonical JSON, digests, and writing that leaves either the old bytes or the new ones.

An artifact is a folder whose sidecar, `artifact.json`, says what the folder holds (components/common/artifacts.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from components.common.errors import ArtifactError

SIDECAR = "artifact.json"
VERSION = 1
_UNSEALED = {
    "193a1dda66cc333b0c1f0773e8941675c26b92c90c7ba6a23bdc8ef880ed9268",  # the base
    "cfa5a1033a89688bb8149c5a7658faabb8b8f59528defea4e6c2f495c6cbe956",  # its judge
    "b9cfd757d9004c19ad8225ef86043124ca3d9767ab6a4a7ebfaa07ae694887b8",  # the heads that score captions
}
"""SHA-256 of the sidecars that ship and are older than seals; no other may lack one."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
"""Errors of a full disk; safetensors' has no number."""


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
        _share(partial)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _unwritten(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file in one move: readers see the old text or the new one, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in one move: readers see the old bytes or the new ones, never a part. One that is there keeps its permissions."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # one of a killed process may be read-only
        with partial.open("wb") as file:
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(content)
        os.replace(partial, path)  # noqa: PTH105 - Path.replace is the same call
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names `path` in an `OSError` from inside that names no file, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def remedy_of(error: OSError) -> str:
    """What helps: space where that has run out, otherwise another path or other rights."""
    return "free some space" if error.errno in _NO_ROOM else "mend the path or its permissions"


def _unwritten(path: Path, error: OSError) -> ArtifactError:
    said = f"{path} could not be written ({error.strerror or error})"
    return ArtifactError(said, f"{remedy_of(error)}; what was there is unchanged")


def _share(folder: Path) -> None:
    """Gives files the permissions that the umask says: safetensors writes them for their owner alone."""
    wanted = 0o666 & ~_umask()
    for path in folder.rglob("*"):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != wanted:
            path.chmod(wanted)


def _umask() -> int:
    """The process's umask, which only Linux tells without setting it; elsewhere the usual one."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def write_sidecar(folder: Path, sidecar: Mapping[str, Any]) -> None:
    """Writes `artifact.json` with a seal: the digest of the rest, so that an altered byte is noticed."""
    (folder / SIDECAR).write_text(canonical({**sidecar, "seal": _seal(sidecar)}), encoding="utf-8")


def _seal(sidecar: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(dict(sidecar)).encode()).hexdigest()


def read_sidecar(folder: Path, kind: str) -> dict[str, Any]:
    """The sidecar of an artifact of format `kind`, without its seal; `ArtifactError` if a byte of it was altered, or for another format."""
    path = folder / SIDECAR
    try:
        text = path.read_text(encoding="utf-8")
        sidecar = json.loads(text)
        whole = isinstance(sidecar, dict) and text == canonical(sidecar)
    except OSError as error:
        raise ArtifactError(f"{folder} holds no {SIDECAR}", "run the stage that writes it: dvc repro") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON", "restore it: dvc checkout or git checkout") from error
    seal = sidecar.pop("seal", None) if whole else None
    if not whole or (digest(path) not in _UNSEALED if seal is None else seal != _seal(sidecar)):
        raise ArtifactError(f"{path} was altered", "restore it: dvc checkout or git checkout")
    named = sidecar.get("format"), sidecar.get("version")
    if named != (kind, VERSION):
        raise ArtifactError(
            f"{folder} has format {named[0]!r} version {named[1]!r}, not {kind!r} version {VERSION}",
            "write it again with this version: dvc repro",
        )
    return sidecar
