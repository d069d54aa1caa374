"""What binds a verdict to what it judged: digests of the numbers, the requests and the parameters, and the gates once more."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.files import canonical
from components.common.sections import PARAMS, read_section
from components.diffusion.params import BaseParams
from components.evaluate.gates import Verdict, judge_gates, variants_of
from components.evaluate.params import EvaluateParams
from components.evaluate.summary import JOINT
from components.requests.requests import Request
from components.worlds.params import JudgeParams


def digest_of(value: object) -> str:
    """SHA-256 of plain content in its canonical form."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def requests_digest(requests: Mapping[str, Request]) -> str:
    """Digest of what is erased, by request id."""
    return digest_of({i: request.model_dump(mode="json") for i, request in requests.items()})


def params_digest(world: str, base: BaseParams, judge: JudgeParams, evaluate: EvaluateParams) -> str:
    """Digest of the sections of params.yaml that an evaluation reads."""
    sections = {"base": base, "judge": judge, "evaluate": evaluate}
    return digest_of({"world": world} | {name: each.model_dump(mode="json") for name, each in sections.items()})


def read_params_digest(path: Path = PARAMS) -> str:
    """The same of a params.yaml; `UserError` if a section is missing or does not make sense."""
    return params_digest(
        read_section("world", str, path),
        read_section("base", BaseParams, path),
        read_section("judge", JudgeParams, path),
        read_section("evaluate", EvaluateParams, path),
    )


def ordered(verdict: Mapping[str, Any]) -> str:
    """The content of a verdict.json in one form, in whichever order its gates, which follow requests.yaml, stand."""
    return canonical({**verdict, "gates": sorted(map(canonical, verdict["gates"]))})


def judge_evidence(
    metrics: Mapping[str, Any], requests: Mapping[str, Request], params: EvaluateParams, judged: Mapping[str, str]
) -> Verdict:
    """The verdict on metric records by scope: every gate for each request, and for all of them at once."""
    members = {i: [request] for i, request in requests.items()} | {JOINT: list(requests.values())}
    channels = {scope: variants_of(found) for scope, found in members.items()}
    return judge_gates(metrics, params.gates, channels, judged)
