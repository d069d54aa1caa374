"""`expunge attack` and `expunge probe`: how far someone gets who wants the erased concept back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from components.cli.options import DryRun
from components.common.errors import UserError
from components.common.paths import CACHE
from components.requests.requests import load_requests

AnyRequest = Annotated[
    list[str] | None, typer.Option("--request", help="A request to attack; default all; repeatable.")
]


def attack(
    named: AnyRequest = None,
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="One attack; default those of the size; repeatable.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="A size of params.yaml, such as quick or full; default the one that it names.")
    ] = "",
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Attacks the erased model by text, and says how far an attacker gets; a stopped run goes on. Exits with 1 if a gate fails."""
    check_requests(named)
    from components.common.sections import read_section  # noqa: PLC0415 - slow to import
    from components.common.stage import run_stage  # noqa: PLC0415
    from components.evaluate.attacks.params import AttackParams  # noqa: PLC0415
    from components.evaluate.attacks.registry import attack_named  # noqa: PLC0415
    from components.evaluate.attacks.stage import attack as run  # noqa: PLC0415
    from components.evaluate.attacks.summary import ATTACKS, read_attacks  # noqa: PLC0415
    from components.registry.working import check_records  # noqa: PLC0415

    settings = read_section("attack", AttackParams)
    wanted = size or settings.size
    if wanted not in settings.sizes:
        raise UserError(f"--size {wanted!r} is unknown", f"use one of: {', '.join(settings.sizes)}")
    listed = [attack_named(name).name for name in attacks or settings.sizes[wanted].attacks]
    whole = not named and not attacks
    out = ATTACKS if whole else CACHE / "attacks" / "report"
    if dry_run:
        typer.echo(
            f"would run {', '.join(listed)} in size {wanted} against {', '.join(named or load_requests())} into {out}"
        )
        return
    check_records(Path(), named)
    run_stage(lambda: run(requests=named, attacks=attacks, size=size, out=out))
    verdict = read_attacks(out)[1]
    typer.echo(untried(verdict))
    raise typer.Exit(0 if verdict["passed"] else 1)


def probe(
    named: AnyRequest = None,
    probes: Annotated[
        list[str] | None, typer.Option("--probe", help="One probe; default those of the size; repeatable.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="A size of params.yaml, such as quick or full; default the one that it names.")
    ] = "",
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Probes the erased model beyond text: real images, latents, learned embeddings, fine-tuning. Exits with 1 if a gate fails."""
    check_requests(named)
    from components.common.sections import read_section  # noqa: PLC0415 - slow to import
    from components.common.stage import run_stage  # noqa: PLC0415
    from components.evaluate.probes.params import ProbeParams  # noqa: PLC0415
    from components.evaluate.probes.registry import check_probe  # noqa: PLC0415
    from components.evaluate.probes.run import PROBES_OUT, VERDICT  # noqa: PLC0415
    from components.evaluate.probes.run import probe as run  # noqa: PLC0415
    from components.registry.working import check_records  # noqa: PLC0415

    settings = read_section("probe", ProbeParams)
    wanted = size or settings.size
    if wanted not in settings.sizes:
        raise UserError(f"--size {wanted!r} is unknown", f"use one of: {', '.join(settings.sizes)}")
    listed = [check_probe(name) for name in probes or settings.sizes[wanted].probes]
    out = PROBES_OUT if not named and not probes else CACHE / "probes" / "report"
    if dry_run:
        typer.echo(
            f"would run {', '.join(listed)} in size {wanted} against {', '.join(named or load_requests())} into {out}"
        )
        return
    check_records(Path(), named)
    run_stage(lambda: run(requests=named, probes=probes, size=size, out=out))
    verdict = json.loads((out / VERDICT).read_text(encoding="utf-8"))
    for gate in verdict["gates"]:
        said = gate.get("reason") or f"{gate['probe']}: at most {gate['value']:.3f} recovered (n = {gate['n']})"
        typer.echo(f"{'pass' if gate['passed'] else 'FAIL'}  {gate['request']}  {said}")
    if verdict["not_tried"]:
        typer.echo(untried(verdict))
    raise typer.Exit(0 if verdict["passed"] else 1)


def attacks_lines(evaluated: Mapping[str, str]) -> tuple[str, bool]:
    """Lines about the last attacks, and False if they fail or are on something else than what was `evaluated`, by digest."""
    from components.evaluate.attacks.evidence import attacked_same, summary_line  # noqa: PLC0415 - slow to import
    from components.evaluate.attacks.summary import ATTACKS, PAGE, VERDICT, read_attacks  # noqa: PLC0415

    if not (ATTACKS / VERDICT).is_file():
        return "Attacks: none yet, and no release passes without: expunge attack", True
    results, verdict = read_attacks()
    if name := attacked_same(verdict["judged"], evaluated):
        return f"Attacks: FAIL. The {name} that was attacked is not the one that was evaluated: expunge attack", False
    return f"{summary_line(results, verdict, ATTACKS / PAGE)}\n{untried(verdict)}", bool(verdict["passed"])


def untried(verdict: Mapping[str, Any]) -> str:
    """A line that names every attack or probe that a verdict knows of and that was not run."""
    return f"Not tried: {', '.join(verdict['not_tried'])}."


def check_requests(named: list[str] | None) -> None:
    """`UserError` for a request that requests.yaml does not list, and where it lists none."""
    requests = load_requests()
    if unknown := [i for i in named or () if i not in requests]:
        raise UserError(f"request {unknown[0]!r} is not in requests.yaml", f"use some of: {', '.join(requests)}")
    if not requests:
        raise UserError("requests.yaml lists no request", "add one: expunge request add")
