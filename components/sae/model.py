"""The sparse autoencoder and its file format, which is SAELens' own.

    T tokens, D = d_in, F = d_sae, k active latents a token

    pre = (x - b_dec) W_enc + b_enc,   z = σ(pre),   x̂ = z W_dec + b_dec        rows of W_dec have norm 1

σ is TopK (Gao et al. 2024), BatchTopK in training (Bussmann et al. 2024), or JumpReLU (Rajamanoharan et al. 2024): a
BatchTopK autoencoder is stored as JumpReLU with one threshold, so that a token's code does not depend on its batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from components.common.artifacts import fill_artifact, read_artifact
from components.common.errors import ArtifactError
from components.common.files import canonical
from components.diffusion.folder import TEXT_PARTS, check_made_for, part_digests

FORMAT = "expunge/sae"
WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
Architecture = Literal["topk", "jumprelu"]
_ROWS = 1024  # of the decoder, that a pass over them takes at once: what fits into a cache
_STRIDE = 61  # every 61st entry is enough to guess a bound; a prime, so that no column is sampled alone


class Active(NamedTuple):
    """The entries of a code (T, F) that may differ from 0, ordered by token; N of them."""

    tokens: torch.Tensor
    """(N,) row of each entry."""
    latents: torch.Tensor
    """(N,) column of each entry."""
    values: torch.Tensor
    """(N,) none of them negative."""

    def dense(self, like: torch.Tensor) -> torch.Tensor:
        """The code as a matrix of the shape of `like`."""
        return torch.zeros_like(like).index_put((self.tokens, self.latents), self.values)


def topk_entries(pre: torch.Tensor, k: int) -> Active:
    """The k largest entries of each row of pre (T, F), cut at 0."""
    values, latents = pre.topk(k, dim=-1, sorted=False)
    tokens = torch.arange(len(pre), device=pre.device).repeat_interleave(k)
    return Active(tokens, latents.flatten(), values.flatten().relu())


def batch_topk_entries(pre: torch.Tensor, k: int) -> Active:
    """The T·k largest positive entries of pre (T, F).

    A sample of the entries gives a bound below which none of them can be kept, so that few have to be ranked.
    """
    flat, wanted = pre.flatten(), k * len(pre)
    sample = flat.detach()[::_STRIDE]
    bound = sample.topk(min(len(sample), 2 * wanted // _STRIDE + 8), sorted=False).values.min().clamp(min=0)
    found = (flat.detach() > bound).nonzero().squeeze(1)
    if len(found) < wanted:  # the sample misled, or there are not so many
        found = (flat.detach() > 0).nonzero().squeeze(1)
    if len(found) > wanted:
        keep = torch.zeros_like(found, dtype=torch.bool)
        keep[flat.detach()[found].topk(wanted, sorted=False).indices] = True
        found = found[keep]
    return Active(found // pre.shape[1], found % pre.shape[1], flat[found])


def topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """(T, F) with all but the k largest positive entries of each row set to 0."""
    return topk_entries(pre, k).dense(pre)


def batch_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """(T, F) with all but the T·k largest positive entries of the whole batch set to 0."""
    return batch_topk_entries(pre, k).dense(pre)


SELECT = {"topk": topk_entries, "batchtopk": batch_topk_entries}
"""What chooses the active entries in training, by `sae.activation`."""


def weighted_rows(into: torch.Tensor, rows: torch.Tensor, table: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sums `weights` times the `rows` of `table` (·, D) between the bounds `into` (S + 1,): (S, D)."""
    return F.embedding_bag(rows, table, into, mode="sum", per_sample_weights=weights, include_last_offset=True)


def bounds(groups: torch.Tensor, count: int) -> torch.Tensor:
    """Where each of `count` groups begins in sorted `groups`, and the end: (count + 1,)."""
    return F.pad(torch.bincount(groups, minlength=count).cumsum(0), (1, 0))


