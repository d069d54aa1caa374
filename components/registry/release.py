"""The release: one folder with everything that serving, promoting and rebuilding what was evaluated takes.

    filter/  adapters/<request>/  onnx/              bytes of what was evaluated and attacked
    report/  report/attacks/                         the evaluation, and the attacks
    requests.yaml  params.yaml  dvc.lock             what they were made from: targets, sections that stages read, digests
    release.json                                     SHA-256 of every other file; base, world, judge, commit, packages

It is deterministic: the same working tree gives the same bytes, and the SHA-256 of release.json names all of them. Two releases with the
same `content` ship the same bytes, whatever the commit they were built at.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from components.common.errors import ArtifactError
from components.common.files import canonical, digest, new_folder
from components.common.sections import PARAMS, read_yaml
from components.evaluate.attacks.summary import read_attacks
from components.evaluate.evidence import digest_of
from components.evaluate.summary import METRICS, VERDICT
from components.registry import attacked
from components.registry.binding import REPORT, check_bound, check_tree, places
from components.registry.lock import LOCK, current_lock, dump_yaml, written
from components.registry.source import packages, read_source, world_digest
from components.requests.requests import REQUESTS, Request, load_requests

RELEASE = "release.json"
FORMAT = "expunge/release"
VERSION = 1
_REMEDY = "fetch it again: expunge pull VERSION DIR"


class Release(NamedTuple):
    """A release on disk whose every byte was checked."""

    folder: Path
    digest: str
    """SHA-256 of release.json, which names the SHA-256 of every other file."""
    record: dict[str, Any]
    """The content of release.json."""

    @property
    def content(self) -> str:
        """Digest of what it ships, and of whether a commit holds its code; equal where a commit changed documents alone."""
        shipped = {name: value for name, value in self.record.items() if name not in ("source", "packages")}
        return digest_of(shipped | {"dirty": self.record.get("source", {}).get("dirty")})

    @property
    def verdict(self) -> dict[str, Any]:
        """The content of verdict.json: passed, gates, judged."""
        return json.loads((self.folder / REPORT / VERDICT).read_text(encoding="utf-8"))

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: size, targets, requests (metric records by scope and variant)."""
        return json.loads((self.folder / REPORT / METRICS).read_text(encoding="utf-8"))

    @property
    def requests(self) -> dict[str, Request]:
        """What is erased, by request id."""
        return load_requests(self.folder / REQUESTS)

    @property
    def params(self) -> dict[str, Any]:
        """The sections of params.yaml that stages read, as plain values; `read_section(name, kind, self.params_file)` checks one."""
        return read_yaml(self.params_file)

    @property
    def params_file(self) -> Path:
        """Its params.yaml."""
        return self.folder / PARAMS

    @property
    def attacks(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The contents of results.json and verdict.json of the attacks; None for a release from before there were any."""
        folder = self.folder / attacked.REPORT
        return read_attacks(folder) if folder.is_dir() else None

    @property
    def attack_size(self) -> str:
        """Size of the attacks, such as quick or full; empty without attacks."""
        return self.attacks[0]["size"] if self.attacks else ""

    @property
    def passed(self) -> bool:
        """Whether both verdicts are pass, that of the evaluation and that of the attacks; no attacks are no pass."""
        return bool(self.verdict["passed"] and self.attacks and self.attacks[1]["passed"])


def build_release(root: Path, out: Path) -> Release:
    """Builds the release of the working tree in `root` into the folder `out`, which it replaces, and reads it back.

    `ArtifactError`, `UserError` or `StageError`, and no folder, unless everything in it is what was evaluated: what
    components/registry/binding.py checks, and no stage that would run again.
    """
    stages = current_lock(root)
    requests = load_requests(root / REQUESTS)
    with new_folder(out) as partial:
        for part, source in places(requests).items():
            paths = [path for path in written(stages) if path == source or path.startswith(f"{source}/")]
            if not paths:
                raise ArtifactError(f"dvc.lock does not say how {source} was made", "run the stages: dvc repro")
            for path in paths:
                _copy(root / path, partial / part / path[len(source) :].strip("/"))
        sections = {
            key.partition(".")[0] for stage in stages.values() for key in stage.get("params", {}).get(str(PARAMS), ())
        }
        params = {name: value for name, value in (read_yaml(root / PARAMS) or {}).items() if name in sections}
        content = {
            PARAMS: params,
            REQUESTS: read_yaml(root / REQUESTS) or {},
            LOCK: {"schema": "2.0", "stages": stages},
        }
        for name, value in content.items():
            (partial / name).write_text(dump_yaml(value), encoding="utf-8")
        check_bound(partial)
        check_tree(root, partial)
        judged = _read(partial / REPORT / VERDICT)["judged"]
        record = {
            "format": FORMAT,
            "version": VERSION,
            "base": {"digest": judged["base"], "path": params["base"]["path"]},
            "judge": judged["judge"],
            "world": {"name": params["world"], "digest": world_digest(stages)},
            "source": read_source(root, stages).record(),
            "packages": packages(),
            "files": {name: digest(partial / name) for name in _files(partial)},
        }
        (partial / RELEASE).write_text(canonical(record), encoding="utf-8")
        read_release(partial)
    return read_release(out)


def read_release(folder: Path) -> Release:
    """The release in `folder`; `ArtifactError` for a byte, a file too many or too few, or a format that is not as release.json says."""
    if not (folder / RELEASE).is_file():
        raise ArtifactError(f"{folder} is no release (it has no {RELEASE})", "fetch one: expunge pull VERSION DIR")
    record = _read(folder / RELEASE)
    named = record.get("format"), record.get("version")
    if named != (FORMAT, VERSION) or not isinstance(record.get("files"), dict):
        raise ArtifactError(
            f"{folder} has format {named[0]!r} version {named[1]!r}, not {FORMAT!r} version {VERSION}",
            "read it with the version of Expunge that wrote it",
        )
    files, found = record["files"], _files(folder)
    if other := sorted(set(files).symmetric_difference(found)):
        raise ArtifactError(
            f"{folder / other[0]} {'is missing' if other[0] in files else 'is not part of the release'}", _REMEDY
        )
    for name in found:
        if digest(folder / name) != files[name]:
            raise ArtifactError(f"{folder / name} was altered or cut short", _REMEDY)
    return Release(folder, digest(folder / RELEASE), record)


def _files(folder: Path) -> list[str]:
    """Names of all files but release.json, sorted; `ArtifactError` for anything that is neither a file nor a folder."""
    paths = sorted(folder.rglob("*"))
    if odd := [path for path in paths if path.is_symlink() or not (path.is_file() or path.is_dir())]:
        raise ArtifactError(f"{odd[0]} is neither a file nor a folder", _REMEDY)
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return [name for name in names if name != RELEASE]


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, target)
    except (FileNotFoundError, shutil.Error) as error:  # it vanished, before or meanwhile
        raise ArtifactError(f"{source} is missing", "run the stage that writes it: dvc repro") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or is not JSON", _REMEDY) from error
    return content if isinstance(content, dict) else {}
