import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from components.collect.concepts import make_record
from components.collect.record import write_record
from components.collect.tables import TABLE
from components.common.errors import ArtifactError, UserError
from components.common.files import digest
from components.diffusion.folder import check_folder, part_digests
from components.export.merged import check_target, write_merged
from components.guidance.adapters import LAYERS, MADE_FOR, attach, write_adapter
from components.requests.requests import load_requests
from components.worlds.load import load_world

ROOT = Path(__file__).parents[3]
ALL_OF_CROSS_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


def fabricate(pipe, folder, unet, *, seed, layers=ALL_OF_CROSS_ATTENTION, record=None):
    """An adapter with random weights, written to `folder` as one trained on `unet` for a record."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in attach(pipe.unet, "made", rank=4, seed=seed, layers=layers):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng)
    inputs = part_digests(unet.parent, MADE_FOR) | ({"concepts": digest(record)} if record else {})
    write_adapter(folder, pipe.unet, "made", params={}, inputs=inputs, facts={})
    pipe.unet.delete_adapters("made")


@pytest.fixture(params=["float32", "float16"])
def base(request, tiny_pipe, tmp_path):
    """A tiny pipeline on disk and two adapters beside it."""
    tiny_pipe.to(dtype=getattr(torch, request.param))
    tiny_pipe.save_pretrained(tmp_path / "base")
    tiny_pipe.to(dtype=torch.float32)
    for seed, name in enumerate(("r-1", "r-2")):
        fabricate(tiny_pipe, tmp_path / name, tmp_path / "base" / "unet", seed=seed)
    return tmp_path / "base"


@torch.no_grad()
def draw(folder, adapters=()):
    """What stock diffusers draws, (16, 16, 3) in [0, 1]; adapters are loaded as diffusers loads them."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True).to(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for path in adapters:
        pipe.load_lora_weights(str(path), adapter_name=path.name)
    if adapters:
        pipe.unet.set_adapter([path.name for path in adapters])
    seed = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=4, guidance_scale=4.0, generator=seed, output_type="np").images[0]


def test_merged_draws_what_base_and_adapters_draw(base, tmp_path):
    """Stock diffusers, same seed: the merged folder draws the image of base + adapters, which is not the base's."""
    adapters = {name: tmp_path / name for name in ("r-1", "r-2")}
    changed = write_merged(tmp_path / "out", base, adapters)
    wanted, found = draw(base, list(adapters.values())), draw(tmp_path / "out")
    half = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")[changed[0]].dtype == torch.float16

    assert np.abs(wanted - draw(base)).max() > 0.05
    assert np.abs(wanted - found).max() < (1e-2 if half else 1e-4)
    assert all("attn2" in name for name in changed)


def test_merged_changes_nothing_but_the_unets_weights(base, tmp_path):
    """Every other file is byte by byte the base's, and tensors keep name, shape and dtype."""
    changed = write_merged(tmp_path / "out", base, {"r-1": tmp_path / "r-1"})
    weights = Path("unet/diffusion_pytorch_model.safetensors")
    same = [p.relative_to(base) for p in base.rglob("*") if p.is_file() and p.relative_to(base) != weights]
    before, after = load_file(base / weights), load_file(tmp_path / "out" / weights)

    assert [p for p in same if (tmp_path / "out" / p).read_bytes() != (base / p).read_bytes()] == []
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}
    assert {k for k in before if not torch.equal(before[k], after[k])} == set(changed)


def test_merged_says_what_it_holds(base, tmp_path):
    """The sidecar names requests, the digests of base and adapters, and every file; same inputs give the same bytes."""
    out = tmp_path / "out"
    write_merged(out, base, {"r-1": tmp_path / "r-1"})
    first = digest(out)
    sidecar = json.loads((out / "artifact.json").read_text())
    check_folder(out)
    write_merged(out, base, {"r-1": tmp_path / "r-1"})

    assert sidecar["format"] == "expunge/merged"
    assert sidecar["requests"] == ["r-1"]
    assert sidecar["inputs"]["adapter/r-1"] == digest(tmp_path / "r-1")
    assert sidecar["inputs"]["base/model_index.json"] == digest(base / "model_index.json")
    assert digest(out) == first


def test_merged_refuses_what_is_not_its_own(base, tmp_path):
    """A folder with other things, a file, the base, and a previous export with something added are left alone."""
    out = tmp_path / "out"
    check_target(out, base)
    write_merged(out, base, {"r-1": tmp_path / "r-1"})
    check_target(out, base)
    (out / "notes.txt").write_text("mine")

    for folder, said in (
        (out, "holds notes.txt, which no export wrote; move it away"),
        (tmp_path / "r-1", "is not empty and is no previous export; name a new or empty folder"),
        (out / "notes.txt", "is a file; name a folder"),
        (out / "notes.txt" / "deep", "cannot be written; name a folder elsewhere than in"),
        (base, "lies in the base model"),
        (base / "deep", "lies in the base model"),
    ):
        with pytest.raises(UserError, match=said):
            write_merged(folder, base, {"r-1": tmp_path / "r-1"})
    assert (out / "notes.txt").read_text() == "mine"


