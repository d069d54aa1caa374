"""An evaluation in six lines that a newcomer understands, from metrics.json and verdict.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.errors import ArtifactError
from components.common.files import key_of
from components.common.variants import DEFAULT
from components.diffusion.folder import folder_digests

METRICS, VERDICT, PAGE = "metrics.json", "verdict.json", "report.html"
JOINT = "joint"
"""The scope of all requests at once."""


def read_evaluation(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, verdict) of the last evaluation; `ArtifactError` if either is missing or no JSON."""
    out = []
    for name in (METRICS, VERDICT):
        try:
            out.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except OSError as error:
            raise ArtifactError(f"{folder / name} is missing", "run the evaluation: expunge run evaluate") from error
        except ValueError as error:
            raise ArtifactError(f"{folder / name} is not JSON", "write it again: expunge run evaluate") from error
    if not {"targets", "requests", "size"} <= set(out[0]) or not {"passed", "gates"} <= set(out[1]):
        raise ArtifactError(f"{folder} holds an evaluation of another version", "write it again: expunge run evaluate")
    return out[0], out[1]


def check_evaluated(verdict: Mapping[str, Any], base: Path) -> None:
    """`ArtifactError` unless the verdict is about the model in folder `base`, byte by byte."""
    if verdict.get("judged", {}).get("base") != key_of(folder_digests(base)):
        raise ArtifactError(f"the last evaluation is of another model than {base}", "evaluate it: expunge run evaluate")


def summarise(metrics: Mapping[str, Any], verdict: Mapping[str, Any], folder: Path) -> list[str]:
    """What was erased, what it cost, and where the page is."""
    gates = verdict["gates"]
    passed = sum(gate["passed"] for gate in gates)
    said = "pass" if verdict["passed"] else "FAIL"
    lines = [f"Verdict: {said}. {passed} of {len(gates)} gates pass (size {metrics['size']}, variant {DEFAULT})."]
    lines += [erased_line(request, metrics["requests"][i][DEFAULT]) for i, request in metrics["targets"].items()]
    first = next(iter(metrics["targets"].values()), {"target": "", "kind": "object"})
    prompt = (
        f"a castle in {first['target']} style" if first["kind"] == "style" else f"a {first['target']} beside a castle"
    )
    lines += [retained_line(metrics["requests"][JOINT]), f'Draw one: expunge generate "{prompt}"']
    return [*lines, f"Look at it: {folder / PAGE}"]


def erased_line(request: Mapping[str, str], found: Mapping[str, Any]) -> str:
    """What became of one target, such as 'cat: gone from 24 of 24 images; dog is drawn instead in 24'."""
    gone = found["ua"]
    line = f"{request['target']}: gone from {count(gone)} of {gone['n']} images"
    if request["anchor"]:
        line += f"; {request['anchor']} is drawn instead in {count(found['anchor_rate'])}"
    return f"{line}."


def retained_line(scope: Mapping[str, Any]) -> str:
    """What it cost: unrelated prompts that draw the same image, and everyday prompts that are edited by mistake."""
    same = scope[DEFAULT]["ssim_unrelated"]
    alike = "—" if same["value"] is None else f"{same['value']:.3f}"
    line = f"Unrelated prompts: images {alike} like the base's (SSIM, 1 is equal, n = {same['n']})"
    if "fpr" in scope.get("filter", {}):
        false = scope["filter"]["fpr"]
        line += f"; {count(false)} of {false['n']} everyday prompts are edited by mistake"
    return f"{line}."


def count(metric: Mapping[str, Any]) -> int:
    """Of a proportion the number of hits."""
    return round((metric["value"] or 0.0) * metric["n"])
