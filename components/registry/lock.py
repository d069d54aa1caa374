"""dvc.lock: which stages ran with which parameters, and the MD5 of what each of them read and wrote."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.common.errors import ArtifactError, StageError, UserError
from components.common.files import write_text

LOCK = "dvc.lock"
_GRAPH = "dvc.yaml"
_KEPT = Path(".dvc/tmp/expunge.dvc.lock")


def read_lock(path: Path) -> dict[str, Any]:
    """The stages of a dvc.lock by name; `ArtifactError` if there is none."""
    try:
        stages = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]
    except (OSError, YAMLError, TypeError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or is none", "run the stages: dvc repro") from error
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise ArtifactError(f"{path} lists no stages", "run the stages: dvc repro")
    return stages


def guard_lock(root: Path) -> bool:
    """Keeps a copy of dvc.lock, or, where it was cut short, puts the last copy back; whether it did.

    dvc empties the file before it writes a stage's entry, so that a kill at that moment leaves one that no dvc reads. With
    the copy only that stage runs again; without one, dvc.lock is removed and dvc's cache has what it held. A merge's
    conflict is left to the person who merges.
    """
    lock, kept = root / LOCK, root / _KEPT
    if not lock.is_file():
        return False
    text = lock.read_text(encoding="utf-8", errors="replace")
    if _is_lock(text):
        write_text(kept, text)
        return False
    if "<<<<<<<" in text:
        return False
    if kept.is_file() and _is_lock(copy := kept.read_text(encoding="utf-8")):
        write_text(lock, copy)
    else:
        lock.unlink()
    return True


def _is_lock(text: str) -> bool:
    from dvc.dvcfile import Lockfile  # noqa: PLC0415 - slow to import
    from dvc.exceptions import DvcException  # noqa: PLC0415

    try:
        Lockfile.validate(YAML(typ="safe").load(text))
    except (YAMLError, DvcException):
        return False
    return True


def dump_yaml(content: object) -> str:
    """Plain content as YAML 1.2 in block style, keys in their order: equal content gives equal text."""
    yaml, text = YAML(), io.StringIO()
    yaml.width = 4096
    yaml.dump(content, text)
    return text.getvalue()


def check_stage(root: Path, name: str) -> None:
    """`UserError` unless the root's dvc.yaml has a stage of this name, or stages `name@…`."""
    with _repo(root) as repo:
        names = sorted({stage.name for stage in repo.index.stages if stage.path_in_repo == _GRAPH})
    if name not in {*names, *(known.partition("@")[0] for known in names)}:
        raise UserError(f"stage {name!r} is unknown", f"use one of: {', '.join(names)}")


def current_lock(root: Path) -> dict[str, Any]:
    """The locked stages that dvc.yaml still has; `ArtifactError` if one of them would run again, for whatever reason."""
    with _repo(root) as repo:
        stages = [stage for stage in repo.index.stages if stage.path_in_repo == _GRAPH and not stage.frozen]
        names = {stage.addressing: stage.addressing.rpartition(":")[2] for stage in stages}
        changed = {names[key]: found for key, found in repo.status().items() if key in names}
    if changed:
        stage, found = next(iter(changed.items()))
        raise ArtifactError(f"stage {stage} would run again ({_reason(found)})", "evaluate what is there: dvc repro")
    locked = read_lock(root / LOCK)
    return {name: locked[name] for name in locked if name in names.values()}


def written(stages: Mapping[str, Any]) -> dict[str, str]:
    """The MD5 of every output in the lock, by path."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}


def check_written(root: Path, paths: Sequence[Path]) -> None:
    """`ArtifactError` for the first output, a path in `root`, that is not what its stage wrote, byte by byte, as dvc.lock says."""
    outs = written(read_lock(root / LOCK))
    for path in paths:
        if not (root / path).exists() or outs.get(path.as_posix()) != dvc_md5(root / path):
            said = f"{path} is not what its stage wrote (dvc.lock)"
            raise ArtifactError(said, f"restore it: dvc checkout, or git checkout {path}")


def dvc_md5(path: Path) -> str:
    """What dvc.lock says of a file or a folder that lies at `path`; a folder's ends with .dir."""
    if not path.is_dir():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = [{"md5": dvc_md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    text = json.dumps(sorted(listed, key=lambda file: file["relpath"]), sort_keys=True)
    return f"{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}.dir"


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException, NotDvcRepoError  # noqa: PLC0415 - slow to import
    from dvc.lock import LockError  # noqa: PLC0415
    from dvc.repo import Repo  # noqa: PLC0415
    from dvc.scm import SCMError  # noqa: PLC0415

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo(str(root)) as repo:
            yield repo
    except NotDvcRepoError as error:
        raise UserError(f"{root} is no dvc project", "run from the root of the project") from error
    except LockError as error:
        raise StageError(f"dvc is at work in {root}", "wait until it ends") from error
    except DvcException as error:
        if isinstance(error, SCMError) and "is not a git repository" in str(error):  # NoSCMError is for other moments
            raise UserError(f"{root.resolve()} is in no git repository", "make it one: git init") from error
        raise ArtifactError(f"dvc cannot read {root} ({str(error).partition(chr(10))[0]})", "mend dvc.yaml") from error


def _reason(found: object) -> str:
    """The first thing that dvc says has changed, such as params.yaml: guidance."""
    for entry in found if isinstance(found, list) else ():
        if isinstance(entry, str):
            return entry
        for kind, changes in entry.items():
            for name, change in changes.items() if isinstance(changes, dict) else ():
                detail = next(iter(change)) if isinstance(change, dict) and change else change
                return f"{kind}: {name} {detail}"
            return str(kind)
    return "it changed"
