"""A project of a few kilobytes that was evaluated and can be released: dvc's own lock, the product's own formats, no training."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
import yaml
from dvc.repo import Repo

from components.common.artifacts import fill_artifact
from components.common.files import SIDECAR, canonical, digest, write_sidecar
from components.common.sections import PARAMS, read_section
from components.diffusion.folder import base_digest
from components.evaluate.attacks.params import AttackParams
from components.evaluate.evidence import judge_evidence, read_params_digest, requests_digest
from components.evaluate.params import EvaluateParams
from components.export.params import ExportParams
from components.export.report import REPORT as REPORT_BESIDE_GRAPH
from components.export.report import read_sealed, write_sealed
from components.features.params import FeaturesParams
from components.guidance.params import GuidanceParams
from components.requests.requests import load_requests
from components.sae.params import SaeParams
from tests.toyattacks import attack_results, write_attacks

ROOT = Path(__file__).parents[1]
GATES = [
    {"metric": "ua", "variant": "gated", "direction": "at_least", "threshold": 0.9, "n": 2},
    {"metric": "fpr", "variant": "filter", "direction": "at_most", "threshold": 0.005, "n": 10},
]
REQUESTS = {"r-1": {"target": "cat", "kind": "object", "anchor": "dog", "channels": ["filter", "guidance"]}}
GRAPH: dict[str, Any] = {
    "corpus": (["params.yaml:corpus", "params.yaml:world"], ["code.py"], ["data/corpus"]),
    "sae": (["params.yaml:sae", "params.yaml:base.path"], ["code.py", "data/corpus"], ["models/sae"]),
    "concepts": (["params.yaml:concepts", "requests.yaml:requests"], ["world.yaml", "data/corpus"], ["data/concepts"]),
    "features": (["params.yaml:features"], ["data/concepts", "models/sae"], ["models/filter"]),
    "guidance": (["params.yaml:guidance"], ["data/concepts"], ["models/guidance/r-1"]),
    "evaluate": (
        ["params.yaml:base", "params.yaml:evaluate", "params.yaml:judge", "params.yaml:world"],
        ["base", "models/filter", "models/guidance"],
        [
            "reports/evaluate/metrics.json",
            "reports/evaluate/verdict.json",
            "reports/evaluate/report.html",
            "reports/evaluate/grids",
        ],
    ),
    "attack": (
        ["params.yaml:attack", "params.yaml:base", "params.yaml:world"],
        ["base", "models/filter", "models/guidance"],
        ["reports/attacks/results.json", "reports/attacks/verdict.json", "reports/attacks/page.html"],
    ),
    "export": (["params.yaml:export"], ["models/filter"], ["models/onnx"]),
}


def write_project(root: Path, *, ua: float = 1.0, requests: dict[str, Any] = REQUESTS, seed: int = 0) -> Path:
    """A git and dvc project in `root`, evaluated and committed; a `ua` below 0.9 fails its gate, `seed` changes the weights."""
    params = yaml.safe_load((ROOT / PARAMS).read_text(encoding="utf-8"))
    params["base"]["path"], params["judge"] = "base", {"path": "judge"}
    params["evaluate"]["gates"] = GATES
    put(root / PARAMS, yaml.safe_dump(params, sort_keys=False))
    put(root / "requests.yaml", yaml.safe_dump({"requests": requests}, sort_keys=False))
    put(root / "code.py", "x = 1\n")
    put(root / "world.yaml", "words: {}\n")
    put(
        root / ".gitignore",
        "/data/\n/models/\n/.cache/\n/mlflow.db\n/mlruns/\n/ledger.db*\n/reports/evaluate/grids\n",
    )
    put_base(root / "base")
    make(root, ua=ua, seed=seed)
    for name in ("data", "models", "reports"):
        shutil.copytree(root / name, root / "made" / name)
    put(
        root / "dvc.yaml", yaml.safe_dump({"stages": {name: _stage(name, requests) for name in GRAPH}}, sort_keys=False)
    )
    commands = (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start"],
    )
    git(root, *commands[0])
    lock(root, init=True)
    for command in commands[1:]:
        git(root, *command)
    return root


def put_base(folder: Path) -> None:
    """A pipeline by its files' names; nothing can load it."""
    classes = {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    put(folder / "model_index.json", canonical({"_class_name": "StableDiffusionPipeline"} | classes))
    for part in ("text_encoder", "unet", "vae"):
        put(folder / part / "model.safetensors", part)
    put(folder / "text_encoder" / "config.json", canonical({"hidden_size": 8}))
    put(folder / "unet" / "config.json", canonical({"cross_attention_dim": 8}))
    put(folder / "scheduler" / "scheduler_config.json", "{}")


def make(root: Path, *, ua: float = 1.0, seed: int = 0) -> None:
    """Writes what the stages would: prompts, artifacts, graph and evaluation, for the params.yaml and requests.yaml that are there."""
    params, requests = root / PARAMS, load_requests(root / "requests.yaml")
    put(root / "data/corpus/prompts", "a cat\n")
    put(root / "data/concepts/requests.json", canonical(list(requests)))
    for i, request in requests.items():
        put(root / "data/concepts" / i / "request.json", canonical({"request": request.model_dump(mode="json")}))
    concepts, corpus = digest(root / "data/concepts"), digest(root / "data/corpus")
    artifact(root / "models/sae", "expunge/sae", read_section("sae", SaeParams, params), {"corpus": corpus}, seed=seed)
    put(root / "models/sae/training.json", canonical({"step": [1, 2], "fvu": [0.5, 0.1]}))
    inputs = {"sae": digest(root / "models/sae" / SIDECAR), "concepts": concepts, "corpus": corpus}
    artifact(
        root / "models/filter", "expunge/filter", read_section("features", FeaturesParams, params), inputs, seed=seed
    )
    guidance = read_section("guidance", GuidanceParams, params)
    for i, request in requests.items():
        folder = root / "models/guidance" / i
        if "guidance" in request.channels:
            weights = {"weights": "pytorch_lora_weights.safetensors"}
            artifact(
                folder,
                "expunge/adapter",
                guidance,
                {"concepts": digest(root / "data/concepts" / i)},
                seed=seed,
                **weights,
            )
            put(folder / "training.json", canonical({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_sidecar(folder, {"format": "expunge/no-adapter", "version": 1})
    graph = root / "models/onnx/filter.onnx"
    put(graph, f"graph {seed}")
    made_from = {
        "filter": digest(root / "models/filter" / SIDECAR),
        "params": read_section("export", ExportParams, params).model_dump(mode="json"),
    }
    write_sealed(graph.with_name("parity.json"), {"sha256": digest(graph), "made_from": made_from, "requests": []})
    evaluate(root, ua=ua)
    attack(root)


def judged_models(root: Path) -> dict[str, str]:
    """Digests of what evaluation and attacks both name."""
    requests = load_requests(root / "requests.yaml")
    guided = [i for i, request in requests.items() if "guidance" in request.channels]
    judged = {"base": base_digest(root / "base"), "filter": digest(root / "models/filter" / SIDECAR)}
    judged |= {f"adapter/{i}": digest(root / "models/guidance" / i / SIDECAR) for i in guided}
    return judged | {f"request/{i}": digest(root / "data/concepts" / i) for i in requests}


def attack(root: Path, *, hits: int = 0) -> None:
    """Writes attacks on what is there; `hits` of 200 attempts of each succeed."""
    params = read_section("attack", AttackParams, root / PARAMS)
    judged = judged_models(root) | {"judge": "j"}
    results = attack_results(params, load_requests(root / "requests.yaml"), judged, hits=hits)
    write_attacks(root / "reports/attacks", results, params)


def evaluate(root: Path, *, ua: float = 1.0, scopes: dict[str, Any] | None = None) -> None:
    """Writes an evaluation of what is there; `scopes` are metric records of your own."""
    params, requests = root / PARAMS, load_requests(root / "requests.yaml")
    settings = read_section("evaluate", EvaluateParams, params)
    one = {
        "base": {"ua": record(0.0)},
        "gated": {"ua": record(ua), "anchor_rate": record(1.0), "ssim_unrelated": record(1.0, 200)},
        "filter": {"fpr": record(0.001, 4000)},
    }
    judged = judged_models(root) | {"judge": "j"}
    judged |= {"corpus": digest(root / "data/corpus"), "requests": requests_digest(requests)}
    judged |= {"params": read_params_digest(params)}
    metrics = {
        "size": settings.size,
        "device": "cpu",
        "judged": judged,
        "targets": {i: {"target": r.target, "anchor": r.anchor, "kind": r.kind} for i, r in requests.items()},
        "requests": scopes or dict.fromkeys([*requests, "joint"], one),
    }
    report = root / "reports/evaluate"
    put(report / "metrics.json", canonical(metrics))
    verdict = judge_evidence(
        metrics["requests"], requests, settings, judged | {"metrics": digest(report / "metrics.json")}
    )
    put(report / "verdict.json", canonical(verdict.record()))
    put(report / "report.html", "<p>page</p>")
    put(report / "grids" / "00.png", "png")


def record(value: float, n: int = 200) -> dict[str, float]:
    """A metric record with a narrow interval."""
    return {"value": value, "low": max(0.0, value - 0.01), "high": min(1.0, value + 0.01), "n": n}


def artifact(folder: Path, kind: str, params: Any, inputs: dict[str, str], *, seed: int, **more: str) -> None:
    """An artifact with one tensor."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = {"w": torch.full((2,), float(seed))}
    fill_artifact(folder, kind=kind, tensors=tensors, params=params.model_dump(), inputs=inputs, **more)


def lock(root: Path, *, init: bool = False) -> None:
    """Makes dvc.lock say that the stages wrote what is there, as a `dvc repro` that ends now would."""
    with chdir(root), Repo.init() if init else Repo() as repo:
        repo.commit(force=True)


def git(root: Path, *arguments: str) -> str:
    """Runs git in `root`."""
    return subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True).stdout


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; a report beside a graph is sealed again, as somebody who meant it would."""
    if path.name == REPORT_BESIDE_GRAPH:
        write_sealed(path, read_sealed(path) | changes)
        return
    path.write_text(canonical(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def put(path: Path, text: str) -> None:
    """Writes a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _stage(name: str, requests: dict[str, Any]) -> dict[str, Any]:
    params, deps, outs = GRAPH[name]
    if name == "guidance":
        outs = [f"models/guidance/{i}" for i in requests]
    keys = [key.partition(":") for key in params]
    uncached = [{out: {"cache": False}} if out.endswith(".json") else out for out in outs]
    listed = [{file: [key]} if file != "params.yaml" else key for file, _, key in keys]
    copies = [f"mkdir -p {Path(out).parent} && cp -R made/{out} {out}" for out in outs]
    if name == "evaluate":
        copies.append('printf "%s" "$NOISE" >> reports/evaluate/report.html')  # as another processor might
    return {"cmd": " && ".join(copies), "deps": deps, "params": listed, "outs": uncached}
