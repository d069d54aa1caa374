"""Whether the attacks that a release carries are attacks on what it holds, and their verdict follows from their results.

report/attacks/verdict.json ──► results.json, the gates of its size in params.yaml         made again
report/attacks/results.json ──► base, filter, adapters and records that the evaluation judged    by digest
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.errors import ArtifactError
from components.common.sections import PARAMS, read_section
from components.evaluate.attacks.evidence import attacked_same, follows, wanted_attacks
from components.evaluate.attacks.params import AttackParams
from components.evaluate.attacks.summary import RESULTS, VERDICT, read_attacks
from components.requests.requests import Request

REPORT = "report/attacks"
_AGAIN = "attack what is there: dvc repro attack"


def check_attacked(folder: Path, requests: Mapping[str, Request], judged: Mapping[str, str]) -> None:
    """`ArtifactError`, in one sentence, unless the release in `folder` carries attacks on what its evaluation `judged`."""
    results, verdict = read_attacks(folder / REPORT)
    try:
        _check(results, verdict, read_section("attack", AttackParams, folder / PARAMS), requests, judged)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{REPORT}/{RESULTS} has no {error} where attacks write it", _AGAIN) from error


def _check(
    results: Mapping[str, Any],
    verdict: Mapping[str, Any],
    params: AttackParams,
    requests: Mapping[str, Request],
    judged: Mapping[str, str],
) -> None:
    if not verdict["gates"]:
        raise ArtifactError(f"{REPORT}/{VERDICT} has no gate, and no evidence is no pass", "list some in attack.sizes")
    if results["judged"] != verdict["judged"]:
        raise ArtifactError(f"{REPORT}/{RESULTS} and {VERDICT} are of two runs", _AGAIN)
    if name := attacked_same(results["judged"], judged):
        raise ArtifactError(f"the {name} that was attacked is not the one that was evaluated", _AGAIN)
    if other := sorted(set(results["requests"]).symmetric_difference(requests)):
        raise ArtifactError(f"the attacks and requests.yaml disagree on {other[0]}", _AGAIN)
    if results["size"] != params.size:
        raise ArtifactError(f"the attacks have size {results['size']}, not {params.size}", _AGAIN)
    size = params.sizes[params.size]
    if results["images"] != size.seeds:
        raise ArtifactError(f"each attempt was {results['images']} images, not {size.seeds}", _AGAIN)
    for request, found in results["requests"].items():
        wanted = (
            set() if found.get("judge") else wanted_attacks(size)
        )  # a judge that tells nothing: no attack ran, the gates fail
        if other := sorted(wanted.symmetric_difference(found["attacks"])):
            raise ArtifactError(f"the attacks on {request} and attack.sizes disagree on {other[0]}", _AGAIN)
    if not follows(verdict, results, params):
        raise ArtifactError(
            f"{REPORT}/{VERDICT} does not follow from {RESULTS} and the gates", "restore it: dvc checkout"
        )
