"""Graphs whose cost is measured: CLIP ViT-L's text encoder with random weights, with filters or a whole SAE behind it.

    B prompts, L token positions, D = d_in, S features a request, R requests, F = d_sae

What a graph computes depends on no value, so that random weights cost what trained ones do.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from components.common.seeding import generator
from components.diffusion.towers import Tower, Towers
from components.diffusion.trie import ANY, WORD_END
from components.filter.artifact import RequestFilter
from components.filter.positions import POSITION_CLASSES

OWN, CONTEXT, NAMES = 64, 96, 3
"""Of one request, as params.yaml has them: S = 160 features, and a row of weights for each name."""
SPELLINGS, WORDS = 120, 8
"""Of one request, about as many as the shipped ones have: token patterns and their width."""
K = 64
OPSET = 18


class Shape(NamedTuple):
    """Sizes of the text encoder."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    length: int = 77
    vocabulary: int = 49408


class StockStates(nn.Module):
    """The encoder alone, as a graph returns it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, L) to (B, L, D)."""
        return self.encoder(input_ids)[0]


class DenseSae(nn.Module):
    """x̂ = TopK((x - b) W_enc + c) W_dec + b, over all F latents, as Interpret-then-Deactivate has it."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.empty(d_in, d_sae).uniform_(-0.05, 0.05, generator=generator(0, "enc")))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_in).uniform_(-0.05, 0.05, generator=generator(0, "dec")))
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(d_in))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to (B, L, D)."""
        pre = (hidden - self.b_dec) @ self.W_enc + self.b_enc
        values, indices = pre.topk(K, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values.relu()) @ self.W_dec + self.b_dec


def build_encoder(shape: Shape) -> CLIPTextModel:
    """A text encoder of those sizes with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=4 * shape.width,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, max_position_embeddings=shape.length,
            hidden_act="quick_gelu", bos_token_id=shape.vocabulary - 2, eos_token_id=shape.vocabulary - 1,
            pad_token_id=shape.vocabulary - 1,
        )  # fmt: skip
        return CLIPTextModel(config).eval().requires_grad_(False)


def build_towers(shape: Shape, encoder: CLIPTextModel) -> Towers:
    """That encoder as the one tower of a pipeline, edited in its middle; the last token of the vocabulary is EOS."""
    eos = shape.vocabulary - 1
    special: Any = SimpleNamespace(eos_token_id=eos, pad_token_id=eos, model_max_length=shape.length)
    return Towers([Tower(special, encoder, f"encoder.layers.{shape.layers // 2}")])


def build_filters(width: int, vocabulary: int, count: int) -> dict[str, RequestFilter]:
    """Filters that replace, with random features cut out of one autoencoder, and random names spelt in many ways."""
    b_dec, size = torch.zeros(width), OWN + CONTEXT
    ends = torch.rand(vocabulary, generator=generator(0, "word ends")) < 0.5
    filters = {}
    for index in range(count):
        rng = generator(index, "filter")
        filters[f"r-{index:02d}"] = RequestFilter(
            features=torch.arange(size),
            own=(torch.arange(size) < OWN).float(),
            w_enc=torch.randn(width, size, generator=rng) / width**0.5,
            b_enc=torch.zeros(size),
            latent_threshold=torch.full((size,), 0.5),
            w_dec=torch.randn(size, width, generator=rng) / width**0.5,
            b_dec=b_dec,
            weights=torch.randn(NAMES, size, generator=rng),
            bias=torch.zeros(NAMES),
            decision_threshold=torch.tensor(10.0),
            directions=torch.randn(len(POSITION_CLASSES), width, generator=rng),
            gain=torch.tensor(0.0),
            classes=torch.ones(len(POSITION_CLASSES)),
            spellings=random_patterns(vocabulary, rng),
            word_ends=ends,
        )
    return filters


def random_patterns(vocabulary: int, rng: torch.Generator) -> torch.Tensor:
    """(M, W) as `spelling_patterns` has them: anything, the end of a word, then two to W - 1 random tokens."""
    patterns = torch.randint(vocabulary, (SPELLINGS, WORDS), generator=rng)
    before = torch.randint(WORDS - 2, (SPELLINGS, 1), generator=rng)
    place = torch.arange(WORDS)
    return patterns.masked_fill(place < before, ANY).masked_fill(place == before, WORD_END)


def prompts(shape: Shape, batch: int) -> np.ndarray:
    """Tokens (B, L): BOS, 3 to 20 words, EOS to the end."""
    rng = np.random.default_rng(0)
    ids = np.full((batch, shape.length), shape.vocabulary - 1)
    ids[:, 0] = shape.vocabulary - 2
    for row in ids:
        words = int(rng.integers(3, 21))
        row[1 : words + 1] = rng.integers(0, shape.vocabulary - 2, words)
    return ids


def export_module(
    module: nn.Module, example: torch.Tensor, path: Path, names: tuple[str, str], *, beside: bool
) -> None:
    """Writes a module of one input and one output with a dynamic batch; `beside` puts its weights into a file of their own.

    Such a file is mapped into memory, of which pages that nobody reads are no part: it takes less than a graph that holds its weights.
    """
    program = torch.onnx.export(
        module, (example,), dynamo=True, input_names=[names[0]], output_names=[names[1]],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=256)},), opset_version=OPSET, verbose=False,
    )  # fmt: skip
    assert program is not None  # it is, with dynamo
    program.save(str(path), external_data=beside)
