"""A release in use: found in a folder or fetched from the registry, joined with its base, and opened as an eraser."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from components.common.errors import ArtifactError
from components.common.sections import PARAMS, read_section
from components.common.variants import Variant
from components.diffusion.folder import base_digest, check_folder
from components.diffusion.params import BaseParams
from components.registry.binding import ADAPTERS, FILTER
from components.registry.release import RELEASE, Release, read_release

if TYPE_CHECKING:
    import torch

    from components.eraser import Eraser

    E = TypeVar("E", bound=Eraser)


def find_release(reference: str | Path, root: Path = Path()) -> Release:
    """The release in a folder, or the version of that number, alias or URI in the registry of the project in `root` (`find_version`).

    A fetched release stays in the user's cache under its digest, and every byte is checked again whenever it is opened.
    """
    folder = Path(reference)
    if isinstance(reference, Path) or (folder / RELEASE).is_file() or (len(folder.parts) > 1 and folder.is_dir()):
        return read_release(folder)
    from components.registry.named import find_version  # noqa: PLC0415 - slow to import
    from components.registry.registry import Registry  # noqa: PLC0415

    registry = Registry(root)
    found = find_version(registry, reference)
    kept = cache_folder() / (found.digest or f"version-{found.version}")
    try:
        release = read_release(kept)
    except ArtifactError:
        shutil.rmtree(kept, ignore_errors=True)
    else:
        if release.digest == found.digest:
            return release
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as own:  # another process may fetch the same
        registry.fetch(found.version, Path(own) / "release")
        with suppress(OSError):  # it has, and what lies there is read below
            (Path(own) / "release").rename(kept)
    return read_release(kept)


def cache_folder() -> Path:
    """Where fetched releases stay: EXPUNGE_CACHE, else the user's cache folder, else the machine's folder for temporary files."""
    if named := os.environ.get("EXPUNGE_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expunge"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"expunge-{os.getuid()}"


def find_base(release: Release, base: Path | None = None, root: Path = Path()) -> Path:
    """The folder of the release's base: `base`, or where its params say, relative to `root`; `ArtifactError` if it is another."""
    folder = base or root / release.record["base"]["path"]
    check_folder(folder)
    if base_digest(folder) != release.record["base"]["digest"]:
        raise ArtifactError(f"{folder} is not the base of release {release.digest[:12]}", "name its folder as base")
    return folder


def open_release(
    kind: type[E],
    reference: str | Path,
    *,
    base: Path | None = None,
    root: Path = Path(),
    variant: Variant | None = None,
    requests: Sequence[str] | None = None,
    device: torch.device | None = None,
) -> E:
    """An eraser of class `kind` with the filters, adapters and requests of a release; `base` as in `find_base`, the rest as in `Eraser.open`."""
    release = find_release(reference, root)
    return kind.assemble(
        find_base(release, base, root),
        read_section("base", BaseParams, release.folder / PARAMS),
        release.requests,
        release.folder / FILTER,
        release.folder / ADAPTERS,
        variant=variant,
        requests=requests,
        device=device,
    )
