"""Trains the U-Net of the base model on cached latents: v-prediction under a zero-terminal-SNR schedule.

    B batch, Z = 4 latent channels, h = w = 16, L = 32 token positions, D = 256

    v = √ᾱ ε - √(1-ᾱ) z₀,   loss = |v̂ - v|²          (Salimans & Ho 2022; Lin et al. 2023, zero terminal SNR)

Stable Diffusion's own noise schedule never reaches pure noise, so with latents this small the mean colour, which is the
style's background, leaks into the last timestep and sampling starts from a place that training never saw. The loss has
no weights: min-SNR weights (Hang et al. 2023) vanish with the SNR, and at 16×16 that is where the text decides the shape
(docs/decisions/0002).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from components.common.checkpoint import load_checkpoint, save_checkpoint
from components.common.seeding import generator, stream_seed
from components.diffusion.images import to_model
from components.worlds.openmoji.scenes import Scene, keyed
from components.worlds.openmoji.world import WORLD
from training.openmoji.captions import misspell
from training.openmoji.text import MAX_LENGTH
from training.openmoji.vae import Step


def build_unet() -> UNet2DConditionModel:
    """The untrained U-Net: 14.0 M parameters, attention at 8×8; the 4×4 level attends in the middle alone, as Stable Diffusion's lowest does."""
    layers: Any = (2, 1, 1)  # by level; diffusers' annotation allows a tuple of one alone
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 192, 192),
        layers_per_block=layers,
        time_embedding_dim=256,
        cross_attention_dim=256,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas rescaled to zero terminal SNR, v-prediction, trailing timesteps."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def cache_latents(
    vae: AutoencoderKL, listed: list[Scene], images: np.ndarray, folder: Path, *, batch: int = 128
) -> np.ndarray:
    """Latent means of the scenes' images, (N, 4, 16, 16) float16, unscaled; computed once for each autoencoder."""
    weights = [parameter.double().sum().item() for parameter in vae.encoder.parameters()]
    path = keyed(folder, "latents", listed, int(images[::97].sum(dtype=np.int64)), weights)
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=(len(images), 4, 16, 16))
        for start in tqdm(range(0, len(images), batch), desc="latents", unit="batch", mininterval=5):
            x = to_model(images[start : start + batch]).to(memory_format=torch.channels_last)
            out[start : start + batch] = vae.encode(x, return_dict=False)[0].mean.numpy()
        out.flush()
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def multiplies_in_bf16() -> bool:
    """Whether bfloat16 products are faster here than float32: a recent GPU, or a CPU with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - torch has no public name for it


def draw_timesteps(batch: int, rng: torch.Generator, *, total: int = 1000) -> torch.Tensor:
    """Timesteps (B,) stratified over the batch, so that each batch covers all noise levels."""
    offsets = torch.rand(batch, generator=rng)
    spread = (torch.randperm(batch, generator=rng) + offsets) / batch
    return (spread * total).long().clamp(max=total - 1)


def spoken(scene: Scene, rng: np.random.Generator) -> str:
    """A caption as people type it: one in four among filler words, one in twenty misspelt."""
    text = WORLD.caption(scene.shown, rng)
    text = WORLD.frame(text, rng) if rng.random() < 0.25 else text
    return misspell(text, rng) if rng.random() < 0.05 else text


def train_unet(
    unet: UNet2DConditionModel,
    ema: UNet2DConditionModel,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    latents: np.ndarray,  # (N, 4, 16, 16), scaled to unit variance on the fly by `scaling`
    listed: list[Scene],
    *,
    scaling: float,
    singles: int,  # the first scenes, of one concept each; the rest are pairs
    steps: int,
    batch: int = 48,
    pair_share: float = 0.85,  # part of each batch that shows two concepts: one is learnt long before two are
    hard_styles: tuple[str, ...] = ("neon", "blueprint", "silhouette"),  # thrice as often as others among the pairs
    unconditional: float = 0.1,  # probability of the empty prompt (classifier-free guidance)
    lr: float = 1e-3,
    cooldown: int = 1500,  # last steps, over which the learning rate falls to zero
    precision: Literal["no", "bf16"]
    | None = None,  # of the forward pass; None is bf16 where the hardware multiplies in it
    ema_decay: float = 0.999,
    seed: int = 0,
    checkpoint: Path,
    every: int = 100,
) -> Iterator[Step]:
    """Trains `unet` in place and keeps its moving average in `ema`; yields each step, resumes from `checkpoint`."""
    accelerator = Accelerator()  # it keeps one precision for the whole process, and other parts train in another
    device = accelerator.device
    half = precision == "bf16" or (precision is None and multiplies_in_bf16())
    if device.type == "cpu":  # torch's fused attention has a slow backward pass there: 72 images/s against 104
        unet.set_attn_processor(AttnProcessor())
    movable: Any = unet  # diffusers wraps `to` in a way that no type checker follows
    movable.to(memory_format=torch.channels_last)
    alphas = build_scheduler().alphas_cumprod
    decay = [p for p in unet.parameters() if p.ndim > 1]
    rest = [p for p in unet.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    start, _ = load_checkpoint(checkpoint, {"unet": unet, "ema": ema}, optimizer)
    model, optimizer = accelerator.prepare(unet, optimizer)
    encoder.eval().requires_grad_(False)
    twos = np.arange(singles, len(listed))
    hard = [row for row in twos if listed[row].style in hard_styles]
    twos = np.concatenate([twos, hard, hard])
    for step in range(start, steps):
        rng, choose = generator(seed, "unet", step), np.random.default_rng(stream_seed(seed, "unet", step))
        pairs = choose.random(batch) < pair_share
        rows = np.where(pairs, choose.choice(twos, batch), choose.integers(0, singles, batch))
        texts = ["" if choose.random() < unconditional else spoken(listed[r], choose) for r in rows]
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            states = encoder(ids.input_ids.to(device)).last_hidden_state  # (B, L, D)
        z = (torch.from_numpy(np.stack([latents[r] for r in rows])).float() * scaling).to(device)
        noise = torch.randn(z.shape, generator=rng).to(device)
        timesteps = draw_timesteps(batch, rng)
        alpha = alphas[timesteps].view(-1, 1, 1, 1).to(device)
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            predicted = model(noisy.to(memory_format=torch.channels_last), timesteps.to(device), states).sample
        loss = (predicted.float() - velocity).square().mean()
        factor = min(1.0, (step + 1) / 200, (steps - step) / cooldown)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - keep)
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, {"unet": unet, "ema": ema}, optimizer, step + 1)
        yield Step(step + 1, loss.item())
