"""The release: one folder with everything that serving, promoting and rebuilding what was evaluated takes.

    filter/  adapters/<request>/  onnx/  report/     bytes of what was evaluated, and the evaluation
    requests.yaml  params.yaml  dvc.lock             what they were made from: targets, sections that stages read, digests
    release.json                                     SHA-256 of every other file; base, world, judge, commit, packages

It is deterministic: the same working tree gives the same bytes, and the SHA-256 of release.json names all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from components.common.sections import read_section, read_yaml
from components.evaluate.summary import METRICS, VERDICT
from components.requests.requests import REQUESTS, Request, load_requests

RELEASE = "release.json"
FORMAT = "expunge/release"
FILTER, ADAPTERS, ONNX, REPORT = "filter", "adapters", "onnx", "report"


class Release(NamedTuple):
    """A release on disk whose every byte was checked."""

    folder: Path
    digest: str
    """SHA-256 of release.json, which names the SHA-256 of every other file."""
    record: dict[str, Any]
    """The content of release.json."""

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
        return self.folder / "params.yaml"

    @property
    def passed(self) -> bool:
        """Whether the verdict is pass."""
        return bool(self.verdict["passed"])


def build_release(root: Path, out: Path) -> Release:
    """Builds the release of the working tree in `root` into the folder `out`, and reads it back.

    `ArtifactError` or `UserError` unless everything in it is what was evaluated (components/registry/binding.py).
    """
    raise NotImplementedError


def read_release(folder: Path) -> Release:
    """The release in `folder`; `ArtifactError` for a byte, a file too many or too few, or a format that is not as release.json says."""
    raise NotImplementedError
