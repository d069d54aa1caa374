"""The model registry: versions of the model `expunge`, each a release, and the aliases that name some of them.

MLflow keeps bytes, metrics and aliases. The ledger keeps the history, from which the aliases follow. A version's artifacts
are the files of its release, which travel through the tracking server, whose business it is where they lie.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from components.common.errors import ArtifactError, StageError, UserError
from components.common.files import SIDECAR, digest, new_folder
from components.common.paths import SAE
from components.ledger.releases import ALIASES
from components.registry.binding import ADAPTERS
from components.registry.describe import (
    as_metrics,
    as_params,
    attack_metrics,
    attack_tags,
    datasets,
    describe,
    flat_params,
    flatten,
    read_curves,
)
from components.registry.release import RELEASE, Release, read_release
from components.registry.source import processor
from components.registry.tracking import asking, code_of, is_server, never_used, shown_uri, tracking_uri

MODEL = "expunge"
FOLDER = "release"
"""Where a run keeps the release."""
_TREE = "expunge.tree"
_BATCH = 1000  # metrics that MLflow takes at once


class Version(NamedTuple):
    """One registered version, as MLflow has it."""

    version: int
    digest: str
    """Of its release; empty for a version that is none."""
    verdict: str
    """`pass` or `fail`."""
    size: str
    """Size of the evaluation, such as quick or full."""
    run_id: str
    aliases: tuple[str, ...] = ()
    content: str = ""
    """Digest of what its release ships; empty for a version from before it was noted."""


class Registry:
    """The registry of one project: MLFLOW_TRACKING_URI, or a SQLite file in the project's root.

    Every method raises `UserError` for what does not exist and `StageError` for a server that cannot be used, with its URL.
    """

    def __init__(self, root: Path = Path()) -> None:
        """Opens the registry; nothing is asked of a server yet."""
        self.root, self.uri = root, tracking_uri(root)

    def versions(self) -> list[Version]:
        """All versions, the newest last; none if nothing was ever registered."""
        if never_used(self.uri):
            return []
        with asking(self.uri) as client:
            return _versions(client)

    def version(self, which: int | str) -> Version:
        """The version of that number, alias (`champion` or `@champion`) or URI (`models:/expunge@champion`, `models:/expunge/3`)."""
        wanted, known = parse_reference(which), self.versions()
        for found in known:
            if wanted == found.version or wanted in found.aliases:
                return found
        names = [*(name for found in known for name in found.aliases), *(str(found.version) for found in known)]
        raise UserError(
            f"the model {MODEL} has no version {wanted if isinstance(wanted, int) else f'@{wanted}'}",
            f"use one of: {', '.join(names)}" if names else "register one: expunge retrain",
        )

    def aliases(self) -> dict[str, int]:
        """The aliases and the versions that they name."""
        if never_used(self.uri):
            return {}
        with asking(self.uri) as client:
            return _aliases(client)

    def set_aliases(self, wanted: Mapping[str, int]) -> None:
        """Makes `wanted` the aliases candidate, champion and previous; one of these that `wanted` lacks is deleted."""
        with asking(self.uri) as client:
            now = _aliases(client)
            for name in ALIASES:
                if name in wanted and wanted[name] != now.get(name):
                    client.set_registered_model_alias(MODEL, name, str(wanted[name]))
                elif name in now and name not in wanted:
                    client.delete_registered_model_alias(MODEL, name)

    def fetch(self, which: int | str, out: Path) -> Release:
        """Downloads a version's release through the tracking server, checks every byte, and moves it to `out` in one step.

        A folder `out` that holds this release already is read and left; `UserError` for one that holds anything else.
        """
        found = self.version(which)
        if not found.digest:
            raise ArtifactError(f"version {found.version} holds no release", "register one: expunge retrain")
        if out.is_dir() and any(out.iterdir()):
            if (out / RELEASE).is_file() and digest(out / RELEASE) == found.digest:
                return read_release(out)
            raise UserError(f"{out} is not empty", "name a new folder")
        with new_folder(out) as partial:
            with asking(self.uri) as client:
                client.download_artifacts(found.run_id, FOLDER, str(partial))
            if not (partial / FOLDER / RELEASE).is_file():
                raise ArtifactError(
                    f"the files of version {found.version} are gone", "restore the registry's artifacts"
                )
            for child in (partial / FOLDER).iterdir():
                child.rename(partial / child.name)
            (partial / FOLDER).rmdir()
            release = read_release(partial)
            if release.digest != found.digest:
                raise ArtifactError(
                    f"version {found.version} has digest {release.digest[:12]}, not {found.digest[:12]} as it was registered",
                    "it was altered: restore the registry's artifacts",
                )
        return release._replace(folder=out)

    def register(
        self, release: Release, tags: Mapping[str, str] | None = None, *, last_look: Callable[[], None] = lambda: None
    ) -> Version:
        """Logs a run and makes a version of it; a release that ships what a version ships already gets no second one.

        `last_look` is called when all is logged, right before the version is made; if it raises, there is none.
        Runs of this tree that a killed registration left running are ended.
        """
        with asking(self.uri) as client:
            experiment = self._experiment(client)
            versions, content = _versions(client), release.content
            known = [found for found in versions if found.content == content or found.digest == release.digest]
            for run in self._running(client, experiment):
                done = known and run.info.run_id == known[0].run_id
                client.set_terminated(run.info.run_id, "FINISHED" if done else "KILLED")
            if known:
                return known[0]
            run = client.create_run(
                experiment, tags=self._tags(release) | dict(tags or {}), run_name=release.digest[:12]
            )
            try:
                return self._log(client, run, release, last_look)
            except BaseException as error:
                with suppress(Exception):  # what ended it is told, not that the server is gone as well
                    client.set_terminated(run.info.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
                raise

    def _log(self, client: MlflowClient, run: Run, release: Release, last_look: Callable[[], None]) -> Version:
        """Everything that MLflow shows of a release, and the version last, so that none is ever incomplete."""
        run_id, metrics = run.info.run_id, release.metrics
        params = flat_params(release.params)
        client.log_batch(run_id, params=as_params(params))
        _log_metrics(client, run_id, as_metrics(flatten(metrics["requests"]) | attack_metrics(release)))
        _log_metrics(client, run_id, read_curves(self.root / SAE, "sae/"))
        client.log_inputs(run_id, datasets(release))
        client.log_artifacts(run_id, str(release.folder), FOLDER)
        guidance = {key: value for key, value in params.items() if key.startswith("guidance.")}
        for folder in sorted((release.folder / ADAPTERS).glob("*/")):
            tags = {"mlflow.parentRunId": run_id, "request": folder.name, "sha256": digest(folder / SIDECAR)}
            child = client.create_run(
                run.info.experiment_id, tags=self._tree() | tags, run_name=folder.name
            ).info.run_id
            client.log_batch(child, params=as_params(guidance))
            _log_metrics(client, child, as_metrics(flatten(metrics["requests"].get(folder.name, {}))))
            _log_metrics(client, child, read_curves(folder))
            client.set_terminated(child, "FINISHED")
        with _expecting("RESOURCE_ALREADY_EXISTS"):
            client.create_registered_model(MODEL)
        said, source, content = "pass" if release.passed else "fail", release.record["source"], release.content
        last_look()
        version = client.create_model_version(
            MODEL,
            source=f"runs:/{run_id}/{FOLDER}",
            run_id=run_id,
            tags={
                "digest": release.digest,
                "content": content,
                "verdict": said,
                "size": metrics["size"],
                "git.commit": source["commit"] or "unknown",
                "git.dirty": str(source["dirty"]).lower(),
                "requests": ",".join(metrics["targets"])[:5000],
            }
            | attack_tags(release),
            description=describe(release),
            await_creation_for=0,
        )
        client.set_terminated(run_id, "FINISHED")
        return Version(int(version.version), release.digest, said, metrics["size"], run_id, content=content)

    def _tags(self, release: Release) -> dict[str, str]:
        source = release.record["source"]
        return (
            self._tree()
            | attack_tags(release)
            | {
                "digest": release.digest,
                "verdict": "pass" if release.passed else "fail",
                "size": release.metrics["size"],
                "git.commit": source["commit"] or "unknown",
                "git.dirty": str(source["dirty"]).lower(),
                "processor": processor(),
                "mlflow.note.content": describe(release),
            }
        )

    def _tree(self) -> dict[str, str]:
        """Names this machine and folder without saying where they are."""
        named = f"{platform.node()}:{self.root.resolve()}"
        return {_TREE: hashlib.sha256(named.encode()).hexdigest()[:16]}

    def _running(self, client: MlflowClient, experiment: str) -> list[Run]:
        tree = self._tree()[_TREE]
        return list(client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.`{_TREE}` = '{tree}'"))

    def _experiment(self, client: MlflowClient) -> str:
        """The id of the experiment, which is made if there is none."""
        found, server = client.get_experiment_by_name(MODEL), is_server(self.uri)
        if found is None:
            location = None if server else (self.root / "mlruns").resolve().as_uri()
            found = client.get_experiment(client.create_experiment(MODEL, artifact_location=location))
        if found.lifecycle_stage != "active":
            raise StageError(
                f"the experiment {MODEL} at {shown_uri(self.uri)} was deleted",
                f"restore it: mlflow experiments restore --experiment-id {found.experiment_id}",
            )
        if server and re.match(r"(file:|/|\.)", found.artifact_location):
            raise StageError(
                f"the server at {shown_uri(self.uri)} has artifacts written to {found.artifact_location}, a folder of its own",
                "start it with --artifacts-destination and delete that experiment",
            )
        return str(found.experiment_id)


def parse_reference(which: int | str) -> int | str:
    """A number as it is, `@champion`, `champion` and `models:/expunge@champion` as an alias; `UserError` for another model."""
    text = str(which).strip()
    if text.startswith("models:/"):
        found = re.fullmatch(r"models:/([^/@]+)(?:@([\w.-]+)|/(\d+))", text)
        if found is None:
            raise UserError(f"{text!r} names no version", f"write models:/{MODEL}@champion or models:/{MODEL}/3")
        if found[1] != MODEL:
            raise UserError(f"{text!r} is a version of another model", f"write models:/{MODEL}@champion")
        text = found[2] or found[3]
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    alias = text.removeprefix("@")
    if not re.fullmatch(r"[A-Za-z][\w-]*", alias):
        raise UserError(f"{text[:60]!r} names no version", "write a number or an alias, such as 3 or @champion")
    return alias


def _versions(client: MlflowClient) -> list[Version]:
    names: dict[int, list[str]] = {}
    for alias, version in _aliases(client).items():
        names.setdefault(version, []).append(alias)
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name = '{MODEL}'", max_results=1000, page_token=token)
        for item in page:
            number, tags = int(item.version), item.tags
            aliases = tuple(sorted(names.get(number, ())))
            found.append(
                Version(
                    number,
                    tags.get("digest", ""),
                    tags.get("verdict", ""),
                    tags.get("size", ""),
                    item.run_id or "",
                    aliases,
                    tags.get("content", ""),
                )
            )
        token = page.token
        if not token:
            return sorted(found)


def _aliases(client: MlflowClient) -> dict[str, int]:
    with _expecting("RESOURCE_DOES_NOT_EXIST"):
        return {name: int(version) for name, version in client.get_registered_model(MODEL).aliases.items()}
    return {}


def _log_metrics(client: MlflowClient, run_id: str, metrics: Iterable[Metric]) -> None:
    listed = list(metrics)
    for start in range(0, len(listed), _BATCH):
        client.log_batch(run_id, metrics=listed[start : start + _BATCH])


@contextmanager
def _expecting(code: str) -> Iterator[None]:
    """Goes on after MLflow's error of that code."""
    try:
        yield
    except MlflowException as error:
        if code_of(error) != code:
            raise
