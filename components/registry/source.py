"""What a release was made with: the commit, what differs from it, and the packages."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from components.common.files import digest
from components.evaluate.evidence import digest_of
from components.registry.lock import written

PACKAGES = (
    "accelerate", "datasets", "diffusers", "dvc", "huggingface-hub", "matplotlib", "numpy", "onnx", "onnxruntime-gpu",
    "onnxscript", "pandas", "peft", "pillow", "pyarrow", "safetensors", "scikit-image",
    "scikit-learn", "scipy", "tokenizers", "torch", "transformers", "wonderwords",
)  # fmt: skip
"""Packages whose version can change what a stage writes."""
_BESIDE = ("dvc.yaml", "constraints.txt")


class Source(NamedTuple):
    """The code and inputs of a release."""

    commit: str | None
    """HEAD; None where git cannot say."""
    patch: dict[str, str | None]
    """Files that stages read and that differ from the commit: SHA-256 by path, None for one that was deleted."""

    @property
    def dirty(self) -> bool:
        """Whether the commit alone cannot rebuild the release."""
        return self.commit is None or bool(self.patch)

    def record(self) -> dict[str, Any]:
        """The form of release.json: the patch by its digest, None without one."""
        return {"commit": self.commit, "dirty": self.dirty, "patch": digest_of(self.patch) if self.patch else None}


def read_source(root: Path, stages: Mapping[str, Any]) -> Source:
    """The commit in `root` and what differs from it among the files that the locked stages read.

    What a release carries itself (params.yaml, requests.yaml, dvc.lock, outputs) is no difference.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return Source(None, {})
    made = written(stages)
    read = {dep["path"] for stage in stages.values() for dep in stage.get("deps", ())}
    paths = sorted(path for path in {*read, *_BESIDE} if path not in made and _inside(path))
    changed = _git(root, "diff", "--name-only", "--relative", "-z", "HEAD", "--", *paths)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *paths)
    if changed is None or new is None:
        return Source(None, {})
    names = sorted({*changed.split("\0"), *new.split("\0")} - {""})
    return Source(commit.strip(), {name: digest(root / name) if (root / name).is_file() else None for name in names})


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that stages compute with, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The machine's processor, on which the last bits of a sum depend."""
    with suppress(OSError):
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if names:
            return str(names[0])
    return platform.machine()


def world_digest(stages: Mapping[str, Any]) -> str:
    """Digest of the world's files, by the MD5 in the lock; of nothing where no stage reads a world."""
    files = {
        dep["path"]: dep["md5"]
        for stage in stages.values()
        for dep in stage.get("deps", ())
        if Path(dep["path"]).name in ("world.yaml", "templates.yaml")
    }
    return digest_of(files)


def _inside(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git or it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
