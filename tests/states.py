"""Short ways to what tests read of a text encoder."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import CLIPTokenizer

from components.diffusion.towers import Tower, Towers


def one_tower(tokenizer: CLIPTokenizer, encoder: nn.Module, hookpoint: str = "encoder.layers.0") -> Towers:
    """The towers of a pipeline with this text encoder alone."""
    return Towers([Tower(tokenizer, encoder, hookpoint)])


def encode(encoder: nn.Module, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> torch.Tensor:
    """Last hidden states (B, L, D) of prompts."""
    return one_tower(tokenizer, encoder).encode(prompts).states
