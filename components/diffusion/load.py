"""Opens a diffusers folder of Stable Diffusion 1.x, 2.x or XL, frozen and in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from components.diffusion.folder import check_folder, opening, read_index, variant_of

CLASSES = {"StableDiffusionPipeline": StableDiffusionPipeline, "StableDiffusionXLPipeline": StableDiffusionXLPipeline}
_NO_CHECKER: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def load_pipeline(folder: Path, device: torch.device | None = None) -> Any:  # noqa: ANN401 - one of `CLASSES`
    """The pipeline in fp32 on `device` (default: the CPU), nothing requiring a gradient, without safety checker or progress bar.

    Only safetensors are read, of the variant that `variant_of` finds. `UserError` or `ArtifactError` for a model that cannot be opened.
    """
    check_folder(folder)
    kind = read_index(folder)["_class_name"]
    with opening(folder):
        pipe = CLASSES[kind].from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, variant=variant_of(folder),
            **(_NO_CHECKER if kind == "StableDiffusionPipeline" else {"add_watermarker": False}),
        )  # fmt: skip
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe
