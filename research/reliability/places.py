"""Runs commands where files, account, locale or tools are not what one expects: each works, or refuses in one sentence.

Every place has two projects: one whose stages take no time (tests/toyproject.py) on the base that ships, and a copy of this
repository's artifacts. What needs a mount is made in a mount namespace of the command's own, for which this program must be root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import yaml
from PIL import Image
from tqdm import tqdm

from components.common.errors import ExpungeError
from components.common.files import digest
from components.requests.requests import load_requests
from research.reliability import altered, toy
from research.reliability.projects import write_product
from research.reliability.show import share
from research.show import Row

ROOT = Path(__file__).parents[2]
OUT = "image.png"
SECONDS = 600.0
"""What a command may take; on an idle processor none takes a tenth of it."""
TOY: dict[str, tuple[str, ...]] = {
    "help": ("--help",),
    "check": ("check",),
    "request list": ("request", "list"),
    "release list": ("release", "list"),
    "retrain": ("retrain",),
    "request add": ("request", "add", "cat", "--alias", "Kätzchen", "--channel", "filter"),
    "request remove": ("request", "remove", "r-1"),
    "run concepts": ("run", "concepts"),
}
"""Commands in the toy project, in this order."""
EMBEDDED: dict[str, tuple[str, ...]] = {
    "generate": ("generate", "a cat on a hill", "--output", OUT),
    "explain": ("explain", "a cat on a hill"),
    "verdict": ("verdict",),
}
"""Commands on the artifacts of this repository."""
WRITES = frozenset({"check", "retrain", "request add", "request remove", "run concepts", "generate"})
"""Commands that cannot work where nothing can be written; `check` says so."""
WATCHED = ("requests.yaml", "dvc.lock", "models", "data", "reports")
"""What a command that refuses leaves as it was."""
CODES = {"verdict": (0, 1)}
"""Exit codes of a command that works, if not 0 alone."""
REFUSALS = (2, 3, 4)
NOBODY = 65534

_RUN = 'cd "$PLACE" && exec "$@"'
_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && ' + _RUN
_AS_NOBODY = """
if [ "$1" != / ]; then  # the folder that closes the way to the interpreter
    mkdir -p "$2" && mount --bind "$3" "$2" && mount -t tmpfs -o mode=755 none "$1" && mkdir -p "$3" && mount --move "$2" "$3"
fi && shift 3 && cd "$PLACE" && exec setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all "$@"
"""


class Place(NamedTuple):
    """Where commands run."""

    name: str
    refused: frozenset[str] = frozenset()
    """Commands that must refuse; every other one must work."""
    environment: Mapping[str, str | None] = {}
    """Variables that are set, or not set."""
    script: str = _RUN
    """What runs a command, for sh: the command follows `arguments`."""
    arguments: tuple[str, ...] = ()
    """Of the script; {project}, {home} and {work} name folders."""
    namespace: bool = False
    """Whether the script mounts something, for itself alone."""
    owner: int = 0
    folder: str = "project"
    below: str = ""
    """The working directory, in the project."""
    umask: int = 0o022
    full: bool = False
    autocrlf: bool = False


def places(work: Path) -> list[Place]:
    """All places; `work` is a folder for what they share."""
    interpreter = sys.base_prefix
    nobody = (str(_closed(Path(interpreter))), "{work}/interpreter", interpreter)
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": None, "PYTHONUTF8": None}
    homeless = {"HOME": None, "XDG_STATE_HOME": None, "USER": None, "LOGNAME": None}
    everything = frozenset({*TOY, *EMBEDDED} - {"help"})
    return [
        Place("read-only project", WRITES, script=_READ_ONLY, arguments=("{project}",), namespace=True),
        Place("read-only HOME", script=_READ_ONLY, arguments=("{home}",), namespace=True),
        Place("full disk (tmpfs)", WRITES, full=True),
        Place("no HOME", environment=homeless),
        Place("HOME that does not exist", environment={"HOME": "/nonexistent"}),
        Place("no terminal", script='cd "$PLACE" && exec setsid --wait "$@"', environment={"TERM": None, "COLUMNS": None}),
        Place("standard input closed", script=f"{_RUN} <&-"),
        Place("LANG=C", environment=plain),
        Place("nobody in a project of nobody's", script=_AS_NOBODY, arguments=nobody, namespace=True, owner=NOBODY),
        Place("nobody in a project of root's", WRITES, script=_AS_NOBODY, arguments=nobody, namespace=True),
        Place("no git", frozenset({"check", "retrain"}), environment={"PATH": str(_without_git(work / "bin"))}),
        Place("spaces and letters in the path", folder="ein Projekt für 猫 'n'"),
        Place("another working directory", everything, below="data"),
        Place("umask 077", script=f"umask 077; {_RUN}", umask=0o077),
        Place("umask 022", script=f"umask 022; {_RUN}"),
        Place("clone with core.autocrlf", autocrlf=True),
    ]  # fmt: skip


def _closed(path: Path) -> Path:
    """The first folder on the way to `path` that other accounts may not enter; the root if there is none."""
    return next((p for p in reversed(path.parents) if not p.stat().st_mode & stat.S_IXOTH), Path("/"))


def _without_git(folder: Path) -> Path:
    """A folder of links to every program that the system has, but git."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for source in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
            for program in Path(source).glob("*"):
                if not program.name.startswith("git") and not (folder / program.name).exists():
                    (folder / program.name).symlink_to(program)
    return folder


