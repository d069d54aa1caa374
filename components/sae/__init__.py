"""The sparse autoencoder on the text encoder's residual stream; no request enters its training."""

from components.sae.activations import ActivationStore, cache_activations
from components.sae.losses import auxk_loss, fvu
from components.sae.model import SparseAutoencoder, batch_topk, jump_codes, read_sae, topk, write_sae
from components.sae.train import SaeStep, evaluate_sae, geometric_median, train_sae

__all__ = [
    "ActivationStore",
    "SaeStep",
    "SparseAutoencoder",
    "auxk_loss",
    "batch_topk",
    "cache_activations",
    "evaluate_sae",
    "fvu",
    "geometric_median",
    "jump_codes",
    "read_sae",
    "topk",
    "train_sae",
    "write_sae",
]
