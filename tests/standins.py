"""Stable Diffusion 1.5, 2.1 and XL in miniature: diffusers folders with the published configurations' quirks, built in seconds.

    sd15   CLIP ViT-L, ε, PNDM; a safety checker; `.bin`, fp16 and non-EMA files beside the weights
    sd21   OpenCLIP-H whose last layer is cut, v, DDIM; pads with `!`; `.bin` and fp16 files beside the weights
    sdxl   CLIP-L and OpenCLIP-bigG, ε, Euler; pooled output and time ids; the second tokenizer pads with `!`; sharded U-Net

Widths are small and weights random, so that the images show nothing; the vocabulary is CLIP's own (49,408 tokens, from the
file in open_clip's wheel), the context 77, the images 64 × 64. As in the published files, the text encoders' configurations
say `eos_token_id: 2`, which is the token `#`; the tokenizers' end-of-text token is 49407.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

KINDS = ("sd15", "sd21", "sdxl")
EOS, BOS = "<|endoftext|>", "<|startoftext|>"
Form = Literal["published", "fp16", "plain"]
"""published: with the weight files that nothing loads; fp16: its fp16 files alone; plain: one safetensors file a part."""
_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "trained_betas": None,
}  # fmt: skip


SMALL: dict[str, dict[str, Any]] = {
    "corpus": {"captions": 300, "english": 300, "benign": {"calibrate": 900, "evaluate": 300, "real": []}},
    "concepts": {"per_name": 6, "retain": 40, "mixed": 8},
    "sae": {"d_sae": 256, "k": 16, "steps": 30, "batch": 512, "auxk": 64, "dead_after": 50000},
    "features": {"fpr": 0.05, "min_contrast": 0.01},
    "guidance": {"steps": 2, "precision": "no"},
    "base": {"solver_steps": 2},
    "evaluate": {"sizes": {"quick": {"templates": 2, "seeds": 1, "retain": 4}}, "size": "quick", "batch": 8},
}
"""Sections of a project's params.yaml that are small enough for every stage to run on a stand-in in seconds."""


