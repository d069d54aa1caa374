"""Whether what a command reads in the working tree belongs together: as the registry asks of a release, before there is one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from components.common.errors import ArtifactError
from components.common.files import SIDECAR, digest, read_sidecar
from components.common.paths import CONCEPTS, EVALUATE, FILTER, GUIDANCE
from components.common.sections import PARAMS, read_section, read_yaml
from components.common.variants import Variant
from components.diffusion.folder import FORMAT
from components.diffusion.params import BaseParams
from components.evaluate.attacks.params import AttackParams
from components.evaluate.attacks.summary import ATTACKS, read_attacks
from components.evaluate.attacks.summary import RESULTS as ATTACK_RESULTS
from components.evaluate.attacks.summary import VERDICT as ATTACK_VERDICT
from components.evaluate.attacks.verdict import highest_tier, judge_attacks
from components.evaluate.evidence import judge_evidence, ordered, read_params_digest, requests_digest
from components.evaluate.params import EvaluateParams
from components.evaluate.summary import METRICS, VERDICT, read_evaluation
from components.registry.lock import LOCK, check_written, dvc_md5, read_lock
from components.requests.requests import REQUESTS, Request, load_requests

_ADAPTER, _FILTER = "expunge/adapter", "expunge/filter"
_RECORD = "request.json"
_CODE = (".py", ".yaml", "code.json")
_AGAIN, _ALTERED = "evaluate them: expunge retrain", "it was altered: git checkout, or dvc checkout"


def check_evidence(root: Path, judged: Mapping[str, str]) -> None:
    """`ArtifactError` unless evaluation and attacks in `root` are what their stages wrote, and of what lies there now.

    `judged` is what the evaluation's verdict names. Attacks that never ran are no evidence that could be wrong.
    """
    check_written(root, (EVALUATE / METRICS, EVALUATE / VERDICT))
    check_base(root)
    check_read(root, "evaluate")
    if judged.get("requests") != requests_digest(load_requests(root / REQUESTS)):
        raise ArtifactError(f"the last evaluation is of other requests than {REQUESTS} lists", _AGAIN)
    if judged.get("params") != read_params_digest(root / PARAMS):
        raise ArtifactError(f"the last evaluation had other parameters than {PARAMS} has", _AGAIN)
    metrics, verdict = read_evaluation(root / EVALUATE)
    listed = load_requests(root / REQUESTS)
    params = read_section("evaluate", EvaluateParams, root / PARAMS)
    again = judge_evidence(metrics["requests"], listed, params, verdict["judged"])
    if ordered(again.record()) != ordered(verdict):
        raise ArtifactError(f"{EVALUATE / VERDICT} does not follow from {METRICS} and the gates", _ALTERED)
    if (root / ATTACKS / ATTACK_VERDICT).is_file() or "attack" in read_lock(root / LOCK):
        check_written(root, (ATTACKS / ATTACK_RESULTS, ATTACKS / ATTACK_VERDICT))
        check_params(root, "attack", "attacks")
        _check_attacks(*read_attacks(root / ATTACKS), read_section("attack", AttackParams, root / PARAMS), listed)


def _check_attacks(
    results: Mapping[str, Any], verdict: Mapping[str, Any], params: AttackParams, requests: Iterable[str]
) -> None:
    """The attacks are on these requests, and what the verdict says of them follows from the results; its `not_tried` is a list of names."""
    try:
        gates = params.sizes[results["size"]].gates
        judged = judge_attacks(results["requests"], gates)
        again = {
            "passed": bool(judged) and all(gate.passed for gate in judged), "judged": results["judged"],
            "highest_tier": highest_tier(results["requests"], gates, judged), "gates": [g._asdict() for g in judged],
        }  # fmt: skip
        follows = ordered({**verdict, **again}) == ordered(verdict) and set(results["requests"]) == set(requests)
    except (LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{ATTACKS / ATTACK_RESULTS} has no {error} where attacks write it", "attack again: expunge run attack") from error  # fmt: skip
    if not follows:
        raise ArtifactError(f"{ATTACKS / ATTACK_VERDICT} does not follow from {ATTACK_RESULTS} and the gates", _ALTERED)


def check_params(root: Path, stage: str, what: str) -> None:
    """`ArtifactError` for a parameter of a stage that is not in params.yaml what it was when the stage ran, as dvc.lock says."""
    now = read_yaml(root / PARAMS)
    for key, then in read_lock(root / LOCK).get(stage, {}).get("params", {}).get(PARAMS.name, {}).items():
        value: Any = now
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value != then:
            raise ArtifactError(f"the last {what} had other parameters ({key}) than {PARAMS} has", f"run them again: expunge run {stage}")  # fmt: skip


def check_read(root: Path, stage: str) -> None:
    """`ArtifactError` for something that `stage` read, code aside, and that is not what it was then, byte by byte, as dvc.lock says.

    What is not there cannot be taken for what was read: a fresh clone has no models yet.
    """
    for dep in read_lock(root / LOCK).get(stage, {}).get("deps", ()):
        path = root / dep["path"]
        if not path.name.endswith(_CODE) and path.exists() and dvc_md5(path) != dep.get("md5"):
            raise ArtifactError(
                f"{dep['path']} is not what stage {stage} read (dvc.lock)",
                "restore it with dvc checkout or git checkout, or run: expunge retrain",
            )


def check_note(base: Path) -> None:
    """`ArtifactError` for a base's sidecar, where it has one, that cannot be read."""
    if (base / SIDECAR).is_file():
        read_sidecar(base, FORMAT)


