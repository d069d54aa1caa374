"""The text side at full size: every stage of it on an encoder of CLIP ViT-L's shape, and the seconds that one request's filter takes to fit.

Weights are random and prompts fewer than the preset's, so that this says what the stages cost and not how well they do.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from research.record import environment, publish, table
from research.reliability.show import Row
from research.show import row
from tests.standins import build_standin

NAME = "models_size"
PACKAGES = ("expunge", "torch", "transformers", "onnxruntime")
STAGES = {
    "base": "components.diffusion.stage", "corpus": "components.collect.stage_corpus", "sae": "components.sae.stage",
    "concepts": "components.collect.stage_concepts", "features": "research.models.size", "export": "components.export.stage",
}  # fmt: skip
"""Module of each stage; `features` is run here, where its fits are timed."""
REQUESTS = (
    ("van gogh", "--kind", "style", "--alias", "vincent van gogh", "--anchor", "an impressionist oil painting"),
    ("snoopy", "--kind", "character", "--anchor", "a generic cartoon dog"),
)
SAE_STEPS = 100
MOST_SECONDS = 180


class Cost(NamedTuple):
    """Of one process."""

    seconds: float
    gib: float
    """Most resident memory."""


def smaller(count: int) -> dict[str, Any]:
    """Changes of params.yaml: `count` prompts to calibrate on, as many captions and phrases together, a short training."""
    return {
        "corpus": {"captions": 2 * count // 3, "english": count // 3, "benign": {"calibrate": count, "evaluate": 100, "real": []}},
        "concepts": {"per_name": 16, "retain": 200, "mixed": 40},
        "sae": {"steps": SAE_STEPS},
        "features": {"fpr": max(0.001, 3 / count), "fpr_all": max(0.002, 6 / count)},
    }  # fmt: skip


def run(command: list[str], folder: Path) -> Cost:
    """What a program costs; `RuntimeError` with the end of what it said if it fails."""
    begun = time.perf_counter()
    path = f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    with tempfile.TemporaryFile("w+") as said:
        program = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdout=said, stderr=said
        )
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        if program.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {program.returncode}: {said.read()[-2000:]}")
    return Cost(time.perf_counter() - begun, usage.ru_maxrss / 2**20)


def make_project(folder: Path, kind: str, count: int) -> Path:
    """A project of `expunge init` on the stand-in, with two requests for the filter."""
    base, project = build_standin(kind, folder / "base", "plain"), folder / "project"
    run(["-m", "expunge", "init", str(project), "--base", str(base)], folder)
    for words in REQUESTS:
        run(["-m", "expunge", "request", "add", *words, "--channel", "filter"], project)
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, changes in smaller(count).items():
        params[section] |= changes
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    return project


def measure_size(count: int, command: str, kind: str = "vit-l") -> list[Row]:
    """Seconds to fit one request's filter, its prompts read; all stages' seconds and memory go to research/results."""
    with tempfile.TemporaryDirectory() as work:
        project = make_project(Path(work), kind, count)
        costs = {}
        for stage, module in STAGES.items():
            costs[stage] = run(["-m", module], project)
            print(f"{stage}: {costs[stage].seconds:.0f} s, {costs[stage].gib:.1f} GiB", flush=True)  # noqa: T201
        fits = json.loads((project / FITS).read_text(encoding="utf-8"))
        parity = json.loads((project / "models/onnx/parity.json").read_text(encoding="utf-8"))
        parameters = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    found = {
        "environment": environment(PACKAGES) | {"threads": torch.get_num_threads()},
        "prompts": count,
        "sae": {key: parameters["sae"][key] for key in ("d_sae", "steps")},
        "stages": {stage: cost._asdict() for stage, cost in costs.items()},
        "seconds_to_fit": fits,
        "parity": {key: value for key, value in parity.items() if isinstance(value, int | float)},
    }
    rows = [[stage, f"{cost.seconds:.0f}", f"{cost.gib:.1f}"] for stage, cost in costs.items()]
    publish(NAME, found, table(("stage", "seconds", "GiB"), rows))
    slowest = max(fits)
    what = f"{kind}: seconds to fit the filter of one request on {count} prompts, once prompts are encoded"
    goal = f"<= {MOST_SECONDS}"
    return [row(what, round(slowest, 2), goal=goal, met=slowest <= MOST_SECONDS, command=command, n=len(fits))]


FITS = Path(".cache/fits.json")


def time_fits() -> None:
    """Stage `features` in the working directory; the seconds of each fit go to `FITS`."""
    from components.features import fit  # noqa: PLC0415 - in the child alone
    from components.features.stage import features  # noqa: PLC0415

    spent, real = [], fit.fit_own

    def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever fit_own takes
        begun = time.perf_counter()
        out = real(*given, **named)
        spent.append(time.perf_counter() - begun)
        return out

    fit.fit_own = timed
    features()
    FITS.parent.mkdir(exist_ok=True)
    FITS.write_text(json.dumps(spent), encoding="utf-8")
    print(f"{len(spent)} fits, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")  # noqa: T201


if __name__ == "__main__":
    time_fits()
