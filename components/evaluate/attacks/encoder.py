"""The one place where attacks look inside text encoder and U-Net: single-token words, gradients by token, and what the U-Net is asked.

    K tokens that may be chosen, M words of the vocabulary, B prompts, Z latent channels, h = w latent side, L token positions, D hidden

A pipeline with several towers is attacked through its first: candidates change the tokens of both, the gradient is that of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from components.common.errors import UserError
from components.diffusion.conditioning import denoise, joined
from components.diffusion.sampling import sample
from components.eraser import Erased, Eraser
from components.filter.encoder import Decision, FilteredTextEncoder

Loss = Callable[[torch.Tensor, Decision | None], torch.Tensor]
"""(states (1, L, D), decision) to a scalar."""

PUBLISHED = (0, 1, 2)
"""Ids that published configurations of CLIP's text encoder call bos, pad and eos, and which are plain signs."""
SECOND_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~"


class Vocabulary(NamedTuple):
    """Words that are one token each, alone and in company."""

    words: tuple[str, ...]
    ids: torch.Tensor
    """(M,) int64."""

    def without(self, banned: Sequence[str]) -> Vocabulary:
        """The words that contain no word of `banned`, in either direction a plural apart."""
        parts = {part.lower() for name in banned for part in name.split() if part.isalpha()}
        keep = [i for i, w in enumerate(self.words) if not any(p in w if len(p) > 2 else p == w for p in parts)]
        return Vocabulary(tuple(self.words[i] for i in keep), self.ids[keep])


class EncoderAccess:
    """Tokens and gradients of an eraser's text encoder, with the filters at its hookpoint or without."""

    def __init__(self, eraser: Eraser) -> None:
        pipe = eraser.pipe
        if not isinstance(getattr(pipe, "unet", None), torch.nn.Module) or getattr(pipe, "text_encoder", None) is None:
            raise UserError(
                f"attacks on a {type(pipe).__name__} are not supported",
                "attack a pipeline with a text encoder and a U-Net",
            )
        self.towers = eraser.towers
        self.tokenizer: Any = self.towers.first.tokenizer
        self.encoder: Any = self.towers.first.encoder
        self.filtered = FilteredTextEncoder(self.towers, eraser.filters)
        self.table: torch.Tensor = self.encoder.get_input_embeddings().weight.detach()
        self._words: Vocabulary | None = None

    def vocabulary(self) -> Vocabulary:
        """All words of Latin letters that are one token and stay one behind another word."""
        if self._words is None:
            ids = [i for i in range(len(self.tokenizer)) if i not in self.tokenizer.all_special_ids]
            texts = [self.tokenizer.decode([i]).strip() for i in ids]
            plain = [(i, t) for i, t in zip(ids, texts, strict=True) if t.isascii() and t.isalpha() and len(t) > 1]
            again = self.tokenizer([f"{t} {t}" for _, t in plain], add_special_tokens=False).input_ids
            kept = [(i, t) for (i, t), back in zip(plain, again, strict=True) if back == [i, i]]
            self._words = Vocabulary(tuple(t for _, t in kept), torch.tensor([i for i, _ in kept]))
        return self._words

    def special_texts(self) -> tuple[str, ...]:
        """The literal text of every special token, and text whose first token is an id that a configuration calls special.

        Published configurations call 0, 1 and 2 so, which are signs: id 2, end of text to some, is the `#` of `#!`.
        """
        config = self.encoder.config
        named = {getattr(config, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")} | {*PUBLISHED}
        ids = [i for i in named if isinstance(i, int) and i not in self.tokenizer.all_special_ids]
        texts = [
            str(text) for text in self.tokenizer.convert_ids_to_tokens([*self.tokenizer.all_special_ids, *sorted(ids)])
        ]
        firsts = [first for i in sorted(ids) if (first := self._starting_with(i))]
        return tuple(dict.fromkeys([*texts, *firsts]))

    def _starting_with(self, token: int) -> str:
        """A text of two signs whose first token is this one; empty if there is none."""
        sign = str(self.tokenizer.convert_ids_to_tokens(token))
        texts = [sign + other for other in SECOND_SIGNS]
        found = self.tokenizer(texts, add_special_tokens=False).input_ids
        return next((text for text, ids in zip(texts, found, strict=True) if ids[:1] == [token]), "")

    def gradient(self, text: str, count: int, vocabulary: Vocabulary, loss: Loss, *, filtered: bool) -> np.ndarray:
        """(K, M): how the loss of `text` changes, to first order, with each word in the place of each of its first `count` tokens."""
        encoded = self.towers.tokenize([text])
        embedded = self.table[encoded.input_ids.to(self.table.device)].clone().requires_grad_()
        with torch.enable_grad(), embedding(self.encoder, embedded):
            if filtered and self.filtered.requests:
                cond, decision = self.filtered.encode(encoded)
            else:
                cond, decision = self.towers.run(encoded), None
            (slope,) = torch.autograd.grad(loss(cond.states, decision), embedded)
        return (slope[0, 1 : count + 1] @ self.table[vocabulary.ids].T).numpy(force=True)


@contextmanager
def embedding(encoder: torch.nn.Module, embedded: torch.Tensor) -> Iterator[None]:
    """Within the block the encoder reads `embedded` (B, L, D) in the place of its own token embeddings."""
    handle = encoder.get_input_embeddings().register_forward_hook(lambda *_: embedded)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def states_of(erased: Erased) -> torch.Tensor:
    """(B, L, D) hidden states of the prompts, as the U-Net reads them."""
    return erased.cond.states


def with_states(erased: Erased, states: torch.Tensor) -> Erased:
    """The same prompts with other hidden states (B, L, D)."""
    return erased._replace(cond=erased.cond._replace(states=states))


def ask(unet: Any, latents: torch.Tensor, timesteps: torch.Tensor | int, erased: Erased) -> torch.Tensor:  # noqa: ANN401 - a U-Net
    """The output (B, Z, h, w) of a U-Net at latents of B prompts; the adapters that act are the caller's business."""
    return denoise(unet, latents, timesteps, erased.cond.to(latents.device))


def ask_guided(unet: Any, latents: torch.Tensor, timestep: int, erased: Erased, scale: float) -> torch.Tensor:  # noqa: ANN401 - a U-Net
    """The same with classifier-free guidance."""
    both = joined([erased.uncond.expand(len(latents)), erased.cond]).to(latents.device)
    empty, cond = denoise(unet, torch.cat([latents, latents]), timestep, both).chunk(2)
    return empty + scale * (cond - empty)


def sample_of(
    pipe: Any,  # noqa: ANN401 - a pipeline, which need not be the eraser's own
    erased: Erased,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    batch: int,
) -> np.ndarray:
    """Images (B, H, W, 3) uint8 of prompts that were read, each from its own seed."""
    return sample(pipe, erased.cond, erased.uncond, seeds, steps=steps, guidance_scale=guidance_scale, batch=batch)
