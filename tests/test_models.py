"""Every stage and command on the stand-ins of SD 1.5, 2.1 and XL, small; their images show nothing, so that this is mechanics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

from components.collect.stage_concepts import concepts
from components.collect.stage_corpus import corpus
from components.common.files import read_sidecar
from components.diffusion.stage import base
from components.evaluate.stage import evaluate
from components.export.stage import export
from components.features.stage import features
from components.filter.artifact import FORMAT
from components.guidance import recipe
from components.guidance.stage import guidance
from components.registry.lock import dvc_md5
from components.sae.stage import sae
from tests.standins import KINDS

ROOT = Path(__file__).parents[1]
HOOKPOINTS = {"sd15": "encoder.layers.1", "sd21": "encoder.layers.1", "sdxl": ["encoder.layers.1", "encoder.layers.2"]}
WIDTH = {"sd15": 32, "sd21": 40, "sdxl": 80}
REQUESTS = {
    "r-1": {"target": "cat", "kind": "object", "aliases": ["kitty", "feline"], "anchor": "dog", "neighbours": ["lion"]},
    "r-2": {"target": "ghost", "kind": "character", "aliases": ["phantom"], "channels": ["filter"]},
}
SMALL = {
    "corpus": {"captions": 120, "english": 80, "benign": {"calibrate": 120, "evaluate": 20, "real": []}},
    "concepts": {"per_name": 2, "retain": 24, "mixed": 4},
    "sae": {"d_sae": 256, "k": 16, "steps": 30, "batch": 256},
    "features": {"fpr": 0.02, "fpr_all": 0.04, "min_contrast": 0.02},
    "guidance": {"steps": 2},
    "evaluate": {"sizes": {"quick": {"templates": 1, "seeds": 1, "retain": 2}}, "size": "quick", "batch": 8},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def project(kind, standin, tmp_path_factory):
    """A project on a stand-in, with the stages up to the evaluation run in this process."""
    folder = tmp_path_factory.mktemp(f"project-{kind}")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, changes in SMALL.items():
        params[section] |= changes
    params["base"] |= {"path": str(standin(kind)), "hookpoint": HOOKPOINTS[kind], "solver_steps": 2}
    params["judge"] = {"path": str(ROOT / "assets/openmoji/judge")}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "requests.yaml").write_text(yaml.safe_dump({"requests": REQUESTS}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("TRAJECTORIES", "RETAIN_TRAJECTORIES"):
            patch.setattr(recipe, name, 8)
        for stage in (base, corpus, sae, concepts, features):
            stage()
        for request in REQUESTS:
            guidance(request)
        evaluate()
    return folder


def test_every_stage_writes_what_it_should(project, kind):
    """Digests of every part, an SAE and a filter as wide as the encoders together, an adapter, and a verdict that names the base."""
    sidecar = read_sidecar(project / "models/filter", FORMAT)
    parts = {"text_encoder", "tokenizer"} | ({"text_encoder_2", "tokenizer_2"} if kind == "sdxl" else set())

    assert set(json.loads((project / "data/base/text.json").read_text())) == parts
    assert set(json.loads((project / "data/base/image.json").read_text())) == {"scheduler", "unet", "vae"}
    assert sidecar["tensors"]["r-1.b_dec"]["shape"] == [WIDTH[kind]]
    assert parts <= set(sidecar["inputs"])
    assert sidecar["facts"]["eos_token_id"] == ([49407, 49407] if kind == "sdxl" else 49407)
    assert sidecar["facts"]["pad_token_id"] == {"sd15": 49407, "sd21": 0, "sdxl": [49407, 0]}[kind]
    assert (project / "models/guidance/r-1/pytorch_lora_weights.safetensors").is_file()
    assert set(json.loads((project / "reports/evaluate/verdict.json").read_text())["judged"]) >= {"base", "filter"}


def test_every_command_runs(project, expunge, tmp_path):
    """Draw, explain, purify, export: exit code 0, and a flagged prompt is flagged by its request."""
    said = expunge("generate", "a photo of a cat", "--output", tmp_path / "cat.png", cwd=project)
    assert (said.code, "flagged by cat" in said.out) == (0, True), said
    said = expunge("explain", "#! a cat", "--json", cwd=project)
    found = {each["request"]: each for each in json.loads(said.out)["requests"]}
    assert [found[i]["flagged"] for i in REQUESTS] == [True, False]
    drawn = tmp_path / "cat.png"
    said = expunge("purify", drawn, "--output", tmp_path / "pure.png", "--steps", 2, cwd=project)
    assert said.code == 0, said
    said = expunge("export", "diffusers", tmp_path / "out", cwd=project)
    assert said.code == 0, said
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a dog", num_inference_steps=1).images[0].size == (64, 64)
    listed = [f"reports/evaluate/{name}" for name in ("metrics.json", "verdict.json")]
    outs = [{"path": path, "md5": dvc_md5(project / path)} for path in listed]
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"evaluate": {"outs": outs}}}))
    assert expunge("verdict", "--gates", cwd=project).code == 1  # nothing that is drawn is a cat


OTHER = {"sd15": "sd21", "sd21": "sd15", "sdxl": "sd15"}


@pytest.mark.parametrize(
    "command",
    [("generate", "a cat"), ("explain", "a cat"), ("purify", "IMAGE"), ("export", "diffusers", "OUT"), ("verdict",)],
)
def test_another_base_is_refused_by_every_command(project, kind, standin, expunge, tmp_path, command):
    """After base.path names another model: one sentence, no traceback, and nothing is drawn or written."""
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["base"] |= {"path": str(standin(OTHER[kind])), "hookpoint": HOOKPOINTS[OTHER[kind]]}
    other = tmp_path / "project"
    other.mkdir()
    for name in ("models", "reports", "data", "requests.yaml"):
        (other / name).symlink_to(project / name)
    (other / "params.yaml").write_text(yaml.safe_dump(params))
    arguments = [{"IMAGE": tmp_path / "a.png", "OUT": tmp_path / "out"}.get(word, word) for word in command]
    said = expunge(*arguments, cwd=other)

    assert said.code == 3, said
    assert said.error.count("\n") == 1
    assert "was made for another" in said.error or "is of another model than" in said.error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_graph_agrees(project, monkeypatch):
    """The stage `export`: one ONNX graph of all text encoders and filters, whose decisions are torch's."""
    monkeypatch.chdir(project)
    torch.manual_seed(0)
    export()
    report = json.loads((project / "models/onnx/parity.json").read_text())

    assert report["parity"]["decisions_agree"]
    assert report["parity"]["flagged"] > 0
