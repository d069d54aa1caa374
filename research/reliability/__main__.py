"""`python -m research.reliability inputs --n 10000`: runs one part and writes its rows."""

from __future__ import annotations

import argparse

from research.reliability.run import measure_inputs, measure_large
from research.reliability.show import write_rows


def main() -> None:
    """Runs the named part, prints its rows and puts them into the report."""
    parser = argparse.ArgumentParser(prog="python -m research.reliability", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    inputs = parts.add_parser("inputs", help="mutate requests.yaml, params.yaml and tables of prompts")
    inputs.add_argument("--n", type=int, default=10_000, help="mutated files")
    inputs.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    command = f"python -m research.reliability {given.part} --n {given.n} --seed {given.seed}"
    write_rows([*measure_inputs(given.n, given.seed, command), *measure_large(command)], command)


if __name__ == "__main__":
    main()
