"""Rebuilding a release: a fresh clone of its commit with its parameters, requests and lock, every stage, and each digest compared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.common.errors import ArtifactError, StageError, UserError
from components.common.files import write_text
from components.common.sections import PARAMS, read_yaml
from components.registry.lock import LOCK, dump_yaml
from components.registry.release import Release, build_release
from components.requests.requests import REQUESTS


class Difference(NamedTuple):
    """One digest that is not the same."""

    name: str
    """A file of the release, or base, judge or world."""
    released: str | None
    rebuilt: str | None
    """None where there is no such file."""


class Rebuilt(NamedTuple):
    """What came of rebuilding a release."""

    compared: int
    """How many digests were compared."""
    differences: list[Difference]
    packages: dict[str, tuple[str, str]]
    """Packages of another version, as released and here."""
    pulled: bool
    """Whether outputs came from the DVC remote instead of being computed."""
    cached: bool
    """Whether outputs may have come from a DVC cache outside the clone, which `.dvc/config.local` can name."""


def reproduce(
    release: Release, root: Path, into: Path, say: Callable[[str], None], *, from_scratch: bool = False
) -> Rebuilt:
    """Rebuilds a release of the project in `root` in the new folder `into`, and compares every digest of its release.json.

    Outputs are pulled from the DVC remote, if there is one, unless `from_scratch`; what it lacks is computed. `say` gets one line about
    each step. `UserError` or `ArtifactError` for a release that no commit holds; `StageError` for a stage that fails.
    """
    clone = _clone(release, root, into)
    _carry(release, clone)
    pulled = not from_scratch and _pull(clone, say)
    say("running the stages: dvc repro")
    if _dvc(clone, "repro", *(["--force"] if from_scratch else [])).returncode != 0:
        raise StageError(f"a stage failed in {clone}", "its log above says why")
    found = build_release(clone, into / ".release")
    here, there = _digests(release.record), _digests(found.record)
    names = sorted(here.keys() | there.keys())
    shutil.rmtree(found.folder, ignore_errors=True)
    return Rebuilt(
        len(names),
        [Difference(name, here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)],
        compare_packages(release.record["packages"], found.record["packages"]),
        pulled,
        cached=not from_scratch and _shares_cache(clone),
    )


def compare_packages(released: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The packages whose version differs, `none` where one is not installed."""
    both = {
        name: (released.get(name, "none"), here.get(name, "none")) for name in sorted(released.keys() | here.keys())
    }
    return {name: versions for name, versions in both.items() if versions[0] != versions[1]}


def check_source(release: Release) -> str:
    """The commit of a release; `ArtifactError` for one that the commit alone cannot rebuild."""
    source = release.record["source"]
    if source["commit"] is None:
        raise ArtifactError(f"release {release.digest[:12]} was built outside of git", "build it anew in a clone")
    if source["dirty"]:
        raise ArtifactError(
            f"release {release.digest[:12]} was built from commit {source['commit'][:12]} with changes that no commit has "
            f"(patch {(source['patch'] or 'unknown')[:12]}), so that the commit alone cannot rebuild it",
            "commit the changes and register again",
        )
    return source["commit"]


def _clone(release: Release, root: Path, into: Path) -> Path:
    """The project's folder in a fresh clone at the release's commit."""
    commit = check_source(release)
    if into.exists() and any(into.iterdir()):
        raise UserError(f"{into} is not empty", "name a new folder")
    top, prefix = _git(root, "rev-parse", "--show-toplevel"), _git(root, "rev-parse", "--show-prefix")
    if top is None or prefix is None:
        raise UserError(f"{root} is no clone of the project", "run from the root of one")
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise UserError(f"this clone lacks commit {commit[:12]}", "fetch it: git fetch --all")
    into.parent.mkdir(parents=True, exist_ok=True)
    if _git(root, "clone", "--quiet", "--no-checkout", top, str(into.resolve())) is None:
        raise StageError(f"{top} could not be cloned into {into}", "free some space or name another folder")
    if _git(into, "checkout", "--quiet", "--detach", commit) is None:
        raise StageError(f"commit {commit[:12]} could not be checked out in {into}", "free some space")
    local = root / ".dvc" / "config.local"
    if local.is_file():  # where this machine's DVC remote is
        shutil.copy(local, into / prefix / ".dvc" / "config.local")  # with its mode: it may hold a key
    return into / prefix


def _carry(release: Release, clone: Path) -> None:
    """Puts requests, lock and the released sections of the parameters into the clone, unless equal ones are there."""
    shutil.copyfile(release.folder / LOCK, clone / LOCK)
    for name, wanted in ((PARAMS, release.params), (REQUESTS, read_yaml(release.folder / REQUESTS) or {})):
        now = read_yaml(clone / name) if (clone / name).is_file() else None
        new = {**(now or {}), **wanted} if name == PARAMS else wanted
        if now != new:
            write_text(clone / name, dump_yaml(new))


def _pull(clone: Path, say: Callable[[str], None]) -> bool:
    """Whether all outputs came from the DVC remote."""
    listed = _dvc(clone, "remote", "list", quiet=True)
    if listed.returncode != 0 or not listed.stdout.strip():
        return False
    done = _dvc(clone, "pull", "--quiet", quiet=True)
    if done.returncode != 0:
        say("the DVC remote lacks objects or cannot be reached: what is missing is computed")
    return done.returncode == 0


def _shares_cache(clone: Path) -> bool:
    """Whether the clone's DVC cache lies outside of it; in doubt it does."""
    said = _dvc(clone, "cache", "dir", quiet=True)
    return said.returncode != 0 or not (clone / said.stdout.strip()).resolve().is_relative_to(clone.resolve())


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    own = {"base": record["base"]["digest"], "judge": record["judge"], "world": record["world"]["digest"]}
    return own | record["files"]


def _dvc(folder: Path, *arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs dvc with this interpreter's programs first on PATH, since stages call `python`."""
    programs = Path(sys.executable).parent
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DVC_ROOT")}
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    return subprocess.run(
        [programs / "dvc", *arguments],
        cwd=folder,
        env=kept | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
        check=False,
        text=True,
        stdout=subprocess.PIPE if quiet else 2,  # what stages say is no result
        stderr=subprocess.PIPE if quiet else None,
    )


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
