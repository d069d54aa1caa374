"""Cancels flow runs that a worker started, as `prefect flow-run cancel` does, and looks at what is left and at what the next run makes of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import httpx
from tqdm import tqdm

from components.common.errors import StageError
from components.common.lock import check_free
from research.reliability import kills, toy
from research.reliability.projects import Toy
from research.reliability.show import largest, share
from research.show import Row

PREFECT = str(Path(sys.executable).with_name("prefect"))
POOL = "toy"
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
STATE_SECONDS = 60.0
"""Seconds that a last state is waited for, to say when it came: the worker loads the flow once more, for its hooks, before it writes CANCELLED. One that comes after `kills.SECONDS` is a fault."""
BUSY_SECONDS = 30.0
"""What one answer of the server, or the worker's own end, may take on a busy machine."""
DEPLOY = f"""
import sys
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.runner import EntrypointType
from research.reliability import toy_flow
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name={POOL!r}, type="process"))
made = toy_flow.flow.to_deployment(
    {POOL!r}, parameters={{"root": sys.argv[1]}}, work_pool_name={POOL!r}, job_variables={{"working_dir": sys.argv[1]}},
    entrypoint_type=EntrypointType.MODULE_PATH,
)
made.entrypoint = "research.reliability.toy_flow.flow"
print(made.apply())
"""


class Site(NamedTuple):
    """A project, a server and a worker."""

    project: Toy
    api: str
    deployment: str
    mark: str

    def start(self) -> str:
        """Starts a run and returns its id; a server whose database is busy answers 503 and is asked again."""
        path = f"deployments/{self.deployment}/create_flow_run"
        for _ in range(30):
            if (found := self._post(path, {})).status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return str(found.raise_for_status().json()["id"])
            time.sleep(1)
        raise StageError("the server's database stays busy", "look at the server's log")

    def state(self, run: str) -> str:
        """The state of a run, such as RUNNING."""
        found = httpx.get(f"{self.api}/flow_runs/{run}", timeout=BUSY_SECONDS)
        return str(found.raise_for_status().json()["state_type"])

    def wait_for_stage(self, run: str, stage: str) -> None:
        """Waits until a stage of the run has begun."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        for _ in range(600):
            logs = self._post("logs/filter", wanted).raise_for_status().json()
            if any(f"Running stage '{stage}'" in log["message"] for log in logs):
                return
            if self.state(run) in ENDED:
                raise StageError(f"{stage} did not begin", json.dumps(logs)[-1000:])
            time.sleep(0.2)
        raise StageError(f"{stage} did not begin in time", "look at the worker's log")

    def cancel(self, run: str) -> None:
        """Sends what `prefect flow-run cancel` sends."""
        self._post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": True}).raise_for_status()

    def finish(self, run: str, seconds: float = 360.0) -> str:
        """Waits for the end of a run, at most `seconds`; returns its state."""
        end = time.monotonic() + seconds
        while (found := self.state(run)) not in ENDED and time.monotonic() < end:
            time.sleep(0.2)
        return found

    def _post(self, path: str, content: object) -> httpx.Response:
        return httpx.post(f"{self.api}/{path}", json=content, timeout=BUSY_SECONDS)


def of_run(mark: str, run: str) -> list[int]:
    """The processes of a run."""
    wanted = f"PREFECT__FLOW_RUN_ID={run}".encode()
    found = []
    for pid in kills.marked(mark):
        try:
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


def cancelled(site: Site, stage: str, wait: float, wanted: dict[str, bytes]) -> tuple[kills.Outcome, float]:
    """Cancels a run in a stage, and starts another; what was left, and the seconds until the last state."""
    site.project.fresh(stage)
    before, run = site.project.registered(), site.start()
    site.wait_for_stage(run, stage)
    time.sleep(wait)
    site.cancel(run)
    asked = time.monotonic()
    while (left := of_run(site.mark, run)) and time.monotonic() - asked < kills.SECONDS:
        time.sleep(0.05)
    seconds = time.monotonic() - asked
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    try:
        check_free(site.project.folder)
        free = True
    except StageError:
        free = False
    ended = site.finish(run, STATE_SECONDS - seconds)
    told, more = time.monotonic() - asked, site.project.registered() - before
    second = site.finish(site.start())
    equal = second == "COMPLETED" and site.project.outputs() == wanted
    return kills.Outcome(seconds, len(left), free, ended, more, equal, 0), told


def measure_worker(times: int, seed: int, command: str) -> list[Row]:
    """The rows of `times` cancellations in each stage of the toy project, by a process worker."""
    rng, found = random.Random(seed), []
    with tempfile.TemporaryDirectory() as name:
        home, project = Path(name) / "prefect", Toy(Path(name) / "a project")
        mark = str(rng.getrandbits(64))
        with kills.server(home) as api:
            environment = project.environment() | {"PREFECT_API_URL": api, "PREFECT_HOME": str(home), kills.MARK: mark}
            deploy = [sys.executable, "-c", DEPLOY, str(project.folder)]
            said = subprocess.run(deploy, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            start = [PREFECT, "worker", "start", "--pool", POOL, "--type", "process"]
            worker = subprocess.Popen(
                start, cwd=project.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                site = Site(project, api, said.split()[-1], mark)
                project.fresh(toy.STAGES[0])
                if (state := site.finish(site.start())) != "COMPLETED":
                    raise StageError(f"the undisturbed run ended as {state}", "look at the worker's log")
                wanted = project.outputs()
                for stage in tqdm(toy.STAGES * times):
                    one, told = cancelled(site, stage, rng.uniform(0, toy.STEPS * 0.1), wanted)
                    found.append((one, told))
                    said = ", ".join(one.faults("cancel")) or "fine"
                    tqdm.write(f"worker, {stage}: {said} (ended in {one.seconds:.1f} s, told in {told:.1f} s)")
            finally:
                end(worker)
    n, faulty = len(found), sum(bool(one.faults("cancel")) or told > kills.SECONDS for one, told in found)
    slowest, latest = max(one.seconds for one, _ in found), max(told for _, told in found)
    return [
        share("runs of a worker, cancelled: left a process, the lock, a false state or a version, or did not resume", faulty, n, command),
        largest("runs of a worker, cancelled: slowest end, s", slowest, n, kills.SECONDS, command),
        largest("runs of a worker, cancelled: slowest last state, s", latest, n, kills.SECONDS, command),
    ]  # fmt: skip


def end(worker: subprocess.Popen[bytes]) -> None:
    """Ends the worker, for certain if it does not heed SIGTERM."""
    worker.terminate()
    try:
        worker.wait(BUSY_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
