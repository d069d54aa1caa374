"""The text side of a pipeline: one tower (tokenizer and encoder) in SD 1.x and 2.x, two in SDXL.

    B prompts, L token positions, T towers, D_t width of tower t, D = Σ D_t, E pooled

Every reader of hidden states goes through here, and nothing else asks a pipeline for its tokenizer or text encoder. What a
special token is, the tokenizer says: published encoder configurations name other ones.

Two towers are read as one: the residual streams at their hookpoints are concatenated (as steerers do, who train one SAE on
CLIP-L's and OpenCLIP-bigG's), so that there is one SAE, one score, one decision and one edit, of which each tower gets its
part. SDXL's second tokenizer pads with `!` and so never joins `!` with the signs beside it; where that moves the other
tokens, positions are matched by the characters that they end at.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CLIPTokenizer

from components.common.errors import UserError
from components.diffusion.conditioning import Conditioning, joined
from components.diffusion.encode import Encoded, Matched, tokenize, tokens_of
from components.diffusion.hooks import device_of, read_hookpoint, resolve_hookpoint, rewrite_hookpoint

Rewrite = Callable[[torch.Tensor], torch.Tensor]
"""The residual stream (B, L, D) to another one."""
_SAMPLE = 16


class Tower(NamedTuple):
    """One tokenizer with its text encoder."""

    tokenizer: CLIPTokenizer
    encoder: nn.Module
    hookpoint: str | None
    """Module whose output is the residual stream that the SAE reads and the filters edit; None: it is never asked for."""
    penultimate: bool = False
    """SDXL: cross-attention reads the stream before the last layer; otherwise it reads the last, normalised states."""
    pooled: bool = False
    """Whether the encoder's first output, projected at EOS, conditions the U-Net too."""

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return device_of(self.encoder)

    def run(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(states (B, L, D_t), pooled (B, E) or None) of tokens (B, L)."""
        if not self.penultimate:
            return self.encoder(input_ids)[0], None
        out: Any = self.encoder(input_ids, output_hidden_states=True)
        return out.hidden_states[-2], out[0] if self.pooled else None


class Towers:
    """All towers of a pipeline, in the order in which their states are concatenated."""

    def __init__(self, towers: Sequence[Tower], *, zero_uncond: bool = False, time_ids: Sequence[int] = ()) -> None:
        """`zero_uncond`: no negative prompt means zeros (SDXL); `time_ids`: the six numbers of an uncropped image (SDXL).

        `UserError` for a hookpoint that no module has, or whose edit would not reach what cross-attention reads.
        """
        self.all, self.zero_uncond = tuple(towers), zero_uncond
        self.time_ids = torch.tensor([list(time_ids)], dtype=torch.float32) if time_ids else None
        self._samples = [_sample(tower.encoder) for tower in self.all]
        for tower in self.all:
            if tower.hookpoint is not None:
                _check_hookpoint(tower, tower.hookpoint)

    @property
    def first(self) -> Tower:
        """The tower whose tokens are scored and searched for names."""
        return self.all[0]

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """Of every tower."""
        return tuple(tower.hookpoint or "" for tower in self.all)

    @property
    def max_length(self) -> int:
        """L: the tokenizers' full length."""
        return self.first.tokenizer.model_max_length

    def check_unchanged(self) -> None:
        """`UserError` if a LoRA or learned tokens were loaded into a tower, or its weights were changed: no filter was fitted on those."""
        for tower, before in zip(self.all, self._samples, strict=True):
            if getattr(tower.encoder, "peft_config", None):
                raise UserError(
                    "a text encoder carries a LoRA, which no filter was fitted on", "load it without its text part"
                )
            if learned := set(tower.tokenizer.get_added_vocab()) - set(tower.tokenizer.all_special_tokens):
                raise UserError(
                    f"the tokenizer has learned the token {min(learned)!r}, which no filter was fitted on",
                    "unload it: pipe.unload_textual_inversion()",
                )
            now = _sample(tower.encoder)
            if now.shape == before.shape and not torch.equal(now, before.to(now)):
                raise UserError(
                    "the weights of a text encoder are not what they were, and no filter was fitted on these",
                    "open pipeline and eraser again, without what was fused into the text encoder",
                )

    def tokenize(self, prompts: Sequence[str]) -> Encoded:
        """Tokens of `prompts` at full length, as the stock pipeline has them; longer prompts are cut, as it cuts them."""
        encoded = tokenize(self.first.tokenizer, prompts)
        others = [_match(self.first, tower, prompts, encoded) for tower in self.all[1:]]
        return encoded._replace(others=tuple(others))

    def stream(self, encoded: Encoded) -> torch.Tensor:
        """The residual stream (B, L, D) at the hookpoints, at the first tower's positions, on its device.

        It carries a gradient where token embeddings ask for one, as in attacks.
        """
        parts = [_read(tower, ids) for tower, ids in zip(self.all, encoded.all_ids(), strict=True)]
        others = (
            part.gather(1, _wide(match.forth.to(part.device), part))
            for part, match in zip(parts[1:], encoded.others, strict=True)
        )
        return torch.cat([parts[0], *(part.to(parts[0].device, parts[0].dtype) for part in others)], -1)

    def run(self, encoded: Encoded, rewrite: Rewrite | None = None) -> Conditioning:
        """What the U-Net reads of the prompts, on the first tower's device, with the stream rewritten if so wished.

        `rewrite` is called once, for all towers together. A row that it returns as it came keeps its bits in every tower.
        """
        with ExitStack() as hooks:
            if rewrite is not None:
                for tower, edit in zip(self.all, self._edits(encoded, rewrite), strict=True):
                    assert tower.hookpoint is not None  # whoever edits names hookpoints
                    hooks.enter_context(rewrite_hookpoint(tower.encoder, tower.hookpoint, edit))
            ids = encoded.all_ids()
            outputs = [tower.run(part.to(tower.device)) for tower, part in zip(self.all, ids, strict=True)]
        states = [part.to(outputs[0][0].device) for part, _ in outputs]
        pooled = next((part for _, part in outputs if part is not None), None)
        count = encoded.input_ids.shape[0]  # `len` would fix the batch of an exported graph
        time_ids = None if self.time_ids is None else self.time_ids.to(states[0].device).expand(count, -1)
        return Conditioning(
            states[0] if len(states) == 1 else torch.cat(states, -1),
            None if pooled is None else pooled.to(states[0].device),
            time_ids if pooled is not None else None,
        )

    def _edits(self, encoded: Encoded, rewrite: Rewrite) -> list[Rewrite]:
        """For each tower what rewrites its part; one tower is rewritten on its way, several are read beforehand."""
        if len(self.all) == 1:
            return [rewrite]
        before = self.stream(encoded)
        change = (rewrite(before).float() - before.float()).split([_width(tower) for tower in self.all], -1)
        backs = [None, *(match.back for match in encoded.others)]
        return [_adding(part, back) for part, back in zip(change, backs, strict=True)]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, batch: int = 256) -> Conditioning:
        """What the U-Net reads of `prompts`, on the CPU."""
        encoded = self.tokenize(prompts)
        parts = [
            self.run(encoded.rows(slice(start, start + batch))).to(torch.device("cpu"))
            for start in range(0, len(prompts), batch)
        ]
        return joined(parts)

    def unconditional(self, negative: str | None = None) -> Conditioning:
        """What the U-Net reads of the negative prompt, for one image: without one, of the empty prompt, or zeros in SDXL."""
        cond = self.encode([negative or ""])
        if negative is None and self.zero_uncond:
            pooled = None if cond.pooled is None else torch.zeros_like(cond.pooled)
            return cond._replace(states=torch.zeros_like(cond.states), pooled=pooled)
        return cond


def _sample(encoder: nn.Module) -> torch.Tensor:
    """The first values of every matrix, one after another, which a fused LoRA changes; none of an encoder that is offloaded."""
    weights = [weight.detach() for weight in encoder.parameters() if weight.ndim > 1 and not weight.is_meta]
    return torch.cat([weight.flatten()[:_SAMPLE] for weight in weights] or [torch.zeros(0)])


def _check_hookpoint(tower: Tower, hookpoint: str) -> None:
    """`UserError` unless an edit at `hookpoint` changes what cross-attention reads."""
    resolve_hookpoint(tower.encoder, hookpoint)
    config: Any = tower.encoder.config
    last = config.num_hidden_layers - (2 if tower.penultimate else 1)
    number = hookpoint.rsplit(".", maxsplit=1)[-1]
    if number.isdigit() and int(number) > last:
        raise UserError(
            f"hookpoint {hookpoint!r} lies above layer {last}, after which this model reads its prompts",
            f"use encoder.layers.{last} or a lower one",
        )


def _width(tower: Tower) -> int:
    config: Any = tower.encoder.config
    return int(config.hidden_size)


def _read(tower: Tower, input_ids: torch.Tensor) -> torch.Tensor:
    assert tower.hookpoint is not None  # whoever reads the stream names hookpoints
    return read_hookpoint(tower.encoder, tower.hookpoint, input_ids.to(tower.device))


def _wide(positions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Positions (B, L) as an index into (B, L', D_t) along its positions."""
    return positions[:, :, None].expand(-1, -1, like.shape[-1])


def _adding(change: torch.Tensor, back: torch.Tensor | None) -> Rewrite:
    """Adds `change` (B, L, D_t), which is exactly 0 where nothing is edited, at the positions that correspond."""

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        here = change.to(hidden.device)
        here = here if back is None else here.gather(1, _wide(back.to(hidden.device), here))
        return torch.where(here == 0, hidden, (hidden.float() + here).to(hidden.dtype))

    return edit


def _match(first: Tower, other: Tower, prompts: Sequence[str], encoded: Encoded) -> Matched:
    """Tokens of the other tower, and which position corresponds to which: the same one wherever the tokens are the same."""
    ids, scored = tokenize(other.tokenizer, prompts)[:2]
    forth = torch.arange(ids.shape[1]).repeat(len(ids), 1)
    back = forth.clone()
    differs = (scored != encoded.scored) | ((ids != encoded.input_ids) & scored)
    for row in differs.any(1).nonzero().flatten().tolist():
        here, there = (_token_ends(tower.tokenizer, str(prompts[row])) for tower in (first, other))
        forth[row], back[row] = _lead(here, there, ids.shape[1]), _lead(there, here, ids.shape[1])
    return Matched(ids, forth, back)


def _token_ends(tokenizer: CLIPTokenizer, prompt: str) -> list[int]:
    """The character after each content token of `prompt`, as many tokens as fit."""
    return [end for _, end in tokens_of(tokenizer, [prompt])[0].spans[1:-1]]


def _lead(here: Sequence[int], there: Sequence[int], length: int) -> torch.Tensor:
    """(L,) for each position of one tokenization the position of another: BOS, content by its end, EOS, padding."""
    content = [1 + bisect_left(there, end) for end in here]  # past the last token: EOS
    after = [len(there) + 1 + step for step in range(length - 1 - len(here))]
    return torch.tensor([0, *content, *after][:length]).clamp(max=length - 1)