def check_base(root: Path) -> None:
    """`ArtifactError` for a base with a sidecar, such as the one that ships, in which a byte changed since stage `base` read it.

    Other bases can be large: the digests of their parts, which the artifacts name, are all that is looked at.
    """
    if (root / LOCK).is_file() and (root / read_section("base", BaseParams, root / PARAMS).path / SIDECAR).is_file():
        check_read(root, "base")


def check_trained(root: Path, requests: Iterable[str] | None = None, variant: Variant | None = None) -> None:
    """`ArtifactError` for what `variant` takes of `requests`, or of all in requests.yaml, and that was altered or made for another request.

    Unknown requests are somebody else's to refuse. Where models alone were pulled nothing says what they were made for.
    """
    wanted = _chosen(root, requests)
    if variant == "base":
        return
    check_records(root, wanted)
    if (root / CONCEPTS).is_dir() and variant != "guidance":
        _check_filter(root)
    for request_id, request in wanted.items():
        if "guidance" in request.channels and variant != "filter":
            _check_adapter(root, request_id)


def check_records(root: Path, requests: Iterable[str] | None = None) -> None:
    """`ArtifactError` where requests.yaml says something else of a request than the records that its models were made from."""
    for request_id, request in _chosen(root, requests).items() if (root / CONCEPTS).is_dir() else ():
        _check_record(root, request_id, request)


def _chosen(root: Path, requests: Iterable[str] | None) -> dict[str, Request]:
    chosen = None if requests is None else set(requests)
    return {i: request for i, request in load_requests(root / REQUESTS).items() if chosen is None or i in chosen}


def _check_record(root: Path, request_id: str, request: Request) -> None:
    path = CONCEPTS / request_id / _RECORD
    try:
        recorded = Request.model_validate(json.loads((root / path).read_text(encoding="utf-8"))["request"])
    except FileNotFoundError as error:
        fact = f"nothing was made for request {request_id} ({request.target!r})"
        raise ArtifactError(fact, "train it: expunge retrain") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(f"{path} is no record of a request", "write it again: dvc repro concepts") from error
    if recorded != request:
        raise ArtifactError(
            f"{REQUESTS} says something else of request {request_id} ({request.target!r}) than what its models were made for "
            f"({recorded.target!r})",
            "undo the edit, or train what it says now: expunge retrain",
        )


def _check_filter(root: Path) -> None:
    """The filter, where there is one, is of the requests that data/concepts describes."""
    if (root / FILTER / SIDECAR).is_file():
        inputs = read_sidecar(root / FILTER, _FILTER)["inputs"]
        if inputs.get("concepts") != digest(root / CONCEPTS):
            raise ArtifactError(f"{FILTER} was fitted to other requests than {CONCEPTS} describes", "fit it again: expunge run features")  # fmt: skip


def _check_adapter(root: Path, request_id: str) -> None:
    folder = GUIDANCE / request_id
    remedy = f"restore it with dvc checkout, or train it: expunge run guidance@{request_id}"
    sidecar = read_sidecar(root / folder, _ADAPTER)
    record = root / CONCEPTS / request_id  # not where models alone were pulled
    if record.is_dir() and sidecar["inputs"].get("concepts") != digest(record):
        raise ArtifactError(f"{folder} was trained for another request than {CONCEPTS / request_id} describes", remedy)
    weights = folder / sidecar["weights"]["file"]
    if digest(root / weights) != sidecar["weights"]["sha256"]:
        raise ArtifactError(f"{weights} was altered or cut short", remedy)
