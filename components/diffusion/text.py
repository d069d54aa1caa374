"""Opens the text side of a pipeline's folder alone, which takes neither diffusers nor a U-Net."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from components.diffusion.folder import check_folder


def load_text(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The pipeline's tokenizer and text encoder alone, frozen and in fp32."""
    check_folder(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, local_files_only=True)
    return tokenizer, encoder.eval().requires_grad_(False)