def template(folder: Path) -> None:
    """The toy project as its stages leave it, with one of them to run again, and the embedded one."""
    project = write_product(folder / "toy")
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    params["export"]["prompts"] = params["export"]["prompts"] + 1
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    for command in (["add", "--all"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "next"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    (folder / "embedded").mkdir()
    altered.project(folder / "embedded")


class Ended(NamedTuple):
    """What a command did."""

    code: int
    said: str
    """All that it printed."""

    def fault(self, name: str, *, refuses: bool) -> str:
        """What is wrong, or nothing."""
        lines = [line for line in self.said.splitlines() if line.startswith("expunge: ")]
        if "Traceback (most recent call last)" in self.said:
            return "traceback"
        if refuses and (self.code not in REFUSALS or not lines):
            return "did not refuse in one sentence"
        if not refuses and self.code not in CODES.get(name, (0,)):
            return "did not work"
        return ""


def _ends(place: Place, folder: Path, home: Path, work: Path, arguments: Sequence[str]) -> Ended:
    named = {"project": str(folder), "home": str(home), "work": str(work)}
    given = [argument.format(**named) for argument in place.arguments]
    environment = toy.environment(EXPUNGE_TOY_SECONDS="0", HOME=str(home), PLACE=str(folder / place.below))
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "EXPUNGE_LEDGER_URL"):
        environment.pop(name, None)
    for name, value in place.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = f"{Path(sys.executable).parent}{os.pathsep}{value}" if name == "PATH" else value
    command = [*(("unshare", "--mount") if place.namespace else ()), "sh", "-c", place.script, "sh", *given]
    child = subprocess.Popen(
        [*command, sys.executable, "-m", "expunge", *arguments], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        said, code = child.communicate(timeout=SECONDS)[0], child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, code = child.communicate()[0], -1
    return Ended(code, said.decode(errors="replace"))


def _state(folder: Path) -> dict[str, str]:
    """Digests of what a command that refuses leaves alone."""
    found = {}
    for name in WATCHED:
        with suppress(ExpungeError):
            found[name] = digest(folder / name)
    return found


def broken(folder: Path) -> list[str]:
    """Files that are half of something."""
    found = [str(p.relative_to(folder)) for p in folder.rglob(".*.partial")]
    try:
        load_requests(folder / "requests.yaml")
        yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    except (ExpungeError, yaml.YAMLError) as error:
        found.append(str(error))
    image = folder / OUT
    if image.exists():
        try:
            Image.open(image).load()
        except (OSError, SyntaxError):
            found.append(OUT)
    return found


def _modes(folder: Path) -> dict[Path, int]:
    hidden = {".git", "tmp", "cache"}
    files = (p for p in folder.rglob("*") if p.is_file() and not hidden & {*p.relative_to(folder).parts})
    return {path: stat.S_IMODE(path.stat().st_mode) for path in files}


@contextmanager
def _project(place: Place, source: Path, folder: Path) -> Iterator[None]:
    """A copy of a project, on a disk of its own without a free byte if the place has one."""
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    folder.mkdir(parents=True)
    if place.full:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * size + 2**25}", "none", str(folder)], check=True)
    try:
        if place.autocrlf and source.name == "embedded":
            clone = ["git", "clone", "--quiet", "-c", "core.autocrlf=true", "--no-checkout", str(ROOT), str(folder)]
            subprocess.run(clone, check=True)
            names = ("assets", "components", "requests.yaml", "params.yaml", "dvc.yaml", "dvc.lock", "reports/evaluate", "reports/attacks", ".gitattributes")  # fmt: skip
            subprocess.run(["git", "checkout", "--quiet", "HEAD", "--", *names], cwd=folder, check=True)
            for name in ("models", "data"):
                shutil.copytree(source / name, folder / name)
        else:
            subprocess.run(["cp", "--archive", f"{source}/.", str(folder)], check=True)
        if place.owner:
            subprocess.run(["chown", "--recursive", f"{place.owner}:{place.owner}", str(folder)], check=True)
        if place.full:
            with suppress(OSError), (folder / "models" / ".filler").open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * 4096)
        yield
    finally:
        if place.full:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)


