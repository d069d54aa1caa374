"""The towers of a pipeline: from its folder without a U-Net and without diffusers, or from an open pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from components.common.errors import UserError
from components.diffusion.folder import check_folder, opening, read_index, variant_of
from components.diffusion.hooks import resolve_hookpoint
from components.diffusion.towers import Tower, Towers

CLASSES = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}


def load_towers(folder: Path, hookpoints: Sequence[str] | None = None, device: torch.device | None = None) -> Towers:
    """The towers of a pipeline's folder, frozen and in fp32, on `device` (default: the CPU); they hold no time ids."""
    check_folder(folder)
    index = read_index(folder)
    parts = []
    for suffix in _suffixes(index):
        name = f"text_encoder{suffix}"
        how = {"dtype": torch.float32, "use_safetensors": True, "variant": variant_of(folder)}
        with opening(folder):
            encoder: Any = CLASSES[index[name][1]].from_pretrained(folder / name, local_files_only=True, **how)
            tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", local_files_only=True)
        parts.append((tokenizer, encoder.eval().requires_grad_(False).to(device)))
    return _towers(parts, hookpoints, zero_uncond=bool(index.get("force_zeros_for_empty_prompt")), time_ids=())


def check_hookpoints(folder: Path, hookpoints: Sequence[str]) -> None:
    """`UserError` for hookpoints that the text encoders of a pipeline's folder do not have; no weights are read."""
    check_folder(folder)
    index = read_index(folder)
    names = [f"text_encoder{suffix}" for suffix in _suffixes(index)]
    _check_count(hookpoints, len(names))
    for name, hookpoint in zip(names, hookpoints, strict=True):
        with opening(folder), torch.device("meta"):
            encoder = CLASSES[index[name][1]](CLIPTextConfig.from_pretrained(folder / name, local_files_only=True))
        resolve_hookpoint(encoder, hookpoint)


def towers_of(pipe: Any, hookpoints: Sequence[str] | None = None) -> Towers:  # noqa: ANN401 - a pipeline of any SD
    """The towers of an open pipeline, which stay its own: they follow it to another device."""
    suffixes = _suffixes({name: part for name, part in pipe.components.items() if part is not None})
    parts = [(getattr(pipe, f"tokenizer{suffix}"), getattr(pipe, f"text_encoder{suffix}")) for suffix in suffixes]
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    time_ids = (side, side, 0, 0, side, side) if len(parts) > 1 else ()
    zeros = bool(pipe.config.get("force_zeros_for_empty_prompt"))
    return _towers(parts, hookpoints, zero_uncond=zeros, time_ids=time_ids)


def _suffixes(named: Any) -> tuple[str, ...]:  # noqa: ANN401 - any mapping by names of parts
    return ("", "_2") if "text_encoder_2" in named else ("",)


def _towers(
    parts: Sequence[tuple[CLIPTokenizer, torch.nn.Module]],
    hookpoints: Sequence[str] | None,
    *,
    zero_uncond: bool,
    time_ids: Sequence[int],
) -> Towers:
    if hookpoints is not None:
        _check_count(hookpoints, len(parts))
    named = hookpoints or [None] * len(parts)
    two = len(parts) > 1
    towers = [
        Tower(tokenizer, encoder, hookpoint, penultimate=two, pooled=two and number == 1)
        for number, ((tokenizer, encoder), hookpoint) in enumerate(zip(parts, named, strict=True))
    ]
    return Towers(towers, zero_uncond=zero_uncond, time_ids=time_ids)


def _check_count(hookpoints: Sequence[str], encoders: int) -> None:
    if len(hookpoints) != encoders:
        raise UserError(
            f"base.hookpoint names {len(hookpoints)} module(s), and the model has {encoders} text encoder(s)",
            "name one for each: hookpoint: [encoder.layers.9, encoder.layers.27]" if encoders > 1 else "name one",
        )
