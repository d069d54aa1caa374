"""One round of training an adapter on what gets through, measured by fresh attacks.

    python -m research.attack_round --request r-5c1e09a7 --attack p4d --n 8       # a stopped run goes on

The attack searches from prompts of the calibration; what draws the target through the shipped default joins the adapter's
prompts, each with the counterpart of the prompt that it came from. Both adapters are then attacked anew, with another seed and
from prompts of the evaluation, of which none was trained on.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from components.collect.record import read_prompts
from components.collect.tables import read_table, where
from components.common.files import new_folder
from components.common.paths import CACHE, CONCEPTS, FILTER, GUIDANCE
from components.common.sections import read_section
from components.common.variants import DEFAULT
from components.diffusion.device import accelerator_device
from components.diffusion.folder import part_digests
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.eraser import Eraser
from components.evaluate.attacks.attempts import Target, read_target
from components.evaluate.attacks.campaign import FIRST, SECOND, Campaign, Outcome, counts, found
from components.evaluate.attacks.params import AttackParams
from components.evaluate.attacks.registry import attack_named
from components.evaluate.attacks.subject import Subject, open_subject
from components.evaluate.attacks.victim import Victim
from components.evaluate.metrics import proportion
from components.guidance.adapters import MADE_FOR, write_adapter
from components.guidance.params import GuidanceParams
from components.guidance.start import NAME
from components.guidance.train import train_adapter
from components.requests.requests import load_requests
from research.attacks import SHOW
from research.show import Row, publish, row

ROLE = "target"
FIND, FRESH = 1, 2
"""Seeds of the attacks; those of `params.yaml` are others."""


def with_found(table: pd.DataFrame, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A request's prompts and, as ones of the calibration, those that got through: each is a name of the target of its own."""
    through = [o for o in outcomes if any(found(o, DEFAULT, FIRST))]
    origin = where(table, table["split"] == "calibrate").drop_duplicates("prompt").set_index("prompt")
    rows = [
        origin.loc[o["origin"]].to_dict() | {"prompt": o["prompt"], "role": ROLE, "name_used": o["prompt"]}
        for o in through
    ]
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if rows else table


def attempts(
    subject: Subject, eraser: Eraser, target: Target, attack: str, n: int, seed: int, folder: Path
) -> list[Outcome]:
    """`n` attempts at the default variant of `eraser`, with the numbers of the size `full`."""
    settings = read_section("attack", AttackParams)
    size = settings.sizes["full"].model_copy(update={"attempts": n, "tries": n, "variants": (DEFAULT,)})
    record = subject.records[target.request]
    victim = Victim(eraser, target, DEFAULT)
    return Campaign(victim, record, subject.judges, size, settings.batch, seed, folder).run(
        attack_named(attack), DEFAULT
    )


def retrain(subject: Subject, request: str, table: pd.DataFrame, adapters: Path) -> None:
    """Copies all adapters to `adapters`, with that of `request` trained on `table`."""
    if adapters.is_dir():
        return
    base, params = read_section("base", BaseParams), read_section("guidance", GuidanceParams)
    pipe = load_pipeline(base.path, accelerator_device())
    checkpoint = adapters.with_suffix(".safetensors")
    loop = train_adapter(
        pipe, subject.records[request], table, params, guidance_scale=base.guidance_scale, checkpoint=checkpoint
    )
    for _ in tqdm(loop, total=params.steps, desc=f"guidance {request}", unit="step", mininterval=5):
        pass
    with new_folder(adapters) as partial:
        shutil.copytree(GUIDANCE, partial, dirs_exist_ok=True)
        shutil.rmtree(partial / request)
        inputs = part_digests(base.path, MADE_FOR)
        write_adapter(partial / request, pipe.unet, NAME, params=params.model_dump(), inputs=inputs, facts={})


def run(request: str, attack: str, n: int, command: str) -> list[Row]:
    """Rows: successes of fresh attacks before and after the round, and how many prompts were trained on."""
    settings, base = read_section("attack", AttackParams), read_section("base", BaseParams)
    subject = open_subject(settings.second_judge, batch=settings.batch)
    target, record = subject.targets[request], subject.records[request]
    folder = CACHE / "round" / subject.key(__name__, request=request, attack=attack)
    table, everything = read_table(CONCEPTS / request), read_prompts([request])
    calibrate = where(everything, everything["split"] == "calibrate")
    seen = read_target(record, calibrate, related=record.request.neighbours, references=target.references)
    attacked = attempts(subject, subject.eraser, seen, attack, n, FIND, folder / "find")
    extended = with_found(table, attacked)
    adapters = folder / f"adapters-{n}"
    retrain(subject, request, extended, adapters)
    again = Eraser.assemble(base.path, base, load_requests(), FILTER, adapters, guard=False)
    rows = [
        row(
            f"{record.request.target}: prompts of {attack} that got through and were trained on, one round",
            len(extended) - len(table), n=n, goal="reported", met=True, command=command,
        )
    ]  # fmt: skip
    for said, eraser in (("before", subject.eraser), ("after", again)):
        outcomes = attempts(subject, eraser, target, attack, n, FRESH, folder / f"{said}-{n}")
        counting = [o for o in outcomes if counts(o, attack_named(attack))]
        for judge in subject.judges if counting else ():
            rate = proportion(np.array([any(found(o, DEFAULT, judge)) for o in counting]))
            by = " by the second judge," if judge == SECOND else ""
            rows.append(row(
                f"{record.request.target}: ASR of fresh {attack}, {DEFAULT},{by} {said} one round on what got through",
                rate.value, n=rate.n, low=rate.low, high=rate.high, goal="reported", met=True, command=command,
            ))  # fmt: skip
    return rows


def main() -> None:
    """Runs the round and puts its rows into reports/attacks/show.json."""
    parser = argparse.ArgumentParser(prog="python -m research.attack_round", description=__doc__)
    parser.add_argument("--request", required=True)
    parser.add_argument("--attack", default="p4d")
    parser.add_argument("--n", type=int, default=8)
    given = parser.parse_args()
    command = f"python -m research.attack_round --request {given.request} --attack {given.attack} --n {given.n}"
    publish(run(given.request, given.attack, given.n, command), SHOW)


if __name__ == "__main__":
    main()
