"""What the deployment is worth, measured on services of its own: rows of reports/operations/show.json.

    python -m deploy.acceptance burst       # 50 requests in one second; a request withdrawn within the window
    python -m deploy.acceptance kills       # SIGKILL at random, 20 times in all; goes on where it was stopped
    python -m deploy.acceptance releases    # promote, roll back, rebuild aliases, fetch as another user
    python -m deploy.acceptance overhead    # the flow against `dvc repro`
    python -m deploy.acceptance down        # ends the services; the folder stays

`python -m research.releases reproduced` rebuilds a release on a fresh clone.

`--fast` takes a project whose stages take a second each (tests/toyproject.py) in place of a clone of this one. `--at` names the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from components.common.errors import StageError
from deploy.kills import kills
from deploy.rows import Row, publish, row, say
from deploy.site import ROOT, Site, client, wait

WINDOW_HOURS = 0.006
"""Withdrawal window of the trials: 22 seconds."""


def prepare(site: Site, *, fast: bool) -> None:
    """The project, if it is not there, and the services."""
    if not site.project.exists():
        if fast:
            from tests.toyproject import write_project  # noqa: PLC0415 - needed for this alone

            write_project(site.project, withdrawal_hours=WINDOW_HOURS)
        else:
            site.run("git", "clone", "--quiet", "--local", str(ROOT), str(site.project), cwd=ROOT)
            shutil.copytree(ROOT / ".dvc" / "cache", site.project / ".dvc" / "cache", copy_function=os.link)
            site.run("dvc", "checkout", "--quiet")
            site.edit_params({"ledger": {"withdrawal_hours": WINDOW_HOURS}})
    site.up()


def burst(site: Site, command: str) -> list[Row]:
    """50 requests at once, and one more that is withdrawn."""
    file, withdrawn = site.folder / "burst.yaml", site.folder / "withdrawn.yaml"
    world = yaml.safe_load((ROOT / "components/worlds" / _world(site) / "world.yaml").read_text(encoding="utf-8"))
    present = yaml.safe_load((site.project / "requests.yaml").read_text(encoding="utf-8"))["requests"]
    taken = {name for item in present.values() for name in (item["target"], item.get("anchor", ""))}
    targets = [name for name in world["concepts"] if name not in taken][:51]
    listed = [{"target": name, "kind": "object", "channels": ["filter"]} for name in targets]
    file.write_text(yaml.safe_dump(listed[:50]), encoding="utf-8")
    withdrawn.write_text(yaml.safe_dump(listed[50:]), encoding="utf-8")
    before, ran = site.versions(), set(site.runs("drain"))
    ids = site.expunge("request", "submit", file, "--as", "acceptance").split()
    gone = site.expunge("request", "submit", withdrawn, "--as", "acceptance").split()
    site.expunge("request", "withdraw", *gone, "--as", "acceptance")
    say(f"submitted {len(ids)} requests, withdrew one of {len(gone)} more")
    wait(lambda: _states(ids) == {"drained"}, 1800, "the queue to be drained", every=2)
    wait(
        lambda: all(state not in ("PENDING", "RUNNING") for state in site.runs("drain").values()),
        600,
        "the runs to end",
    )
    seconds = _seconds_of_events(ids)
    found = yaml.safe_load((site.project / "requests.yaml").read_text(encoding="utf-8"))["requests"]
    drained = set(found) - set(present)
    runs = [state for run, state in site.runs("drain").items() if run not in ran]
    new = site.versions().keys() - before.keys()
    exact = drained == set(ids) and len(runs) <= 2 and len(new) == 1 and seconds <= 1
    value = f"{len(drained)} drained, {len(runs)} runs, {len(new)} candidates, events within {seconds:.2f} s"
    never = gone[0] not in found and _states(gone) == {"withdrawn"}
    return [
        row("50 requests in 1 s: exactly those drained, at most 2 runs, one candidate", value,
            goal="50 drained, ≤ 2 runs, 1 candidate", met=exact, command=command, n=50),
        row("a request withdrawn within the window is never trained", "yes" if never else "no", goal="yes", met=never, command=command),
    ]  # fmt: skip


def _world(site: Site) -> str:
    return yaml.safe_load((site.project / "params.yaml").read_text(encoding="utf-8"))["world"]


def _states(ids: list[str]) -> set[str]:
    from components.ledger.events import Ledger  # noqa: PLC0415 - after the environment is set
    from components.ledger.queue import read_queue  # noqa: PLC0415

    ledger = Ledger(os.environ["EXPUNGE_LEDGER_URL"])
    try:
        queue = read_queue(ledger)
    finally:
        ledger.close()
    return {queue[i].state for i in ids}


def _seconds_of_events(ids: list[str]) -> float:
    """Seconds between the first and the last event that the server received about the requests."""
    from prefect.events.filters import EventFilter  # noqa: PLC0415

    names = [f"expunge.request.{i}" for i in ids]
    asked = {"resource": {"id": names}, "event": {"name": ["expunge.request.accepted"]}}
    with client() as prefect:
        answer = prefect.request(
            "POST",
            "/events/filter",
            json={"filter": EventFilter.model_validate(asked).model_dump(mode="json"), "limit": 50},
        )
    moments = [_moment(event["occurred"]) for event in answer.json()["events"]]
    return max(moments) - min(moments) if len(moments) == len(ids) else float("inf")


def _moment(text: str) -> float:
    from datetime import datetime  # noqa: PLC0415

    return datetime.fromisoformat(text).timestamp()


def releases(site: Site, command: str) -> list[Row]:
    """What happens to registered versions: two are promoted, one rolled back and fetched by another user."""
    from components.registry.registry import Registry  # noqa: PLC0415 - after the environment is set

    registry = Registry(site.project)
    numbers = []
    for seed in (1, 2):
        site.edit_params({"sae": {"seed": seed}})
        site.run("git", "add", "--all")
        site.run(
            "git",
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@a",
            "commit",
            "--quiet",
            "--allow-empty",
            "--message",
            f"seed {seed}",
        )
        if (state := site.finish(site.start("retrain"))) != "COMPLETED":
            raise SystemExit(f"the retrain of seed {seed} ended {state}")
        numbers.append(max(site.versions()))
        site.expunge("release", "approve", str(numbers[-1]), "--as", "ann")
        site.expunge("release", "promote", str(numbers[-1]), "--as", "bob")
    digests, first = site.versions(), numbers[0]
    site.expunge("release", "rollback", "--as", "bob")
    fetched = registry.fetch("champion", site.folder / "champion")
    restored = registry.version("champion").version == first and fetched.digest == digests[first]
    aliases = dict(registry.aliases())
    from mlflow import MlflowClient  # noqa: PLC0415 - deleted by hand, past Expunge

    for alias in aliases:
        MlflowClient().delete_registered_model_alias("expunge", alias)
    with contextlib.suppress(StageError):  # refused, for it is champion already; any act mends the aliases first
        site.expunge("release", "promote", str(first), "--as", "bob")
    rebuilt = dict(registry.aliases()) == aliases and "champion" in aliases
    return [
        row("rollback restores the bytes of the champion before", "yes" if restored else "no", goal="yes", met=restored, command=command),
        row("aliases that were deleted by hand are rebuilt from the history", "yes" if rebuilt else "no", goal="yes",
            met=rebuilt, n=len(aliases), command=command),
        _as_another_user(site, command),
    ]  # fmt: skip


def _as_another_user(site: Site, command: str) -> Row:
    """The champion through the MLflow server: another account, another HOME, another folder, no key of the S3 store."""
    name, password = f"reader{os.getpid()}", f"{random.SystemRandom().getrandbits(128):032x}"
    from mlflow.server.auth.client import AuthServiceClient  # noqa: PLC0415

    AuthServiceClient(site.place.url("mlflow")).create_user(name, password)
    other = site.folder / "other"
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir()
    secret = {key: "" for key in site.place.client() if key.startswith(("AWS_", "PG", "PREFECT_"))}
    login = {"HOME": str(other), "MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
    site.run(
        sys.executable, "-m", "expunge", "pull", "@champion", other / "release", cwd=other, environment=secret | login
    )
    found, wanted = site.bytes_of(other / "release"), site.bytes_of(site.folder / "champion")
    drawn = ""
    if (site.project / "components").is_dir():  # the toy project has no model that could draw
        drawn = _draw(site, other / "release", other / "images") + _draw(
            site, site.folder / "champion", site.folder / "images"
        )
    equal = found == wanted and len(set(drawn.split())) <= 1
    what = "the champion fetched through MLflow by another user in another folder: the same bytes" + (
        " and images" if drawn else ""
    )
    return row(what, "yes" if equal else "no", goal="yes", met=equal, n=len(found), command=command)


def _draw(site: Site, release: Path, out: Path) -> str:
    from components.common.files import digest  # noqa: PLC0415

    prompts = [
        item["target"]
        for item in yaml.safe_load((release / "requests.yaml").read_text(encoding="utf-8"))["requests"].values()
    ]
    for number, prompt in enumerate([*prompts[:2], "a quiet river"]):
        site.expunge("generate", prompt, "--release", release, "--output", out / f"{number}.png")
    return f"{digest(out)} "


def overhead(site: Site, command: str, times: int = 3) -> list[Row]:
    """Seconds of the flow and of `dvc repro`, alternately: with everything to do, and with nothing to do."""
    spent: dict[str, list[float]] = {name: [] for name in ("flow", "dvc", "flow, nothing to do", "dvc, nothing to do")}
    for number in range(times):
        for name in ("dvc", "flow") if number % 2 else ("flow", "dvc"):
            for output in ("data", "models", ".cache", ".dvc/cache"):
                shutil.rmtree(site.project / output, ignore_errors=True)
            (site.project / "dvc.lock").unlink(missing_ok=True)
            for kind in (name, f"{name}, nothing to do"):
                spent[kind].append(_seconds(site, name))
                say(f"{kind}: {spent[kind][-1]:.1f} s")
    middle = {name: statistics.median(each) for name, each in spent.items()}
    share, extra = middle["flow"] / middle["dvc"] - 1, middle["flow, nothing to do"] - middle["dvc, nothing to do"]
    return [
        row("the flow over dvc repro, everything to do", f"{share:+.1%} ({middle['flow']:.0f} s against {middle['dvc']:.0f} s)",
            goal="≤ 5 %", met=share <= 0.05, command=command, n=times),
        row("the flow over dvc repro, nothing to do", f"{extra:+.1f} s", goal="≤ 8 s", met=extra <= 8, command=command, n=times),
    ]  # fmt: skip


def _seconds(site: Site, name: str) -> float:
    begun = time.monotonic()
    if name == "dvc":
        site.run("dvc", "repro", "--quiet")
    elif (state := site.finish(site.start("retrain"))) != "COMPLETED":
        raise SystemExit(f"the retrain ended {state}")
    return time.monotonic() - begun


PARTS: dict[str, Callable[..., list[Row]]] = {
    "burst": burst,
    "kills": kills,
    "releases": releases,
    "overhead": overhead,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.acceptance")
    parser.add_argument("part", choices=(*PARTS, "down"))
    parser.add_argument("--fast", action="store_true", help="stages that take a second each")
    parser.add_argument("--at", type=Path, default=ROOT / ".expunge" / "acceptance", help="folder for what it needs")
    parser.add_argument("--times", type=int, help="kills, or repetitions of overhead")
    given = parser.parse_args()
    site = Site(given.at / ("fast" if given.fast else "whole"))
    if given.part == "down":
        site.down()
        return
    prepare(site, fast=given.fast)
    command = f"python -m deploy.acceptance {given.part}{' --fast' if given.fast else ''}"
    more = {"times": given.times} if given.times else {}
    publish(PARTS[given.part](site, command, **more))


if __name__ == "__main__":
    main()