def test_merged_altered_adapter_leaves_the_old_export(base, tmp_path):
    """An adapter that was cut short is refused, and what was exported before stays as it was."""
    out = tmp_path / "out"
    write_merged(out, base, {"r-1": tmp_path / "r-1"})
    before = digest(out)
    path = tmp_path / "r-1" / "pytorch_lora_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(ArtifactError, match="altered or cut short"):
        write_merged(out, base, {"r-1": tmp_path / "r-1"})
    assert digest(out) == before


def test_cli_export_diffusers(base, tiny_pipe, tmp_path, monkeypatch, expunge):
    """A dry run writes nothing, the command writes a folder, and a folder that is not ours is refused in one sentence."""
    params = (ROOT / "params.yaml").read_text().replace("path: assets/openmoji", f"path: {base}")
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / "requests.yaml").write_text("requests:\n  r-1: {target: cat, kind: object, anchor: dog}\n")
    record = tmp_path / "data" / "concepts" / "r-1"
    record.mkdir(parents=True)
    (record / "request.json").write_text('{"request": {"target": "cat", "kind": "object", "anchor": "dog"}}')
    fabricate(tiny_pipe, tmp_path / "models" / "guidance" / "r-1", base / "unet", seed=0, record=record)
    monkeypatch.chdir(tmp_path)
    export = partial(expunge, "export", "diffusers")
    dry = export("out", "--dry-run")
    assert dry.code == 0, dry.error
    assert dry.out.strip() == f"would write {base} without r-1 into out"
    assert not (tmp_path / "out").exists()
    done, refused = export("out", "--request", "r-1"), export("models")

    assert done.code == 0, done.error
    assert done.out.startswith("out: without r-1, ")
    assert (tmp_path / "out" / "artifact.json").is_file()
    assert refused.code == 2
    assert refused.error.strip() == (
        "expunge: models is not empty and is no previous export; name a new or empty folder"
    )


def test_cli_fuses_several_requests(base, tiny_pipe, tmp_path, monkeypatch, expunge):
    """Several adapters are fused into one, or added up if asked; what is missing or cannot be fused is refused by a dry run too."""
    params = (ROOT / "params.yaml").read_text().replace("path: assets/openmoji", f"path: {base}")
    (tmp_path / "params.yaml").write_text(params)
    asked = {"r-1": "{target: cat, kind: object, anchor: dog}", "r-2": "{target: car, kind: object, anchor: bicycle}"}
    (tmp_path / "requests.yaml").write_text("requests:\n" + "".join(f"  {i}: {text}\n" for i, text in asked.items()))
    for seed, (name, word) in enumerate({"r-1": "cat", "r-2": "car"}.items()):
        rows = [
            (name, "select", f"a {word}", (word,), "", True, False),
            (name, "select", "an owl", ("owl",), "", False, False),
        ]
        columns = ["request", "split", "prompt", "concepts", "style", "names_target", "pair"]
        table = pd.DataFrame(rows, columns=columns).assign(role="target", counterpart="", name_used="")
        folder = tmp_path / "data" / "concepts" / name
        folder.mkdir(parents=True)
        table.to_parquet(folder / TABLE)
        write_record(folder, make_record(name, load_requests(tmp_path / "requests.yaml")[name], load_world("openmoji")))
        adapter = tmp_path / "models" / "guidance" / name
        fabricate(tiny_pipe, adapter, base / "unet", seed=seed, layers=LAYERS, record=folder)
    monkeypatch.chdir(tmp_path)
    export = partial(expunge, "export")
    adapter, fused, summed = export("adapter", "one"), export("diffusers", "out"), export("diffusers", "sum", "--sum")
    for done in (adapter, fused, summed):
        assert done.code == 0, done.error
    said = {f: json.loads((tmp_path / f / "artifact.json").read_text())["facts"] for f in ("one", "out", "sum")}

    assert adapter.out.strip() == "one: one adapter that erases r-1, r-2"
    assert said["one"]["requests"] == ["r-1", "r-2"]
    assert (said["out"]["fused"], said["sum"]["fused"]) == (True, False)
    assert np.abs(draw(tmp_path / "out") - draw(tmp_path / "sum")).max() > 1e-3
    assert np.abs(draw(tmp_path / "out") - draw(base, [tmp_path / "one"])).max() < 1e-2

    prompts = tmp_path / "data" / "concepts" / "r-2" / TABLE
    prompts.rename(tmp_path / TABLE)
    absent = export("adapter", "new", "--dry-run")
    (tmp_path / TABLE).rename(prompts)
    assert absent.code == 3
    assert "prompts.parquet is missing; run the stage that writes it" in absent.error

    fabricate(tiny_pipe, tmp_path / "models" / "guidance" / "r-2", base / "unet", seed=1, record=prompts.parent)
    refused, summed = export("diffusers", "new"), export("diffusers", "new", "--sum", "--dry-run")
    assert refused.code == 2
    assert "does not change the keys and values of cross-attention alone" in refused.error
    assert summed.code == 0, summed.error
    assert not (tmp_path / "new").exists()
