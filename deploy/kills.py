"""SIGKILL at random, in the middle of a retrain: does everything go on, with the same bytes and with nothing left behind?"""

from __future__ import annotations

import json
import random
import shutil
import time

import psutil

from components.common.files import canonical, write_text
from deploy import processes
from deploy.rows import Row, row, say
from deploy.site import Site, same, wait

KILLED = ("worker", "server", "flow", "dvc", "stage")
KILLS = 20


def kills(site: Site, command: str, times: int = KILLS) -> list[Row]:
    """One kill after another, each in a run of `retrain` with another seed; finished ones are kept in kills.json."""
    notes = site.folder / "kills.json"
    done: list[Row] = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else []
    while len(done) < times:
        done.append(_kill(site, len(done)))
        write_text(notes, canonical(done))
        say(json.dumps(done[-1]))
    done = done[:times]
    good = sum(one["resumed"] and not one["different"] for one in done)
    totals = {name: sum(one[name] for one in done) for name in ("stuck", "double", "leftovers")}
    kinds = ", ".join(f"{kind} {sum(one['killed'] == kind for one in done)}" for kind in KILLED)
    what = "SIGKILL of worker, server, flow, dvc or stage at random: resumed, with the bytes of an undisturbed run"
    return [
        row(what, f"{good}/{len(done)} ({kinds})", goal=f"{KILLS}/{KILLS}",
            met=good == len(done) == KILLS, command=command, n=len(done)),
        *(row(f"after these kills: {name}", totals[key], goal="0", met=totals[key] == 0, command=command, n=len(done))
          for key, name in (("stuck", "runs that are stuck"), ("double", "versions registered twice"), ("leftovers", "processes left over"))),
    ]  # fmt: skip


def _kill(site: Site, number: int, attempt: int = 0) -> Row:
    chance = random.Random(f"{number} {attempt}")
    kind, share = KILLED[number % len(KILLED)], 0.7 * chance.random()  # of the time that an undisturbed run takes
    seed = {"sae": {"seed": 1000 + number + 100 * attempt}}
    reference = site.folder / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    site.run("git", "clone", "--quiet", "--local", str(site.project), str(reference), cwd=site.folder)
    shutil.copy(site.project / "requests.yaml", reference)
    shutil.copy(site.project / "params.yaml", reference)
    site.edit_params(seed, reference)
    begun = time.monotonic()
    site.run("dvc", "repro", "--quiet", cwd=reference)
    length = time.monotonic() - begun
    wanted = site.bytes(reference)
    site.edit_params(seed)
    run = site.start("retrain")
    wait(lambda: site.state(run) == "RUNNING", 120, "the run to start")
    time.sleep(share * length)
    victim = _victim(site, kind, run)
    if victim is None:
        say(f"run {run} ended before its {kind} could be killed: once more")
        site.finish(run)
        return _kill(site, number, attempt + 1)
    victim.kill()
    say(f"{number + 1}: killed {kind} (process {victim.pid}) after {share * length:.0f} s")
    site.up()
    states = [site.finish(run, 900)]
    while states[-1] != "COMPLETED" and len(states) < 4:
        states.append(site.finish(site.start("retrain"), 900))
    stuck = sum(state in ("PENDING", "RUNNING", "CANCELLING") for state in site.runs("retrain").values())
    wait(lambda: not site.leftovers() or time.monotonic() > begun + length + 900, 30, "processes to end")
    after = site.versions()
    return {
        "killed": kind, "states": states, "resumed": states[-1] == "COMPLETED", "different": list(same(site.bytes(), wanted)),
        "stuck": stuck, "double": len(after) - len(set(after.values())),
        "leftovers": len(site.leftovers()),
    }  # fmt: skip


def _victim(site: Site, kind: str, run: str) -> psutil.Process | None:
    """The process to kill, once there is one; None if the run ends before."""
    if kind in ("worker", "server"):
        if site.state(run) != "RUNNING":
            return None
        return processes.running(site.place, {"server": "prefect"}.get(kind, kind))
    while site.state(run) in ("RUNNING", ""):
        own = site.flow_processes(run)
        named = {
            "flow": own[:1],
            "dvc": [p for p in own if "repro" in _command(p)],
            "stage": [
                p
                for p in own
                if "python -m" in _command(p) and ("toyproject" in _command(p) or ".stage" in _command(p))
            ],
        }[kind]
        if named:
            return named[-1]
        time.sleep(0.05)
    return None


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
