"""Folders of pipelines with the published configurations and empty weights: what can be said of a model without opening it."""

import json
import struct
from pathlib import Path

WIDTHS = {"sd15": ((768, 12),), "sd21": ((1024, 23),), "sdxl": ((768, 12), (1280, 32))}


def write_json(path: Path, content: object) -> None:
    """A JSON file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_header(path: Path, *names: str) -> None:
    """A safetensors file that has a header and no data."""
    head = json.dumps({name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(head)) + head)


def fake_pipeline(folder: Path, family: str = "sd15", variant: str = "", suffix: str = ".safetensors") -> Path:
    """A pipeline of a family as published, with weight files that hold nothing."""
    kind = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    index = {"_class_name": kind, "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    parts = [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")]
    for number, (width, layers) in enumerate(WIDTHS[family]):
        part = "text_encoder" + ("_2" if number else "")
        write_json(folder / part / "config.json", {"hidden_size": width, "num_hidden_layers": layers})
        parts.append((part, "model"))
        tokenizer = part.replace("text_encoder", "tokenizer")
        write_json(folder / tokenizer / "tokenizer.json", {})
        encoder = "CLIPTextModelWithProjection" if number else "CLIPTextModel"
        index |= {part: ["transformers", encoder], tokenizer: ["transformers", "CLIPTokenizer"]}
    write_json(folder / "model_index.json", index)
    width = sum(width for width, _ in WIDTHS[family])
    side = {"sd15": 64, "sd21": 96, "sdxl": 128}[family]
    unet = {"sample_size": side, "cross_attention_dim": width, "use_linear_projection": family != "sd15"}
    write_json(folder / "unet" / "config.json", unet)
    write_json(folder / "vae" / "config.json", {"block_out_channels": [128, 256, 512, 512]})
    prediction = "v_prediction" if family == "sd21" else "epsilon"
    scheduler = {"_class_name": "PNDMScheduler", "prediction_type": prediction}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    for part, stem in parts:
        write_header(folder / part / f"{stem}{variant}{suffix}")
        if "-of-" in variant:
            shards = {"weight_map": {"x": f"{stem}{variant}{suffix}"}}
            write_json(folder / part / f"{stem}.safetensors.index.json", shards)
    return folder
