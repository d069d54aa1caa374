"""Accelerator memory: what is calculated is what a stand-in takes, and the presets fit."""

import json
import struct

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from components.cli.memory import GIB, LIMIT, READ, TRACED, adapter_bytes, needs, reading_bytes, weight_bytes
from components.cli.presets import PRESETS, put
from components.common.closure import ROOT
from components.diffusion.inspect import NAMES, inspect_base
from components.diffusion.load import load_pipeline
from components.diffusion.text import load_towers
from components.guidance.adapters import attach
from components.guidance.recipe import trajectory_batch
from research.models.memory import UNETS, VAE, Live, add_adapter, drawing_bytes, line, training_bytes
from tests.fakefolder import fake_pipeline
from tests.standins import KINDS

PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}
"""Of the published U-Nets."""
ENCODERS = {"sd15": ((768, 12, 12),), "sd21": ((1024, 23, 16),), "sdxl": ((768, 12, 12), (1280, 32, 20))}


def write_shapes(part, module):
    """A safetensors file of a part whose header has the module's tensors, and no data."""
    (old,) = part.glob("*.safetensors")
    head = json.dumps(
        {n: {"dtype": "F16", "shape": list(t.shape), "data_offsets": [0, 0]} for n, t in module.state_dict().items()}
    ).encode()
    old.write_bytes(struct.pack("<Q", len(head)) + head)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """By family the folder of the published model: its configurations and the headers of its weights."""
    folders = {}
    for family in NAMES:
        folder = folders[family] = fake_pipeline(tmp_path_factory.mktemp(family), family)
        with torch.device("meta"):
            write_shapes(folder / "unet", UNet2DConditionModel(**UNETS[family]))
            write_shapes(folder / "vae", AutoencoderKL(**VAE))
            for number, (width, layers, heads) in enumerate(ENCODERS[family]):
                config = CLIPTextConfig(
                    vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                    num_attention_heads=heads, projection_dim=width,
                )  # fmt: skip
                encoder = CLIPTextModelWithProjection(config) if number else CLIPTextModel(config)
                write_shapes(folder / ("text_encoder_2" if number else "text_encoder"), encoder)
    return folders


def preset(family, **changes):
    """The sections of params.yaml under a preset, with changes by section and key."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for value in PRESETS[family]:
        put(params[value.section], value.key, value.value)
    for key, value in changes.items():
        section, _, rest = key.partition("__")
        put(params[section], rest.replace("__", "."), value)
    return params


@pytest.mark.parametrize("family", list(NAMES))
def test_traced_architectures_are_the_published_ones(published, family):
    """The configurations that were traced have as many parameters as the published U-Nets."""
    assert weight_bytes(published[family] / "unet") == 4 * PARAMETERS[family]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_adapters_are_counted_to_the_byte(standin, kind):
    """Of every part the files that are opened, among others beside them; of an adapter weights, gradients and moments after a step."""
    folder, pipe = standin(kind), load_pipeline(standin(kind))
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            assert weight_bytes(folder / name) == sum(p.numel() * 4 for p in part.parameters()), name
    parameters = attach(pipe.unet, "r", rank=2)
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    held = [*parameters, *(p.grad for p in parameters), *moments]
    assert adapter_bytes(folder / "unet", 2) == sum(t.nbytes for t in held)


@pytest.mark.parametrize("kind", ["sdxl", pytest.param("sd15", marks=pytest.mark.slow)])
def test_passes_take_what_is_calculated(standin, kind):
    """On a stand-in with values and PEFT's adapter a step and a pass take, within 5 %, what the line through two traces without values says."""
    unet = load_pipeline(standin(kind)).unet
    with FakeTensorMode():
        traced = UNet2DConditionModel(**unet.config).requires_grad_(False)
        drawing = line(lambda rows: drawing_bytes(traced, rows), (16, 64), unit=1)
        add_adapter(traced, rank=2)
        training = line(lambda rows: training_bytes(traced, rows), (16, 64), unit=1)
    drawn = drawing_bytes(unet, 32)
    attach(unet, "r", rank=2)
    trained = training_bytes(unet, 32)
    assert drawn == pytest.approx(drawing.fixed + 32 * drawing.row, rel=0.05)
    assert trained == pytest.approx(training.fixed + 32 * training.row, rel=0.05)
    unet.disable_gradient_checkpointing()
    assert trained < training_bytes(unet, 32, checkpointing=False, bf16=False)


