"""A place to try the deployment in: services of its own, a project of its own, and what the trials ask of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from components.common.errors import StageError
from components.common.files import digest
from deploy import processes
from deploy.place import POOL, Place
from deploy.services import services

ROOT = Path(__file__).parents[1]
OUTPUTS = ("data", "models", "reports/evaluate", "reports/attacks")
LONG = 3600.0
Found = TypeVar("Found")


class Site:
    """Services under `folder/services`, working in `folder/project`."""

    def __init__(self, folder: Path) -> None:
        """Sets this process's environment to that of the services' clients, before Prefect and MLflow are imported."""
        self.folder = folder.resolve()
        self.project = self.folder / "project"
        self.place = Place(self.folder / "services")
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.environ.update(self.place.client() | {"PYTHONPATH": path, "PATH": programs})
        self.services = services(self.place, self.project)

    def up(self) -> None:
        """Starts what does not run."""
        processes.up(self.place, self.services)

    def down(self) -> None:
        """Ends everything."""
        processes.down(self.place, self.services)

    def run(self, *command: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
        """Output of a command in the project; `StageError` with its end if it fails."""
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd or self.project, env=os.environ | (environment or {}), text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise StageError(f"{' '.join(map(str, command))} ended with {done.returncode}", done.stderr.strip()[-1000:])
        return done.stdout

    def expunge(self, *arguments: str | Path) -> str:
        """Output of the command line."""
        return self.run(sys.executable, "-m", "expunge", *arguments)

    def start(self, flow: str, **parameters: object) -> str:
        """Starts a run of a flow's deployment and returns its id."""
        from prefect.deployments import run_deployment  # noqa: PLC0415 - after the environment is set

        run: Any = run_deployment(f"{flow}/{POOL}", parameters=parameters, timeout=0, as_subflow=False)
        return str(run.id)

    def state(self, run: str) -> str:
        """State of a flow run, such as RUNNING; empty while the server does not answer."""
        with client() as prefect:
            try:
                found = prefect.read_flow_run(run)
            except Exception:  # noqa: BLE001 - whatever a server that was killed answers
                return ""
        return found.state_type.value if found.state_type else ""

    def finish(self, run: str, seconds: float = LONG) -> str:
        """Waits until a flow run has ended and returns its last state."""
        ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return wait(lambda: state if (state := self.state(run)) in ended else "", seconds, f"flow run {run} to end")

    def runs(self, flow: str) -> dict[str, str]:
        """State of every run of a flow that is not to come, by id."""
        from prefect.client.schemas.filters import FlowFilter  # noqa: PLC0415

        with client() as prefect:
            found = prefect.read_flow_runs(flow_filter=FlowFilter.model_validate({"name": {"any_": [flow]}}), limit=200)
        return {str(run.id): run.state_type.value for run in found if run.state_type and run.state_name != "Scheduled"}

    def versions(self) -> dict[int, str]:
        """Release digest of every registered version."""
        from components.registry.registry import Registry  # noqa: PLC0415

        return {one.version: one.digest for one in Registry(self.project).versions()}

    def flow_processes(self, run: str) -> list[psutil.Process]:
        """Processes that work on a flow run, the eldest first."""
        found = []
        for process in processes.marked(self.place):
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.create_time())

    def leftovers(self) -> list[str]:
        """Commands of processes that belong to no service and to no flow run that goes on."""
        owned: set[int] = set()
        for service in self.services:
            if own := processes.running(self.place, service.name):
                owned |= {own.pid, *(child.pid for child in processes.children(own))}
        return [" ".join(p.cmdline())[:200] for p in processes.marked(self.place) if p.pid not in owned]

    def bytes(self, folder: Path | None = None) -> dict[str, str]:
        """SHA-256 of every output of the stages."""
        root = folder or self.project
        return {name: digest(root / name) for name in OUTPUTS if (root / name).is_dir()}

    def bytes_of(self, folder: Path) -> dict[str, str]:
        """SHA-256 of every file in a folder."""
        return {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}

    def edit_params(self, changes: Mapping[str, Mapping[str, Any]], folder: Path | None = None) -> None:
        """Changes keys of params.yaml."""
        path = (folder or self.project) / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, keys in changes.items():
            content[section] |= keys
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


@contextmanager
def client() -> Iterator[Any]:
    """Prefect's client."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - after the environment is set

    with get_client(sync_client=True) as found:
        yield found


def wait(look: Callable[[], Found], seconds: float, what: str, every: float = 0.5) -> Found:
    """What `look` returns once that is true; `StageError` after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise StageError(f"waited {seconds:.0f} s for {what}", "look at the services' logs")
        time.sleep(every)
    return found


def same(found: Mapping[str, str], wanted: Mapping[str, str]) -> Sequence[str]:
    """Names whose digests differ."""
    return [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