@cache
def vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's tokens by name, 49,408, and its 48,894 merges, from the list that open_clip's wheel ships."""
    spec = find_spec("open_clip")
    assert spec is not None, "tests need open_clip's vocabulary: pip install --no-deps open_clip_torch"
    assert spec.origin is not None
    lines = gzip.decompress((Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    merges = lines.split("\n")[1 : 49152 - 256 - 2 + 1]
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in shown] + [chr(256 + n) for n in range(256 - len(shown))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(m.replace(" ", "") for m in merges), BOS, EOS]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path, pad: str = EOS) -> CLIPTokenizer:
    """The files of a published tokenizer folder, none of them tokenizer.json, and the tokenizer that they make."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(tokens), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {name: {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
                      "single_word": False} for name, text in (("bos_token", BOS), ("eos_token", EOS), ("unk_token", EOS))}  # fmt: skip
    settings = special | {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
        "pad_token": pad, "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    plain = {name: {k: v for k, v in spec.items() if k != "__type"} for name, spec in special.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(plain | {"pad_token": pad}), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def text_config(width: int, layers: int, *, act: str, projection: int, **more: Any) -> CLIPTextConfig:
    """A text encoder's configuration with the published, wrong special tokens."""
    return CLIPTextConfig(**{
        "vocab_size": 49408, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "max_position_embeddings": 77, "hidden_act": act, "projection_dim": projection,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    } | more)  # fmt: skip


def unet(cross: int, **more: Any) -> UNet2DConditionModel:
    """A U-Net of two levels for 8 × 8 latents."""
    return UNet2DConditionModel(**{
        "sample_size": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "block_out_channels": (8, 16), "layers_per_block": 1,
        "cross_attention_dim": cross, "attention_head_dim": 2, "norm_num_groups": 4,
    } | more)  # fmt: skip


def vae(scaling: float = 0.18215, **more: Any) -> AutoencoderKL:
    """An autoencoder of four levels, which makes 64 × 64 pixels of 8 × 8 latents as the published ones do."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        scaling_factor=scaling, **more,
    )  # fmt: skip


def safety_checker() -> StableDiffusionSafetyChecker:
    """A random one, which nothing of ours loads."""
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tower | {"image_size": 224, "patch_size": 112, "projection_dim": 8}
    return StableDiffusionSafetyChecker(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8))


def _sd15(tokens: Path, config: CLIPTextConfig | None = None) -> StableDiffusionPipeline:
    config = config or text_config(32, 4, act="quick_gelu", projection=32)
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(config), tokenizer=write_tokenizer(tokens / "tokenizer"), unet=unet(config.hidden_size),
        scheduler=PNDMScheduler(**_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=safety_checker(), feature_extractor=CLIPImageProcessor(),
    )  # fmt: skip


def _sd21(tokens: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config(40, 3, act="gelu", projection=16)),
        tokenizer=write_tokenizer(tokens / "tokenizer", pad="!"),
        unet=unet(40, use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True),
        scheduler=DDIMScheduler(
            **_SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(tokens: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(text_config(32, 4, act="quick_gelu", projection=32)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(48, 5, act="gelu", projection=48)),
        tokenizer=write_tokenizer(tokens / "tokenizer"), tokenizer_2=write_tokenizer(tokens / "tokenizer_2", pad="!"),
        unet=unet(
            80, use_linear_projection=True, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=48 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**_SCHEDULE, timestep_spacing="leading", use_karras_sigmas=False),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip


def _vit_l(tokens: Path) -> StableDiffusionPipeline:
    heads = {"intermediate_size": 3072, "num_attention_heads": 12}
    return _sd15(tokens, text_config(768, 12, act="quick_gelu", projection=768, **heads))


_BUILD = {"sd15": _sd15, "sd21": _sd21, "sdxl": _sdxl, "vit-l": _vit_l}


def build_standin(kind: str, folder: Path, form: Form = "published") -> Path:
    """Writes the stand-in of `kind`, one of `KINDS` or vit-l, into `folder`, which it returns; same bytes of weights at every call.

    vit-l is sd15 with a text encoder of the published size, 123 million parameters.
    """
    torch.manual_seed(list(_BUILD).index(kind))
    pipe = _BUILD[kind](folder)
    _spread(pipe)
    shards = {"max_shard_size": "40KB"} if kind == "sdxl" and form == "published" else {}
    written = {path: path.read_bytes() for path in folder.glob("tokenizer*/*")}
    if form != "fp16":
        pipe.save_pretrained(folder, **shards)
        written |= {path: path.read_bytes() for path in folder.glob("*/config.json")}
    if form != "plain":
        pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
    for path in [*folder.glob("tokenizer*/*"), *written]:
        if path in written:
            path.write_bytes(written[path])  # a configuration names the float type of the plain file
        else:
            path.unlink()  # a tokenizer.json, which the published folders lack
    if form == "published":
        for path in [*folder.glob("*/*.safetensors")]:
            if path.name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
                name = {"model": "pytorch_model"}.get(path.stem, path.stem)
                path.with_name(f"{name}.bin").write_bytes(b"weights that nothing may open")
        if kind == "sd15":
            plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
            plain.with_name("diffusion_pytorch_model.non_ema.safetensors").write_bytes(plain.read_bytes())
    return folder


@torch.no_grad()
def _spread(pipe: DiffusionPipeline) -> None:
    """Larger weights: states of different prompts differ about as much as a trained encoder's do, and images with them."""
    for name in ("text_encoder", "text_encoder_2"):
        if (encoder := getattr(pipe, name, None)) is not None:
            for key, weight in encoder.named_parameters():
                if "embedding" in key:
                    weight.mul_(20)  # from σ = 0.02
                elif weight.ndim > 1:
                    weight.normal_(0, 1.5 / weight.shape[1] ** 0.5)
