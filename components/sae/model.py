"""The sparse autoencoder and its file format, which is SAELens' own.

    T tokens, D = d_in, F = d_sae, k active latents a token

    pre = (x - b_dec) W_enc + b_enc,   z = σ(pre),   x̂ = z W_dec + b_dec        rows of W_dec have norm 1

σ is TopK (Gao et al. 2024), BatchTopK in training (Bussmann et al. 2024), or JumpReLU (Rajamanoharan et al. 2024): a
BatchTopK autoencoder is stored as JumpReLU with one threshold, so that a token's code does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from components.common.artifacts import canonical, fill_artifact, read_artifact
from components.common.errors import ArtifactError

FORMAT = "expunge/sae"
WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
Architecture = Literal["topk", "jumprelu"]
_STRIDE = 61  # every 61st entry is enough to guess a bound; a prime, so that no column is sampled alone


def topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """(T, F) with all but the k largest positive entries of each row set to 0."""
    values, indices = pre.relu().topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def batch_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """(T, F) with all but the T·k largest positive entries of the whole batch set to 0.

    A sample of the entries gives a bound below which none of them can be kept, so that few have to be ranked.
    """
    flat, wanted = pre.relu().flatten(), k * len(pre)
    sample = flat.detach()[::_STRIDE]
    bound = sample.topk(min(len(sample), 2 * wanted // _STRIDE + 8), sorted=False).values.min()
    rows = (flat.detach() > bound).nonzero().squeeze(1)
    candidates = flat if len(rows) < wanted else flat[rows]
    values, indices = candidates.topk(wanted, sorted=False)
    return torch.zeros_like(flat).scatter(0, indices if candidates is flat else rows[indices], values).view_as(pre)


def jump_codes(
    x: torch.Tensor,  # (..., D)
    w_enc: torch.Tensor,  # (D, S), of all latents or of some
    b_enc: torch.Tensor,  # (S,)
    b_dec: torch.Tensor,  # (D,)
    threshold: torch.Tensor,  # (S,)
) -> torch.Tensor:
    """JumpReLU codes (..., S): each latent decides for itself, so some of them decide as they would among all."""
    pre = (x - b_dec) @ w_enc + b_enc
    return pre * (pre > threshold)


class SparseAutoencoder(nn.Module):
    """Weights of an SAE in SAELens' names and orientation, and its inference form."""

    threshold: torch.Tensor
    """(F,) JumpReLU thresholds; zeros for TopK."""

    def __init__(self, d_in: int, d_sae: int, *, k: int, architecture: Architecture = "jumprelu") -> None:
        super().__init__()
        self.k, self.architecture = k, architecture
        self.W_enc = nn.Parameter(torch.empty(d_in, d_sae))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("threshold", torch.zeros(d_sae))

    @property
    def d_in(self) -> int:
        """Width of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @torch.no_grad()
    def initialise(self, b_dec: torch.Tensor, rows: torch.Tensor) -> None:
        """Decoder rows along `rows` (F, D), at norm 1, the encoder as their transpose, and the given decoder bias."""
        self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        self.W_enc.copy_(self.W_dec.T)
        self.b_dec.copy_(b_dec)

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., F)."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The code (..., F) of x (..., D) in the stored form: each token's is its own."""
        if self.architecture == "topk":
            return topk(self.pre_activations(x), self.k)
        return jump_codes(x, self.W_enc, self.b_enc, self.b_dec, self.threshold)

    def forward(
        self, x: torch.Tensor, activate: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The training pass with `topk` or `batch_topk`: (pre-activations, code, reconstruction)."""
        pre = self.pre_activations(x)
        z = activate(pre, self.k)
        return pre, z, self.decode(z)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(..., F) to (..., D)."""
        return z @ self.W_dec + self.b_dec

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Gives the decoder's rows norm 1 again."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Takes from the decoder's gradient what only stretches its rows."""
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.sub_(along * self.W_dec)


def write_sae(
    folder: Path,
    sae: SparseAutoencoder,
    *,
    hookpoint: str,
    params: dict[str, object],
    inputs: dict[str, str],
    facts: dict[str, object],
) -> None:
    """Writes SAELens' `cfg.json` and `sae_weights.safetensors`, and our sidecar, into an open `new_folder`."""
    tensors: dict[str, torch.Tensor] = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    config: dict[str, object] = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "expunge-base", "hook_name": hookpoint, "k": sae.k},
    }
    if sae.architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    else:
        tensors["threshold"] = sae.threshold
    fill_artifact(folder, kind=FORMAT, tensors=tensors, params=params, inputs=inputs, facts=facts, weights=WEIGHTS)
    (folder / CONFIG).write_text(canonical(config), encoding="utf-8")


def read_sae(folder: Path) -> tuple[SparseAutoencoder, dict[str, object]]:
    """(the autoencoder, its sidecar's facts and params); `ArtifactError` for anything but what was written."""
    tensors, sidecar = read_artifact(folder, FORMAT)
    architecture: Architecture = "jumprelu" if "threshold" in tensors else "topk"
    d_in, d_sae = tensors["W_enc"].shape
    if tensors["W_dec"].shape != (d_sae, d_in):
        raise ArtifactError(
            f"{folder}: W_dec is {tuple(tensors['W_dec'].shape)}", f"it must be {(d_sae, d_in)}: dvc repro sae"
        )
    sae = SparseAutoencoder(d_in, d_sae, k=int(sidecar["params"]["k"]), architecture=architecture)
    sae.load_state_dict(tensors, strict=architecture == "jumprelu")
    return sae.requires_grad_(False).eval(), sidecar
