"""A random CLIP of one layer, as a transformers folder."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from tests.standins import write_tokenizer

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = TOWER | {"image_size": 32, "patch_size": 16, "projection_dim": 8}
CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def write_clip(folder: Path) -> Path:
    """Writes model, tokenizer and processor into `folder`, which it returns; the same weights at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=TOWER, vision_config=VISION, projection_dim=8)).save_pretrained(folder)
    write_tokenizer(folder)
    CLIPImageProcessor(**CROP).save_pretrained(folder)
    return folder
