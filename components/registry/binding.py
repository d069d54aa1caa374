"""Whether what stands in a release belongs together: the verdict judged these bytes, and dvc.lock says that they were made so.

    verdict.json ──► metrics.json, requests.yaml, params.yaml, filter, adapters      by digest, and the gates judged again
    parity.json  ──► filter.onnx, filter
    artifact.json ──► params.yaml, its own weights
    attacks/      ──► what the verdict judged                                        components/registry/attacked.py
    dvc.lock     ──► every file that a stage wrote, params.yaml, requests.yaml

Each rule reads the release's own bytes, so that nothing that happens in the working tree meanwhile can come between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.errors import ArtifactError
from components.common.files import SIDECAR, digest, read_sidecar
from components.common.paths import CONCEPTS, EVALUATE, GUIDANCE, ONNX, SAE
from components.common.paths import FILTER as FILTER_PATH
from components.common.sections import PARAMS, Section, read_section, read_yaml
from components.diffusion.folder import base_digest
from components.diffusion.params import BaseParams
from components.evaluate.attacks.summary import ATTACKS
from components.evaluate.evidence import judge_evidence, ordered, read_params_digest, requests_digest
from components.evaluate.params import EvaluateParams
from components.evaluate.summary import METRICS, VERDICT, read_evaluation
from components.export.params import ExportParams
from components.export.report import REPORT as GRAPH_REPORT
from components.export.report import read_sealed
from components.features.params import FeaturesParams
from components.guidance.params import GuidanceParams
from components.registry import attacked
from components.registry.lock import LOCK, dvc_md5, read_lock, written
from components.requests.requests import REQUESTS, Request, load_requests
from components.sae.params import SaeParams

FILTER, ADAPTERS, GRAPH, REPORT = "filter", "adapters", "onnx", "report"
FILTER_FORMAT, ADAPTER_FORMAT, SAE_FORMAT = "expunge/filter", "expunge/adapter", "expunge/sae"
_AGAIN = "evaluate what is there: dvc repro evaluate"
_STALE = "make it again: dvc repro"


def places(requests: Mapping[str, Request]) -> dict[str, str]:
    """Where the parts of a release come from in the working tree: path there by path in the release."""
    guided = [i for i, request in requests.items() if "guidance" in request.channels]
    adapters = {f"{ADAPTERS}/{i}": (GUIDANCE / i).as_posix() for i in guided}
    return {FILTER: FILTER_PATH.as_posix(), **adapters, GRAPH: ONNX.as_posix(), REPORT: EVALUATE.as_posix()} | {
        attacked.REPORT: ATTACKS.as_posix()
    }


def check_bound(folder: Path) -> None:
    """`ArtifactError` or `UserError`, in one sentence, for the first thing in a release that does not belong to the rest."""
    metrics, verdict = read_evaluation(folder / REPORT)
    requests = load_requests(folder / REQUESTS)
    _check_verdict(folder, metrics, verdict, requests)
    _check_artifact(folder / FILTER, FILTER_FORMAT, folder / PARAMS, "features", FeaturesParams)
    for i, request in requests.items():
        if "guidance" in request.channels:
            _check_artifact(folder / ADAPTERS / i, ADAPTER_FORMAT, folder / PARAMS, "guidance", GuidanceParams)
    _check_graph(folder, verdict["judged"]["filter"], requests)
    attacked.check_attacked(folder, requests, verdict["judged"])
    _check_lock(folder, requests)


def _check_verdict(
    folder: Path, metrics: Mapping[str, Any], verdict: Mapping[str, Any], requests: Mapping[str, Request]
) -> None:
    """The verdict names what lies there, and follows from the metrics and the gates."""
    if not verdict["gates"]:
        raise ArtifactError(f"{VERDICT} has no gate, and no evidence is no pass", "list some in params.yaml: evaluate")
    judged, found = verdict.get("judged") or {}, _judged(folder, requests)
    named = {name for name in judged if name in found or name.startswith("adapter/")}
    for name in sorted(named | found.keys()):
        if judged.get(name) != found.get(name):
            raise ArtifactError(f"{name} is not what the evaluation judged", _AGAIN)
    asked = {f"request/{i}" for i in requests} | {"base", "judge", "corpus"}
    if other := sorted((asked - judged.keys()) | {n for n in judged.keys() - asked if n.startswith("request/")}):
        raise ArtifactError(f"{VERDICT} and requests.yaml disagree on {other[0]}", _AGAIN)
    if metrics.get("judged") != {name: sha for name, sha in judged.items() if name != "metrics"}:
        raise ArtifactError(f"{METRICS} and {VERDICT} are of two evaluations", _AGAIN)
    params = read_section("evaluate", EvaluateParams, folder / PARAMS)
    if metrics["size"] != params.size:
        raise ArtifactError(f"the evaluation has size {metrics['size']}, not {params.size}", _AGAIN)
    if ordered(judge_evidence(metrics["requests"], requests, params, judged).record()) != ordered(verdict):
        raise ArtifactError(f"{VERDICT} does not follow from {METRICS} and the gates", "it was altered: dvc checkout")


def _judged(folder: Path, requests: Mapping[str, Request]) -> dict[str, str]:
    """What the verdict must say of what lies in the release."""
    adapters = {i: folder / ADAPTERS / i for i, request in requests.items() if "guidance" in request.channels}
    return {
        "metrics": digest(folder / REPORT / METRICS),
        "requests": requests_digest(requests),
        "params": read_params_digest(folder / PARAMS),
        "filter": digest(folder / FILTER / SIDECAR),
    } | {f"adapter/{i}": digest(adapter / SIDECAR) for i, adapter in adapters.items()}


def _check_artifact(folder: Path, kind: str, params: Path, section: str, owner: type[Section]) -> None:
    """Weights as their sidecar says, made with the parameters that stand in `params`."""
    sidecar = read_sidecar(folder, kind)
    named = sidecar["weights"]
    if not (folder / named["file"]).is_file() or digest(folder / named["file"]) != named["sha256"]:
        raise ArtifactError(f"{folder.name}/{named['file']} is not what its sidecar says", "restore it: dvc checkout")
    wanted = read_section(section, owner, params).model_dump(mode="json")
    if other := sorted(
        k for k in wanted.keys() | sidecar["params"].keys() if wanted.get(k) != sidecar["params"].get(k)
    ):
        said = f"{section}.{other[0]} was {sidecar['params'].get(other[0])} when {folder.name} was made"
        raise ArtifactError(f"{said}, and params.yaml says {wanted.get(other[0])}", "make it again: dvc repro --force")


def _check_graph(folder: Path, filter_digest: str, requests: Mapping[str, Request]) -> None:
    """The ONNX graph was made from the filter that was judged, and is the one that was compared with torch."""
    path = folder / GRAPH / GRAPH_REPORT
    report = read_sealed(path)
    made_from, compared, graph = report.get("made_from", {}), report.get("sha256", ""), path.with_name("filter.onnx")
    if graph.exists() != (compared is not None) or (compared is not None and digest(graph) != compared):
        raise ArtifactError("filter.onnx is not the graph of its parity.json", "export again: dvc repro export")
    if compared is None and any("filter" in request.channels for request in requests.values()):
        raise ArtifactError("there is no graph, and a request has a filter", "export again: dvc repro export")
    if made_from.get("filter") != filter_digest:
        raise ArtifactError(
            "filter.onnx was not made from the filter that was judged", "export again: dvc repro export"
        )
    if made_from.get("params") != read_section("export", ExportParams, folder / PARAMS).model_dump(mode="json"):
        raise ArtifactError("filter.onnx was made with another section export", "export again: dvc repro export")


def _check_lock(folder: Path, requests: Mapping[str, Request]) -> None:
    """dvc.lock names the bytes that lie there, and the parameters and requests that stand in their files."""
    stages = read_lock(folder / LOCK)
    outs, content = written(stages), {str(name): read_yaml(folder / name) or {} for name in (PARAMS, REQUESTS)}
    origin = places(requests)
    for path, md5 in outs.items():
        for part, source in origin.items():
            if (path == source or path.startswith(f"{source}/")) and md5 != _md5(folder / part, path[len(source) :]):
                raise ArtifactError(f"{path} is not what its stage wrote (dvc.lock)", "restore it: dvc checkout")
    for name, stage in stages.items():
        for file, keys in stage.get("params", {}).items():
            for key, value in keys.items():
                if _at(content.get(file, {}), key) != value:
                    raise ArtifactError(f"stage {name} ran with another {key} than {file} has", _STALE)


def check_tree(root: Path, folder: Path) -> None:
    """What a release does not carry but was made from: base, autoencoder, prompts and records in the working tree `root`."""
    judged = read_evaluation(folder / REPORT)[1]["judged"]
    base = read_section("base", BaseParams, folder / PARAMS)
    if base_digest(root / base.path) != judged["base"]:
        raise ArtifactError(f"{base.path} is not the base that was judged", _AGAIN)
    for i, request in load_requests(folder / REQUESTS).items():
        if digest(root / CONCEPTS / i) != judged[f"request/{i}"]:
            raise ArtifactError(f"{CONCEPTS / i} is not what the evaluation judged", _AGAIN)
        if Request.model_validate(_json(root / CONCEPTS / i / "request.json").get("request")) != request:
            raise ArtifactError(f"{CONCEPTS / i} is the record of another request", _STALE)
    made_from = read_sidecar(folder / FILTER, FILTER_FORMAT)["inputs"]
    _check_artifact(root / SAE, SAE_FORMAT, folder / PARAMS, "sae", SaeParams)
    if digest(root / SAE / SIDECAR) != made_from["sae"]:
        raise ArtifactError(f"{SAE} is not the autoencoder that the filter was fitted on", _STALE)
    if digest(root / CONCEPTS) != made_from["concepts"]:
        raise ArtifactError(f"{CONCEPTS} is not what the filter was fitted on", _STALE)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or is not JSON", _STALE) from error
    return content if isinstance(content, dict) else {}


def _md5(part: Path, rest: str) -> str | None:
    path = part / rest.strip("/")
    return dvc_md5(path) if path.exists() else None


def _at(content: Any, key: str) -> Any:  # noqa: ANN401 - YAML
    """The value of a dotted key, None where there is none."""
    for name in key.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content
