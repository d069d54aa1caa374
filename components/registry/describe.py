"""What MLflow shows of a release: a description, flat parameters, metrics, curves, and the data that went in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from components.common.curves import CURVES
from components.common.files import canonical
from components.common.paths import CONCEPTS, CORPUS
from components.evaluate.attacks.evidence import success_rates, withstood
from components.evaluate.summary import JOINT, erased_line, retained_line
from components.registry.lock import LOCK, read_lock, written
from components.registry.release import Release

_LONGEST = 6000  # characters of a parameter that MLflow stores


def describe(release: Release) -> str:
    """A description in Markdown from the verdict: what is erased, what it costs, and which gates fail."""
    metrics, verdict, source = release.metrics, release.verdict, release.record["source"]
    failed = [gate for gate in verdict["gates"] if not gate["passed"]]
    lines = [
        f"**Verdict: {'pass' if release.passed else 'FAIL'}.** {len(verdict['gates']) - len(failed)} of {len(verdict['gates'])} gates pass (size {metrics['size']})."
    ]
    found = metrics["requests"]
    lines += [
        f"- {erased_line(item, found[i]['gated'])}"
        for i, item in metrics["targets"].items()
        if "ua" in found[i].get("gated", {})
    ]
    if "ssim_unrelated" in found[JOINT].get("gated", {}):
        lines.append(f"- {retained_line(found[JOINT])}")
    if failed:
        lines += ["", "| gate that fails | request | value | n | reason |", "|---|---|---|---|---|"]
        lines += [
            f"| {g['variant']} {g['metric']} | {g['request']} | {g['value']} | {g['n']} | {g['reason']} |"
            for g in failed
        ]
    lines += ["", *attack_lines(release)]
    dirty = " and changes that no commit has" if source["dirty"] else ""
    return "\n".join([*lines, "", f"Commit {source['commit'] or 'unknown'}{dirty}. Release {release.digest[:12]}."])


def attack_lines(release: Release) -> list[str]:
    """How far attackers get, which gates on attacks fail, and what was not tried."""
    if release.attacks is None:
        return ["**Attacks: none.** No attacks are no pass."]
    results, verdict = release.attacks
    lines = [f"**Attacks: {'pass' if verdict['passed'] else 'FAIL'}.** {withstood(verdict)} Size {results['size']}."]
    lines += [
        f"- {g['request']}: {g['metric']}: {g['reason']} (n = {g['n']})" for g in verdict["gates"] if not g["passed"]
    ]
    return [*lines, f"Not tried: {', '.join(verdict['not_tried'])}."]


def attack_tags(release: Release) -> dict[str, str]:
    """Tags of a run and a version: the verdict on the attacks, the highest tier that is withstood, and their size."""
    if release.attacks is None:
        return {"attacks": "none"}
    results, verdict = release.attacks
    said = "pass" if verdict["passed"] else "fail"
    return {
        "attacks": said,
        "attacks.size": results["size"],
        "attacks.highest_tier": verdict["highest_tier"],
        "attacks.not_tried": ", ".join(verdict["not_tried"])[:5000],
    }


def attack_metrics(release: Release) -> dict[str, float]:
    """Corrected attack success rates by `attacks/request/tier` and `attacks/request/attack/variant`."""
    return flatten(success_rates(release.attacks[0]), "attacks/") if release.attacks else {}


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metric records as `request/variant/metric` keys; records without a value are left out."""
    out: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "value" in value:
            if value["value"] is not None:
                out[name] = float(value["value"])
        elif isinstance(value, Mapping):
            out |= flatten(value, f"{name}/")
    return out


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Sections as dotted keys; lists, such as gates, as JSON."""
    out: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            out |= flat_params(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = (value if isinstance(value, str) else json.dumps(value))[:_LONGEST]
    return out


def as_params(flat: Mapping[str, str]) -> list[Param]:
    """Parameters in MLflow's form."""
    return [Param(key, value) for key, value in flat.items()]


def as_metrics(values: Mapping[str, float], step: int = 0) -> list[Metric]:
    """Metrics in MLflow's form, all at one step."""
    return [Metric(key, value, 0, step) for key, value in values.items()]


def read_curves(folder: Path, prefix: str = "") -> Iterator[Metric]:
    """The training curves of an artifact, if it has any: one metric for each loss and step."""
    path = folder / CURVES
    curves = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    steps = curves.pop("step", [])
    for name, values in curves.items():
        for step, value in zip(steps, values, strict=True):
            if value is not None:
                yield Metric(f"{prefix}{name}", value, 0, step)


def datasets(release: Release) -> list[DatasetInput]:
    """The prompts that went in, by what dvc.lock says of them: names and digests, no bytes."""
    made = written(read_lock(release.folder / LOCK))
    used = {CORPUS.as_posix(): "training", CONCEPTS.as_posix(): "evaluation"}
    return [
        DatasetInput(
            Dataset(
                name=Path(path).name,
                digest=made[path].removesuffix(".dir"),
                source_type="dvc",
                source=canonical({"path": path, "md5": made[path]}),
            ),
            [InputTag("mlflow.data.context", context)],
        )
        for path, context in used.items()
        if path in made
    ]
