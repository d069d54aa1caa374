"""What a model is, and one sentence for each that cannot be opened, before a weight is read."""

import ast
import json
import shlex

import pytest

from components.common.errors import UserError
from components.diffusion.inspect import inspect_base
from tests.fakefolder import fake_pipeline, write_header, write_json


@pytest.mark.parametrize(
    ("family", "layers", "widths", "side", "prediction"),
    [
        ("sd15", (12,), (768,), 512, "epsilon"),
        ("sd21", (23,), (1024,), 768, "v_prediction"),
        ("sdxl", (12, 32), (768, 1280), 1024, "epsilon"),
    ],
)
def test_each_family_is_recognised(tmp_path, family, layers, widths, side, prediction):
    """Family, encoders, size and prediction are read from the configurations."""
    found = inspect_base(str(fake_pipeline(tmp_path / "m", family)))

    assert (found.family, found.layers, found.widths, found.side, found.prediction) == (
        family, layers, widths, side, prediction,
    )  # fmt: skip
    assert found.notes == ()
    assert f"images of {side} × {side} pixels" in found.lines()[0]


def test_a_variant_alone_is_said(tmp_path):
    """A folder with fp16 files alone is opened, and that is said; beside plain ones nothing is; shards are plain."""
    found = inspect_base(str(fake_pipeline(tmp_path / "m", variant=".fp16")))
    assert found.notes[0] == "text_encoder: the fp16 variant alone is there; it is opened as float32"
    fake_pipeline(tmp_path / "m")
    assert inspect_base(str(tmp_path / "m")).notes == ()
    shards = fake_pipeline(tmp_path / "s", variant="-00001-of-00002")
    assert inspect_base(str(shards)).notes == ()


def kind(path, name):
    """The folder says that it is another pipeline."""
    write_json(fake_pipeline(path) / "model_index.json", {"_class_name": name})


def narrow(path):
    """A U-Net of another width."""
    unet = fake_pipeline(path) / "unet" / "config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"cross_attention_dim": 1024}))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda p: kind(p, "StableDiffusion3Pipeline"),
            "is a StableDiffusion3Pipeline, which is not supported; use a Stable",
        ),
        (
            lambda p: kind(p, "FluxPipeline"),
            "is a FluxPipeline, which is not supported; use a StableDiffusionPipeline or",
        ),
        (
            lambda p: write_json(p / "config.json", {"_class_name": "AutoencoderKL"}),
            "is one part of a pipeline alone (AutoencoderKL); name",
        ),
        (lambda p: (p.mkdir(), (p / "model.ckpt").write_bytes(b"x")), "is a folder of pickles, which are not opened"),
        (lambda p: p.mkdir(), "is no diffusers pipeline (it has no model_index.json); name the folder that has one"),
        (
            lambda p: fake_pipeline(p, suffix=".bin"),
            "text_encoder holds pickles alone, which are not opened; if you trust",
        ),
        (
            narrow,
            "the U-Net of {p} reads states of width 1024, its text encoders make 768; put parts of one model together",
        ),
        (
            lambda p: (fake_pipeline(p) / "vae" / "config.json").unlink(),
            "vae/config.json is missing; download the model",
        ),
        (lambda p: (fake_pipeline(p) / "model_index.json").write_text("{"), "model_index.json is not JSON; download"),
        (lambda p: None, "{p} does not exist; name the folder of a diffusers pipeline"),
    ],
)
def test_folders_that_cannot_be_opened(tmp_path, build, said):
    """Another architecture, a part alone, pickles, widths that do not fit, missing and broken files: one sentence each."""
    path = tmp_path / "m"
    build(path)

    with pytest.raises(UserError) as caught:
        inspect_base(str(path))
    assert said.format(p=path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["cond_stage_model.transformer.x", "model.diffusion_model.y"],
            "from diffusers import StableDiffusionPipeline as P",
        ),
        (["conditioner.embedders.1.model.x"], "from diffusers import StableDiffusionXLPipeline as P"),
        (["model.diffusion_model.joint_blocks.0.x"], "is a Stable Diffusion 3 model, which is not supported"),
        (["double_blocks.0.img_attn.x"], "is a FLUX model, which is not supported"),
        (["lora_unet_x"], "is no whole model (its tensors are no pipeline's)"),
    ],
)
def test_single_files_say_the_command(tmp_path, names, said):
    """What a single safetensors file holds is read from its header; a whole model comes with the command that converts it."""
    path = tmp_path / "model.safetensors"
    write_header(path, *names)

    with pytest.raises(UserError) as caught:
        inspect_base(str(path))
    assert said in str(caught.value)


def test_names_that_are_no_folder(tmp_path, monkeypatch):
    """A name on a hub comes with the command that downloads it; a pickle and a text are refused."""
    monkeypatch.chdir(tmp_path)
    for name, content, said in (
        (
            "runwayml/stable-diffusion-v1-5",
            None,
            "hf download runwayml/stable-diffusion-v1-5 --local-dir models/stable-diff",
        ),
        ("old.ckpt", b"x", "old.ckpt is a pickle, which is not opened; get the model as safetensors"),
        ("notes.txt", b"x", "notes.txt is no model"),
        ("broken.safetensors", b"\xff" * 20, "is no whole model"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            inspect_base(name)
        assert said in str(caught.value)


def test_a_path_that_does_not_exist_is_no_name_on_a_hub(tmp_path, monkeypatch):
    """Where the first folder of a name is there, a download would not help: the path is wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()

    with pytest.raises(UserError, match="models/sd51 does not exist; name the folder of a diffusers pipeline"):
        inspect_base("models/sd51")


def test_printed_commands_can_be_pasted(tmp_path):
    """The command for a file with a space and an apostrophe in its name is one that a shell and Python read as meant."""
    path = tmp_path / "ann's own.safetensors"
    write_header(path, "cond_stage_model.x")

    with pytest.raises(UserError) as caught:
        inspect_base(str(path))
    python, flag, code = shlex.split(caught.value.remedy.partition("once: ")[2])
    assert (python, flag) == ("python", "-c")
    named = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert sorted(named) == sorted([str(path), str(path.with_suffix(""))])


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("unet", "sample_size", [64, 96], "config.json has sample_size: [64, 96], not a number; use a published"),
        ("text_encoder", "num_hidden_layers", None, "config.json has num_hidden_layers: null, not a number"),
        ("vae", "block_out_channels", None, "vae/config.json has no list block_out_channels; download the model again"),
    ],
)
def test_configurations_without_their_numbers_are_refused(tmp_path, part, key, value, said):
    """A model for oblong images, and configurations in which a number is missing, are one sentence each."""
    path = fake_pipeline(tmp_path / "m") / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    with pytest.raises(UserError) as caught:
        inspect_base(str(tmp_path / "m"))
    assert said in str(caught.value)


def test_what_cannot_be_opened_is_refused_by_base_check_too(tmp_path):
    """A part of another class, which no stage opens, is found out before a project is made."""
    path = fake_pipeline(tmp_path / "m") / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vae": ["diffusers", "AutoencoderTiny"]}))

    with pytest.raises(UserError, match=r"vae of .* is a AutoencoderTiny, which is not supported; use a AutoencoderKL"):
        inspect_base(str(tmp_path / "m"))