class SparsePass(torch.autograd.Function):
    """Decodes chosen entries of a code, touching those alone, forwards and backwards.

        x̂_t = b_dec + Σ z_n W_dec[f]    over the entries n = (t, f),  z_n = ReLU((x_t - b_dec) · W_enc[:, f] + b_enc[f])

    With δ = ∂L/∂x̂ and γ_n = δ_t · W_dec[f] where z_n > 0: ∂W_dec[f] = Σ z_n δ_t, ∂W_enc[:, f] = Σ γ_n (x_t - b_dec),
    ∂b_enc[f] = Σ γ_n and ∂b_dec = Σ δ_t - W_enc ∂b_enc. Nothing flows to x.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: torch.Tensor,
        encoder: torch.Tensor,  # (F, D): W_enc's transpose
        b_enc: torch.Tensor,  # noqa: ARG004 - its gradient is asked for
        w_dec: torch.Tensor,
        b_dec: torch.Tensor,
        *active: torch.Tensor,
    ) -> torch.Tensor:
        """(T, D) from `Active`'s fields, whose values are z."""
        tokens, latents, values = active
        ctx.save_for_backward(x - b_dec, encoder, w_dec, *active)
        return weighted_rows(bounds(tokens, len(x)), latents, w_dec, values) + b_dec

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401 - torch's context
        """Gradients of the weights, in the order of `forward`."""
        grad = grads[0].contiguous()
        centred, encoder, w_dec, tokens, latents, values = ctx.saved_tensors
        with torch.enable_grad():  # torch's own derivative by the weights of a bag reads each row once
            leaf = values.detach().requires_grad_()
            bag = weighted_rows(bounds(tokens, len(grad)), latents, w_dec.detach(), leaf)
            (gamma,) = torch.autograd.grad(bag, leaf, grad)
        gamma = gamma * (values > 0)
        order = latents.argsort(stable=True)
        into, rows = bounds(latents, len(w_dec)), tokens[order]
        by_dec = weighted_rows(into, rows, grad, values[order])
        by_enc = weighted_rows(into, rows, centred, gamma[order])
        by_bias = torch.zeros_like(w_dec[:, 0]).index_add(0, latents, gamma)
        return None, by_enc, by_bias, by_dec, grad.sum(0) - encoder.T @ by_bias, None, None, None


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
    """Weights of an SAE, and its inference form; SAELens' names, but for `encoder`, of which its `W_enc` is the transpose."""

    threshold: torch.Tensor
    """(F,) JumpReLU thresholds; zeros for TopK."""

    def __init__(self, d_in: int, d_sae: int, *, k: int, architecture: Architecture = "jumprelu") -> None:
        super().__init__()
        self.k, self.architecture = k, architecture
        self.encoder = nn.Parameter(torch.empty(d_sae, d_in))  # W_enc as its gradient lies, which is then never copied
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("threshold", torch.zeros(d_sae))

    @property
    def W_enc(self) -> torch.Tensor:  # noqa: N802 - SAELens' name
        """(D, F): column f is what latent f looks for."""
        return self.encoder.T

    @property
    def d_in(self) -> int:
        """Width of the residual stream."""
        return self.encoder.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.encoder.shape[0]

    @torch.no_grad()
    def initialise(self, b_dec: torch.Tensor, rows: torch.Tensor) -> None:
        """Decoder rows along `rows` (F, D), at norm 1, the encoder as their transpose, and the given decoder bias."""
        self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        self.encoder.copy_(self.W_dec)
        self.b_dec.copy_(b_dec)

    def pre_activations(self, x: torch.Tensor, latents: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """(..., D) to (..., F), or to those of some latents."""
        return (x - self.b_dec) @ self.encoder[latents].T + self.b_enc[latents]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The code (..., F) of x (..., D) in the stored form: each token's is its own."""
        if self.architecture == "topk":
            return topk(self.pre_activations(x), self.k)
        return jump_codes(x, self.W_enc, self.b_enc, self.b_dec, self.threshold)

    def forward(
        self,
        x: torch.Tensor,
        activation: str,
        workspace: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The training pass of x (T, D) with `topk` or `batchtopk`: (reconstruction, and `Active`'s fields).

        `workspace` (T, F) takes the pre-activations: to ask for fresh memory at every step costs a CPU time.
        """
        with torch.no_grad():
            pre = torch.addmm(self.b_enc, x - self.b_dec, self.encoder.T, out=workspace)
            active = SELECT[activation](pre, self.k)
        return self.decode_active(x, active), active.tokens, active.latents, active.values

    def decode_active(self, x: torch.Tensor, active: Active) -> torch.Tensor:
        """The reconstruction of x (T, D) from chosen entries of its code, differentiable by the weights."""
        done: Any = SparsePass.apply(x, self.encoder, self.b_enc, self.W_dec, self.b_dec, *active)
        return done

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(..., F) to (..., D)."""
        return z @ self.W_dec + self.b_dec

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Gives the decoder's rows norm 1 again."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Takes from the decoder's gradient what only stretches its rows, some rows at a time so that they stay in cache."""
        if self.W_dec.grad is not None:
            for grad, rows in zip(self.W_dec.grad.split(_ROWS), self.W_dec.split(_ROWS), strict=True):
                grad.sub_((grad * rows).sum(1, keepdim=True) * rows)


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
    tensors["encoder"] = tensors.pop("W_enc").T
    sae.load_state_dict(tensors, strict=architecture == "jumprelu")
    return sae.requires_grad_(False).eval(), sidecar


def open_sae(folder: Path, base: Path) -> SparseAutoencoder:
    """The autoencoder of the model in folder `base`; `ArtifactError` if it was trained on another one's text encoders."""
    sae, sidecar = read_sae(folder)
    inputs: Any = sidecar["inputs"]
    check_made_for(inputs, part_digests(base, TEXT_PARTS), f"the SAE in {folder}", base)
    return sae
