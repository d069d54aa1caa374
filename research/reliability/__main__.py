"""`python -m research.reliability inputs --n 10000`: runs one part (inputs, kills, places, altered) and writes its rows."""

from __future__ import annotations

import argparse

from research.reliability import kills
from research.reliability.projects import Small, Toy
from research.reliability.run import measure_inputs, measure_large
from research.reliability.show import write_rows


def main() -> None:
    """Runs the named part, prints its rows and puts them into the report."""
    parser = argparse.ArgumentParser(prog="python -m research.reliability", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    inputs = parts.add_parser("inputs", help="mutate requests.yaml, params.yaml and tables of prompts")
    inputs.add_argument("--n", type=int, default=10_000, help="mutated files")
    inputs.add_argument("--seed", type=int, default=0)
    ends = parts.add_parser("kills", help="end a retraining in every stage and way; then resume it")
    ends.add_argument("project", choices=["toy", "small"], help="sleeping stages, or the product's own, small")
    ends.add_argument("--times", type=int, default=1, help="of each kind in each stage")
    ends.add_argument("--kinds", default=",".join(kills.KINDS))
    ends.add_argument("--stages", default="", help="default all")
    ends.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.part == "kills":
        command = f"python -m research.reliability kills {given.project} --times {given.times} --seed {given.seed}"
        write_rows(
            kills.measure_kills(
                {"toy": Toy, "small": Small}[given.project], given.times, given.seed, command,
                given.kinds.split(","), given.stages.split(",") if given.stages else (),
            ),
            command,
        )  # fmt: skip
        return
    command = f"python -m research.reliability {given.part} --n {given.n} --seed {given.seed}"
    write_rows([*measure_inputs(given.n, given.seed, command), *measure_large(command)], command)


if __name__ == "__main__":
    main()
