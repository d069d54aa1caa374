"""`python -m research.reliability inputs --n 10000`: runs one part (inputs, kills, writers, places, altered) and writes its rows."""

from __future__ import annotations

import argparse

from research.reliability import kills
from research.reliability.altered import measure_altered
from research.reliability.places import measure_places
from research.reliability.projects import Retrain, Run, Small, Toy
from research.reliability.run import measure_inputs, measure_large
from research.reliability.show import SHOW
from research.reliability.worker import measure_worker
from research.reliability.writers import measure_writers
from research.show import publish

PROJECTS = {"toy": Toy, "small": Small, "run": Run, "retrain": Retrain}
"""Sleeping stages under the flow, the product's own stages, small, and the command line around stages that sleep."""


def main() -> None:
    """Runs the named part, prints its rows and puts them into the report."""
    parser = argparse.ArgumentParser(prog="python -m research.reliability", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    inputs = parts.add_parser("inputs", help="mutate requests.yaml, params.yaml and tables of prompts")
    inputs.add_argument("--n", type=int, default=10_000, help="mutated files")
    inputs.add_argument("--seed", type=int, default=0)
    ends = parts.add_parser("kills", help="end a retraining in every stage and way; then resume it")
    ends.add_argument("project", choices=[*PROJECTS, "worker"], help="what is ended")
    ends.add_argument("--times", type=int, default=1, help="of each kind in each stage")
    ends.add_argument("--kinds", default=",".join(kills.KINDS))
    ends.add_argument(
        "--stages", default="", help="default all, but for `after`: what a run does when its version is there"
    )
    ends.add_argument("--seed", type=int, default=0)
    bytes_ = parts.add_parser("altered", help="alter one byte of each kind of artifact; every command must refuse")
    bytes_.add_argument("--times", type=int, default=3, help="of each kind")
    bytes_.add_argument("--seed", type=int, default=0)
    writers = parts.add_parser("writers", help="add, withdraw and submit requests in ten processes at once")
    writers.add_argument("--times", type=int, default=5, help="rounds")
    around = parts.add_parser(
        "places", help="run commands where files, account, locale or tools are not the usual ones"
    )
    around.add_argument("--only", default="", help="places with this in their name")
    given = parser.parse_args()
    if given.part == "places":
        rows = measure_places("python -m research.reliability places", lambda name: given.only in name)
        publish([] if given.only else rows, SHOW)  # some places are no measurement of all
        return
    if given.part == "writers":
        publish(measure_writers(given.times, f"python -m research.reliability writers --times {given.times}"), SHOW)
        return
    if given.part == "altered":
        command = f"python -m research.reliability altered --times {given.times} --seed {given.seed}"
        publish(measure_altered(given.times, given.seed, command), SHOW)
        return
    if given.part == "kills" and given.project == "worker":
        command = f"python -m research.reliability kills worker --times {given.times} --seed {given.seed}"
        publish(measure_worker(given.times, given.seed, command), SHOW)
        return
    if given.part == "kills":
        command = f"python -m research.reliability kills {given.project} --times {given.times} --seed {given.seed}"
        kinds, stages = given.kinds.split(","), given.stages.split(",") if given.stages else ()
        command += f" --kinds {given.kinds}" if tuple(kinds) != kills.KINDS else ""
        command += f" --stages {given.stages}" if stages else ""
        rows = kills.measure_kills(PROJECTS[given.project], given.times, given.seed, command, kinds, stages)
        publish([] if not set(kinds) >= set(kills.FEWEST) else rows, SHOW)  # some cases are no measurement of all
        return
    command = f"python -m research.reliability {given.part} --n {given.n} --seed {given.seed}"
    publish([*measure_inputs(given.n, given.seed, command), *measure_large(command)], SHOW)


if __name__ == "__main__":
    main()
