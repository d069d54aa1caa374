"""Trains the text side of the base model: a BPE tokenizer, and a CLIP text encoder beside a small image tower.

    B captions and images, E English phrases, L = 32 token positions, D = 256 hidden, P = 256 joint, T = 384 teacher

    loss = InfoNCE(image, text) + (1 - cos(W·text, teacher))          (Radford et al. 2021; Reimers & Gurevych 2020)

The contrast is Stable Diffusion's own arrangement: the encoder is trained first and then frozen. The second term makes
ordinary English meaningful, since captions name only a few hundred things.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Regex as TokenRegex
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from components.common.checkpoint import load_checkpoint, save_checkpoint
from components.common.seeding import generator, stream_seed
from components.diffusion.images import to_model
from components.worlds.openmoji.clip import ClipHeads
from components.worlds.openmoji.scenes import Scene
from components.worlds.openmoji.world import WORLD
from training.openmoji.captions import misspell
from training.openmoji.vae import Step, schedule

MAX_LENGTH = 32
"""Token positions of every prompt, BOS and padding included."""
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 4096) -> CLIPTokenizer:
    """A CLIPTokenizer whose byte-pair merges come from `texts`; BOS and EOS take the last two ids, as in CLIP's."""
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(TokenRegex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TokenRegex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2 - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab: dict[str, int] = dict(model["vocab"])
    for letter in alphabet:  # a lone letter at a word's end must never be unknown
        vocab.setdefault(f"{letter}</w>", len(vocab))
    vocab |= {BOS: len(vocab), EOS: len(vocab) + 1}
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained encoder: 4 causal layers of 256, quick GELU as in CLIP ViT-L."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert isinstance(bos, int)  # train_tokenizer sets both
    assert isinstance(eos, int)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
            projection_dim=256,
        )
    )


def clip_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of unit vectors (B, P); row i of one belongs to row i of the other."""
    logits = scale.exp().clamp(max=100) * image @ text.T  # (B, B)
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@torch.no_grad()
def teacher_embeddings(texts: list[str], folder: Path, *, batch: int = 256) -> torch.Tensor:
    """Unit sentence embeddings (N, 384) of all-MiniLM-L6-v2 read from `folder`: the mean of token states."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        inputs = tokenizer([texts[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state  # (B, L, T)
        mask = inputs["attention_mask"][..., None]
        out[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return out


def _distinct(listed: list[Scene], batch: int, rng: np.random.Generator) -> list[int]:
    """Rows of `batch` scenes of which no two show the same thing in the same style."""
    seen: set[tuple[tuple[str, ...], str]] = set()
    rows: list[int] = []
    while len(rows) < batch:
        row = int(rng.integers(len(listed)))
        key = (listed[row].concepts, listed[row].style)
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return rows


def train_text(
    encoder: CLIPTextModel,
    heads: ClipHeads,
    tokenizer: CLIPTokenizer,
    listed: list[Scene],
    images: np.ndarray,
    phrases: list[str],
    teacher: torch.Tensor,  # (N, 384), a row for each phrase
    *,
    steps: int,
    batch: int = 160,  # caption-image pairs
    distilled: int = 96,  # phrases with a teacher embedding
    framed: float = 0.5,  # part of the captions that stand among filler words
    misspelt: float = 0.15,  # part of all texts with a typing error; the teacher read them without
    lr: float = 1e-3,
    seed: int = 0,
    checkpoint: Path,
    every: int = 100,  # steps between checkpoints
) -> Iterator[Step]:
    """Trains encoder and heads in place; yields after every step, writes and resumes from `checkpoint`."""
    accelerator = Accelerator()
    modules = {"encoder": encoder, "heads": heads}
    optimizer = torch.optim.AdamW([p for m in modules.values() for p in m.parameters()], lr=lr, weight_decay=0.02)
    start, _ = load_checkpoint(checkpoint, modules, optimizer)
    encoder, heads, optimizer = accelerator.prepare(encoder, heads, optimizer)
    device = accelerator.device
    for step in range(start, steps):
        rng = np.random.default_rng(stream_seed(seed, "text", step))
        rows = _distinct(listed, batch, rng)
        extra = rng.integers(len(phrases), size=distilled)
        texts = [
            WORLD.frame(text, rng) if rng.random() < framed else text
            for text in (WORLD.caption(listed[r].shown, rng) for r in rows)
        ]
        texts = [misspell(t, rng) if rng.random() < misspelt else t for t in (*texts, *(phrases[i] for i in extra))]
        # causal attention: positions after EOS cannot change the EOS state, so the longest prompt is length enough
        ids = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").input_ids
        pooled = encoder(ids.to(device)).pooler_output  # (B + E, D)
        x = to_model(images[rows]).to(device)
        x = x + 0.1 * torch.randn(x.shape, generator=generator(seed, "text noise", step)).to(device)
        contrast = clip_loss(heads.embed_image(x), heads.embed_text(pooled[:batch]), heads.logit_scale)
        student = F.normalize(heads.teacher_projection(pooled[batch:]), dim=-1)
        distil = (1 - (student * teacher[extra].to(device)).sum(-1)).mean()
        loss = contrast + distil
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, steps)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_([p for m in modules.values() for p in m.parameters()], 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, modules, optimizer, step + 1)
        yield Step(step + 1, loss.item())