def test_reading_prompts_takes_no_more_than_is_calculated(standin):
    """The encoders of a stand-in of SDXL read a batch: less than the bound, and more than a third of it."""
    folder, prompts = standin("sdxl"), ["a cat"] * READ
    towers = load_towers(folder)
    with Live() as live:
        for tower in towers.all:
            live.know(tower.encoder.parameters())
        towers.encode(prompts)
    bound = reading_bytes(inspect_base(str(folder)))
    assert bound / 3 < live.peak <= bound


@pytest.mark.parametrize("family", list(NAMES))
def test_presets_fit(published, family):
    """Everything that a preset runs fits 24 GiB, and its batches are the largest powers of two up to 8 that do."""
    model = inspect_base(str(published[family]))
    found = needs(model, preset(family))
    assert [need.sentence() for need in found if need.bytes > LIMIT] == []
    assert max(need.bytes for need in found) > LIMIT / 3  # the weights are in it
    batch = preset(family)["evaluate"]["batch"]
    if batch < 8:
        more = needs(model, preset(family, evaluate__batch=2 * batch))
        assert [need.what for need in more if need.bytes > LIMIT] == [f"evaluate.batch: {2 * batch}"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluate__batch": 64}, "evaluate.batch: 64 needs {} GiB of accelerator memory (calculated), more than 24: lower it to "),
        (
            {"guidance__gradient_checkpointing": False},
            "training an adapter needs {} GiB of accelerator memory (calculated), more than 24: set guidance.gradient_checkpointing: true",
        ),
        (
            {"probe__sizes__quick__probes": ["relearning"]},
            "relearning of probe needs {} GiB of accelerator memory (calculated), more than 24: leave it out of probe.sizes.quick.probes",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(published, changes, said):
    """It names the work, how much it needs, and what to lower."""
    (need,) = [n for n in needs(inspect_base(str(published["sdxl"])), preset("sdxl", **changes)) if n.bytes > LIMIT]
    assert need.sentence().startswith(said.format(f"{need.bytes / GIB:.1f}"))


def test_init_and_check_say_what_is_needed(published, expunge, tmp_path):
    """`expunge init` prints the memory of its preset and what it leaves out for want of it, and `base check` what the project's parameters have come to need."""
    said = expunge("init", "project", "--base", published["sdxl"], cwd=tmp_path)
    assert said.code == 0, said.error
    assert "training an adapter needs " in said.out
    assert "more than 24" not in said.out
    assert (
        "never run by any size in params.yaml: unlearn-diff-atk, p4d, classifier-guidance, textual-inversion, "
        "relearning; verdicts name" in said.out
    )
    path = tmp_path / "project" / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["evaluate"]["batch"] = 100
    path.write_text(yaml.safe_dump(params))
    said = expunge("base", "check", published["sdxl"], cwd=tmp_path / "project")
    assert "evaluate.batch: 100 needs " in said.out
    assert "more than 24: lower it to 3" in said.out


def test_trajectories_at_once_are_bounded():
    """As many as ever for small latents, and fewer the larger they are, at least one."""
    assert [trajectory_batch(side) for side in (8, 16, 32, 64, 96, 128, 1024)] == [48, 48, 48, 16, 7, 4, 1]


@pytest.mark.slow
@pytest.mark.parametrize("family", list(NAMES))
def test_the_lines_are_those_of_a_trace(family):
    """What the product calculates with is what `python -m research.models memory` traces."""
    from research.models.memory import trace

    assert trace(family) == TRACED[family]