def measure_places(command: str, named: Callable[[str], bool] = lambda _: True) -> list[Row]:
    """The rows of every command in every place whose name is wanted."""
    faults: Counter[str] = Counter()
    n = written = strange = 0
    with tempfile.TemporaryDirectory(prefix="places-") as name:
        work = Path(name)
        work.chmod(0o755)
        template(work / "template")
        for place in tqdm([place for place in places(work) if named(place.name)]):
            for kind, commands in (("toy", TOY), ("embedded", EMBEDDED)):
                home, folder = work / "home", work / kind / place.folder
                home.mkdir(exist_ok=True)
                os.chown(home, place.owner, place.owner)
                with _project(place, work / "template" / kind, folder):
                    modes = _modes(folder)
                    for what, arguments in commands.items():
                        refuses, before = what in place.refused, _state(folder)
                        ended = _ends(place, folder, home, work, arguments)
                        n += 1
                        found = [ended.fault(what, refuses=refuses), *(f"half-written: {b}" for b in broken(folder))]
                        if ended.code in REFUSALS and _state(folder) != before:
                            found.append("half-written: what it leaves is not what was there")
                        for fault in filter(None, found):
                            faults[fault.partition(":")[0]] += 1
                            tqdm.write(f"{place.name}, {what}: {fault} ({ended.code})\n{ended.said[-1500:]}")
                        if refuses and not found[0]:
                            said = [line for line in ended.said.splitlines() if line.startswith("expunge: ")]
                            tqdm.write(f"{place.name}, {what}: {json.dumps(said, ensure_ascii=False)}")
                    new = {path: mode for path, mode in _modes(folder).items() if path not in modes}
                    wrong = {p: m for p, m in new.items() if m & ~stat.S_IXUSR & 0o666 != 0o666 & ~place.umask}
                    for path, mode in wrong.items():
                        tqdm.write(f"{place.name}: {path.relative_to(folder)} has mode {mode:o}")
                    written, strange = written + len(new), strange + len(wrong)
                shutil.rmtree(home)
    unlike = faults["did not work"] + faults["did not refuse in one sentence"]
    return [
        share("places: commands that neither worked nor refused in one sentence, as each should", unlike, n, command),
        share("places: tracebacks", faults["traceback"], n, command),
        share("places: commands that left something half-written", faults["half-written"], n, command),
        share("places: new files whose mode is not what umask says", strange, written, command),
    ]
