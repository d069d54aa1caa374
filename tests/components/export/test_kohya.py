"""kohya's names, against the tables by which A1111 and ComfyUI find a module."""

import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from components.common.artifacts import read_artifact
from components.common.errors import ArtifactError
from components.export.kohya import FORMAT, WEIGHTS, kohya_files, kohya_tensors, write_kohya
from components.guidance.adapters import FORMAT as ADAPTER
from components.guidance.adapters import LAYERS, attach, write_adapter

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "block_out_channels": (320, 640, 1280),
    "use_linear_projection": True,
}  # fmt: skip
IN_A1111 = {  # the blocks that have cross-attention, as the original checkpoints call them, and the depth of each
    "sd15": {f"input_blocks_{i}_1": 1 for i in (1, 2, 4, 5, 7, 8)}
    | {"middle_block_1": 1}
    | {f"output_blocks_{i}_1": 1 for i in range(3, 12)},
    "sdxl": {"input_blocks_4_1": 2, "input_blocks_5_1": 2, "input_blocks_7_1": 10, "input_blocks_8_1": 10}
    | {"middle_block_1": 10}
    | {f"output_blocks_{i}_1": 10 for i in range(3)}
    | {f"output_blocks_{i}_1": 2 for i in range(3, 6)},
}


def in_a1111(key):
    """(block, what is in it) in the original checkpoint, by the rule that A1111 has for diffusers' names."""
    if found := re.match(r"lora_unet_down_blocks_(\d)_attentions_(\d)_(.+)", key):
        return f"input_blocks_{1 + 3 * int(found[1]) + int(found[2])}_1", found[3]
    if found := re.match(r"lora_unet_mid_block_attentions_0_(.+)", key):
        return "middle_block_1", found[1]
    found = re.match(r"lora_unet_up_blocks_(\d)_attentions_(\d)_(.+)", key)
    return f"output_blocks_{3 * int(found[1]) + int(found[2])}_1", found[3]


@pytest.mark.parametrize(("kind", "config"), [("sd15", SD15), ("sdxl", SDXL)])
def test_every_name_is_a_module_of_the_original_checkpoint(kind, config):
    """At full size: A1111's rule finds every block that has cross-attention, at its depth, keys and values alike."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    modules = [path for path, _ in unet.named_modules() if path.endswith(LAYERS)]
    tensors = {f"unet.{m}.lora.{kind}.weight": torch.zeros(4, 4) for m in modules for kind in ("down", "up")}
    found = kohya_tensors(tensors)
    places = [in_a1111(key.removesuffix(".alpha")) for key in found if key.endswith(".alpha")]

    assert len(found) == 3 * len(modules)
    assert {key.split(".", 1)[1] for key in found} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert sorted(places) == sorted(
        (block, f"transformer_blocks_{layer}_attn2_to_{which}")
        for block, depth in IN_A1111[kind].items()
        for layer in range(depth)
        for which in "kv"
    )
    # ComfyUI: lora_unet_ and diffusers' name, dots as underscores
    assert {key.split(".")[0] for key in found} == {f"lora_unet_{m.replace('.', '_')}" for m in modules}


def test_what_is_written_acts_as_the_adapter_does(tiny_pipe, make_tiny_unet, tmp_path):
    """Diffusers' own reader of kohya files draws the adapter's image; another artifact is refused."""
    unet = make_tiny_unet()
    for parameter in attach(unet, "made", rank=3):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    write_adapter(tmp_path / "r", unet, "made", params={}, inputs={}, facts={})
    write_kohya(tmp_path / "out", tmp_path / "r", ["r"])
    assert kohya_files(tmp_path / "out") == {p.name for p in (tmp_path / "out").iterdir()} == {WEIGHTS, "artifact.json"}

    def draw():
        rng = torch.Generator().manual_seed(0)
        return tiny_pipe("a cat", num_inference_steps=2, generator=rng, output_type="np").images

    base, drawn = draw(), []
    for folder, kind in ((tmp_path / "r", ADAPTER), (tmp_path / "out", FORMAT)):
        tiny_pipe.load_lora_weights(dict(read_artifact(folder, kind)[0]), adapter_name=kind.split("/")[1])
        drawn.append(draw())
        tiny_pipe.unload_lora_weights()

    assert np.abs(drawn[0] - base).max() > 0.01
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-5)
    with pytest.raises(ArtifactError, match="has format 'expunge/adapter'"):
        kohya_files(tmp_path / "r")
