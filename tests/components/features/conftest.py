"""A reader of the tiny encoder."""

import pytest
import torch

from components.features.reading import Reader
from components.sae.model import SparseAutoencoder


@pytest.fixture(scope="session")
def reader(tiny_towers):
    """A random encoder, read by random latents."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(32, 256, k=8).requires_grad_(False)
    sae.W_enc.copy_(torch.randn(32, 256))
    sae.threshold.fill_(4.0)
    return Reader(tiny_towers, sae)
