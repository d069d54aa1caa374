"""Carries attacks out on one request: searches, draws, judges and writes down, chunk by chunk, so that a stopped run goes on.

    B attempts, k images of each

A chunk draws its randomness from its own number, so that a resumed campaign ends with the outcomes of an unbroken one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.collect.record import RequestRecord
from components.common.errors import StageError
from components.common.files import naming, write_text
from components.common.seeding import stream_seed
from components.common.variants import Variant
from components.evaluate.attacks.attempts import Attack, Attempt, Budget, check_prompt
from components.evaluate.attacks.params import AttackSize
from components.evaluate.attacks.victim import FILTERED, Victim
from components.evaluate.images import ImageSpec, Painter, Wanted
from components.evaluate.measure import erased_of
from components.worlds.base import PRESENT, Found, Judgement, Panel

CHUNK = {False: 16, True: 2}
"""Attempts of a chunk, by whether the attack is optimised."""
FIRST, SECOND = "first", "second"
"""Names of the judges."""
Outcome = dict[str, Any]
"""One attempt as the log has it: what was tried, and by variant what each judge found in its images."""


@dataclass
class Campaign:
    """The attacks on one request."""

    victim: Victim
    """With the default variant."""
    record: RequestRecord
    judges: Mapping[str, Panel]
    """`first` decides; `second`, where there is one, is reported beside it."""
    size: AttackSize
    batch: int
    seed: int
    folder: Path
    """Where outcomes and the images of successes are kept."""

    def run(self, attack: Attack, against: Variant) -> list[Outcome]:
        """All outcomes of one attack, those of earlier runs first; stops when enough count, or the budget is spent."""
        log = self.folder / f"{attack.name}-{against}.jsonl"
        logged, seen = read_log(log), set[str]()
        chunks: list[list[Outcome]] = []
        victim = self.victim.against(against)
        budget = Budget(
            self.size.iterations, self.size.candidates, self.size.tokens, self.size.similarity, self.size.seconds
        )
        while True:
            outcomes = [outcome for chunk in chunks for outcome in chunk]
            enough = count(outcomes, attack) >= self.size.attempts or len(outcomes) >= self.size.tries
            if enough or (chunks and not chunks[-1]) or (budget.spent() and len(chunks) >= len(logged)):
                return outcomes
            if len(chunks) < len(logged):
                chunks.append(logged[len(chunks)])
                seen |= {outcome["prompt"] for outcome in chunks[-1]}
                continue
            attempts = list(self._attempts(attack, victim, len(chunks), seen, budget))
            chunks.append(self.judge(attack, against, attempts))
            append_log(log, chunks[-1])

    def _attempts(
        self, attack: Attack, victim: Victim, chunk: int, seen: set[str], budget: Budget
    ) -> Iterator[Attempt]:
        rng = np.random.default_rng(
            stream_seed(self.seed, "attack", self.record.id, attack.name, victim.variant, chunk)
        )
        size = min(CHUNK[attack.optimised], self.size.attempts)
        for tried, attempt in enumerate(attack.run(victim, victim.target, rng, budget)):
            if attempt.prompt not in seen:
                seen.add(check_prompt(attempt.prompt))
                yield attempt
                size -= 1
            if not size or tried >= 20 * CHUNK[attack.optimised]:  # an attack may have no more to say
                return

    def judge(self, attack: Attack, against: Variant, attempts: Sequence[Attempt]) -> list[Outcome]:
        """Draws and judges attempts: the base first, the variants where the attempt counts."""
        painter = Painter(self.victim.eraser, batch=self.batch)
        outcomes = [attempt._asdict() | {"against": against, "variants": {}} for attempt in attempts]
        self._draw(painter, "base", attack, outcomes)
        counting = [o for o in outcomes if attack.optimised or any(found(o, "base", FIRST))]
        for variant in self.size.variants:
            self._draw(painter, variant, attack, counting)
        return outcomes

    def _draw(self, painter: Painter, variant: Variant, attack: Attack, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        k, requests = self.size.seeds, self.victim.eraser.requests
        specs = tuple(
            ImageSpec(o["prompt"], stream_seed(self.seed, "attacked", o["prompt"], s) % 2**31)
            for o in outcomes
            for s in range(k)
        )
        images = painter.images(Wanted(specs, variant, requests))
        erased = self.victim.eraser.read([o["prompt"] for o in outcomes], variant=variant)
        if variant in FILTERED and not {*self.victim.eraser.filters} <= {*erased.decision.requests}:
            raise StageError(
                f"the filters did not act on the prompts of {attack.name}", "report it: the hook was not reached"
            )
        detected = self.victim.against(variant).detected(erased)
        said = {name: judge(images) for name, judge in self.judges.items()}
        hits = {name: ~erased_of(each, self.record) for name, each in said.items()}
        nothing = nothing_in(said[FIRST])
        for i, outcome in enumerate(outcomes):
            rows = slice(i * k, (i + 1) * k)
            outcome["variants"][variant] = {
                "detected": bool(detected[i]),
                "nothing": [] if nothing is None else nothing[rows].tolist(),
                **{name: hit[rows].tolist() for name, hit in hits.items()},
            }
            if variant != "base" and hits[FIRST][rows].any():
                first = int(hits[FIRST][rows].argmax())
                self._keep(outcome, variant, images[rows][first])

    def _keep(self, outcome: Outcome, variant: Variant, image: np.ndarray) -> None:
        """Writes the image of a success; its name is drawn from what made it."""
        name = f"{stream_seed(self.seed, variant, outcome['prompt']):016x}.png"
        path = self.folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            Image.fromarray(image).save(path)
        outcome["variants"][variant]["image"] = name


def nothing_in(said: Found) -> np.ndarray | None:
    """(N,) bool: images in which nothing is recognisable; None of a judge that cannot tell, as those by kind cannot."""
    return said.none >= PRESENT if isinstance(said, Judgement) else None


def found(outcome: Outcome, variant: str, judge: str) -> list[bool]:
    """For each image of an attempt whether `judge` finds the target; empty where the variant was not drawn."""
    return outcome["variants"].get(variant, {}).get(judge, [])


def counts(outcome: Outcome, attack: Attack) -> bool:
    """Whether an attempt counts: the base draws the target from it, or it was optimised against a variant."""
    return attack.optimised or any(outcome["variants"]["base"][FIRST])


def count(outcomes: Sequence[Outcome], attack: Attack) -> int:
    """How many attempts count."""
    return sum(counts(outcome, attack) for outcome in outcomes)


def read_log(path: Path) -> list[list[Outcome]]:
    """The chunks of a log, one a line; a last line that was cut short is left out, and written again."""
    chunks = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            chunks.append(json.loads(line))
        except ValueError:
            write_text(path, "".join(json.dumps(chunk) + "\n" for chunk in chunks))
            break
    return chunks


def append_log(path: Path, chunk: Sequence[Outcome]) -> None:
    """Adds one chunk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(list(chunk)) + "\n")
