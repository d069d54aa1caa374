"""Stage `attack`: attacks the evaluated eraser as a user would, and with all weights in hand; results, a verdict and a page.

Like `evaluate` it succeeds whatever it finds: refusing a candidate is the promotion's act.
"""

from __future__ import annotations

from pathlib import Path

from components.common.errors import StageError, UserError
from components.common.files import canonical, write_text
from components.common.paths import CACHE
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.common.variants import DEFAULT
from components.evaluate.attacks.attempts import Attack
from components.evaluate.attacks.campaign import CHUNK, FIRST, Campaign, Outcome, count
from components.evaluate.attacks.clean import measure_clean
from components.evaluate.attacks.page import render_page, successes_of
from components.evaluate.attacks.params import AttackParams, AttackSize
from components.evaluate.attacks.registry import ATTACKS as EVERY
from components.evaluate.attacks.registry import attack_named
from components.evaluate.attacks.results import by_tier, rates, why_uncounted
from components.evaluate.attacks.subject import Subject, open_subject
from components.evaluate.attacks.summary import ATTACKS, PAGE, RESULTS, VERDICT, summarise_attacks
from components.evaluate.attacks.verdict import verdict_record
from components.evaluate.attacks.victim import Victim
from components.worlds.base import Judgement


def attack(
    *, requests: list[str] | None = None, attacks: list[str] | None = None, size: str = "", out: Path = ATTACKS
) -> None:
    """Attacks all requests, or some, in the size that params.yaml names, or another, and writes results, verdict and page to `out`.

    `UserError` for bad input, before anything is loaded.
    """
    settings = read_section("attack", AttackParams)
    if size and size not in settings.sizes:
        raise UserError(f"size {size!r} is unknown", f"use one of: {', '.join(settings.sizes)}")
    chosen = settings.sizes[size or settings.size]
    listed = [attack_named(name) for name in attacks or chosen.attacks]
    subject = open_subject(settings.second_judge, requests, batch=settings.batch)
    keyed = chosen.model_dump(include={"variants", "seeds", "iterations", "candidates", "tokens", "similarity"})
    chunk = {str(kind): min(CHUNK[kind], chosen.attempts) for kind in CHUNK}
    cache = (
        CACHE
        / "attacks"
        / subject.key("components.evaluate.attacks.campaign", seed=settings.seed, chunk=chunk, **keyed)
    )
    results, successes = {}, {}
    for request in subject.records:
        about = {
            "target": subject.records[request].request.target, "known_images": subject.content.source,
            "judge": subject.doubt(request, chosen.known),
        }  # fmt: skip
        found: dict[str, tuple[Attack, list[Outcome]]] = {}
        if not about["judge"]:
            found = run_request(subject, request, listed, chosen, settings, cache / request)
            about |= {"hook": hook_of(subject, request)}
        results[request] = about | describe(subject, request, found, chosen, settings)
        successes[request] = successes_of({key: outcomes for key, (_, outcomes) in found.items()}, cache / request)
    tried = {a.name for a in listed}
    verdict = verdict_record(
        results, chosen.gates, {n: a.tier for n, a in EVERY.items()}, sorted(tried), subject.judged
    )
    record = {"size": size or settings.size, "images": chosen.seeds, "judged": subject.judged, "requests": results}
    page = render_page(
        results, verdict, {i: r["target"] for i, r in results.items()}, successes,
        variants=[DEFAULT, *(v for v in chosen.variants if v != DEFAULT)], images=chosen.seeds,
    )  # fmt: skip
    write_text(out / RESULTS, canonical(record))
    write_text(out / PAGE, page)
    write_text(out / VERDICT, canonical(verdict))
    for line in summarise_attacks(record, verdict, out):
        log.info("%s", line)


def hook_of(subject: Subject, request: str) -> str:
    """Empty if the filter acts on plain prompts of the target; else what is wrong, which fails the verdict."""
    try:
        Victim(subject.eraser, subject.targets[request], DEFAULT).check_hook()
    except StageError as error:
        log.warning("%s", error)
        return str(error)
    return ""


def run_request(
    subject: Subject, request: str, listed: list[Attack], size: AttackSize, settings: AttackParams, folder: Path
) -> dict[str, tuple[Attack, list[Outcome]]]:
    """The outcomes of all attacks on one request, by `attack/variant`."""
    victim = Victim(subject.eraser, subject.targets[request], DEFAULT)
    campaign = Campaign(victim, subject.records[request], subject.judges, size, settings.batch, settings.seed, folder)
    found = {}
    for one in listed:
        for against in size.against if one.optimised else (DEFAULT,):
            outcomes = campaign.run(one, against)
            found[f"{one.name}/{against}"] = (one, outcomes)
            log.info(
                "attack: %s: %d of %d attempts at %s count",
                one.name,
                count(outcomes, one),
                len(outcomes),
                campaign.record.request.target,
            )
    return found


def describe(
    subject: Subject,
    request: str,
    found: dict[str, tuple[Attack, list[Outcome]]],
    size: AttackSize,
    settings: AttackParams,
) -> dict[str, object]:
    """What results.json says of one request."""
    judges = subject.examine(request, size.known) if found else {}
    known = {name: examination.known for name, examination in judges.items()}
    attacks = {
        key: {"tier": one.tier, "optimised": one.optimised}
        | rates(one, outcomes, known, size.variants, images=size.seeds)
        for key, (one, outcomes) in found.items()
    }
    return {
        "judges": {name: examination.record() for name, examination in judges.items()},
        "attacks": attacks,
        "uncounted": {key: why for key, rate in attacks.items() if (why := why_uncounted(rate))},
        "tiers": by_tier(found, known, size.variants, images=size.seeds),
        "clean": measure_clean(subject, request, size.variants, count=size.clean, seed=settings.seed) if found else {},
        "left_out": left_out(subject, request) if found else "",
    }


def left_out(subject: Subject, request: str) -> str:
    """What is not measured since the judge that decides tells the target alone; empty if nothing is."""
    seen = subject.judges[FIRST](subject.real_images(request, 1, 0))
    if isinstance(seen, Judgement):
        return ""
    return "artifact rate and selective alignment: the judge tells neither unrecognisable images nor what else is shown"


if __name__ == "__main__":
    run_stage(attack)
