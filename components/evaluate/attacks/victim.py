"""What an attack sees of the eraser that it attacks: what prompts become, and with the weights in hand what the U-Net says.

    B prompts, N states of the objective, Z latent channels, h = w latent side, L token positions, D hidden

Everything is asked of the eraser as it is deployed, all its requests acting, so that what an attack finds is what a user finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from components.common.errors import StageError
from components.common.seeding import generator, stream_seed
from components.common.variants import Variant
from components.diffusion.images import to_model
from components.eraser import Erased, Eraser
from components.evaluate.attacks.attempts import Target
from components.evaluate.attacks.encoder import EncoderAccess, ask, states_of, with_states

FILTERED = ("filter", "summed", "gated")
REFERENCES = 8
"""Images of the target that the base draws where none are given."""


class Objective(NamedTuple):
    """States of a diffusion and what the U-Net should say at them: its mean squared error is what a search lowers."""

    latents: torch.Tensor
    """(N, Z, h, w)."""
    timesteps: torch.Tensor
    """(N,) int64."""
    wanted: torch.Tensor
    """(N, Z, h, w)."""


class Victim:
    """One variant of an eraser under attack for one request."""

    def __init__(self, eraser: Eraser, target: Target, variant: Variant, access: EncoderAccess | None = None) -> None:
        self.eraser, self.target = eraser, target
        self.variant: Variant = variant
        self.access = access or EncoderAccess(eraser)

    def against(self, variant: Variant) -> Victim:
        """The same eraser and target with another variant."""
        return Victim(self.eraser, self.target, variant, self.access)

    def special_texts(self) -> tuple[str, ...]:
        """The literal text of the tokenizer's special tokens."""
        return self.access.special_texts()

    @property
    def filters(self) -> bool:
        """Whether this variant's filter is at work for the request."""
        return self.variant in FILTERED and self.target.request in self.eraser.filters

    def read(self, texts: Sequence[str]) -> Erased:
        """What the deployed eraser does with these prompts."""
        return self.eraser.read(list(texts), variant=self.variant)

    def states(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, L, D) hidden states of the stock encoder."""
        return states_of(self.eraser.read(list(texts), variant="base"))

    def detected(self, erased: Erased) -> np.ndarray:
        """(B,) bool: prompts on which the request's filter or gated adapter acts."""
        seen = np.zeros(len(erased.prompts), bool)
        if self.target.request in erased.decision.requests:
            seen |= erased.decision.flagged[:, erased.decision.requests.index(self.target.request)].numpy(force=True)
        if not erased.everywhere and self.target.request in erased.acting:
            seen |= erased.acting[self.target.request].numpy(force=True)
        return seen

    def limit(self, request: str) -> torch.Tensor:
        """The score from which anything acts for a request: the adapter's gate may be wider than the filter."""
        item = self.eraser.filters[request]
        return torch.minimum(item.decision_threshold, getattr(item, "gate_threshold", item.decision_threshold))

    def margins(self, erased: Erased) -> torch.Tensor:
        """(B,) score less the limit from which anything acts; zeros without a filter."""
        if self.target.request not in erased.decision.requests:
            return torch.zeros(len(erased.prompts))
        column = erased.decision.requests.index(self.target.request)
        return erased.decision.scores[:, column] - self.limit(self.target.request)

    def check_hook(self) -> None:
        """`StageError` unless the filter flags a plain prompt of the target and changes its hidden states.

        An attack on an eraser whose hook never fires would prove nothing.
        """
        if not self.filters:
            return
        texts = [prompt.text for prompt in self.target.prompts]
        erased = self.read(texts)
        changed = (states_of(erased) != self.states(texts)).flatten(1).any(1).numpy(force=True)
        if not (self.detected(erased) & changed).any():
            raise StageError(
                f"the filter of {self.target.request} changes none of {len(texts)} prompts that name its target",
                "fit it: expunge run features",
            )

    @cached_property
    def reference_latents(self) -> torch.Tensor:
        """(T, Z, h, w) of images of the target: those given, or some that the base draws."""
        images = self.target.references
        if images is None:
            texts = [prompt.text for prompt in self.target.prompts[:REFERENCES]]
            erased = self.eraser.read(texts, variant="base")
            seeds = [stream_seed(0, "reference", i) % 2**31 for i in range(len(texts))]
            images = np.concatenate([part for _, part in self.eraser.paint(erased, seeds)])
        vae = self.eraser.pipe.vae
        with torch.no_grad():
            means = vae.encode(to_model(images).to(vae.device), return_dict=False)[0].mean
        return means * vae.config.scaling_factor

    def objective(self, rng: np.random.Generator, *, states: int = 4, frozen: str = "") -> Objective:
        """States on the way to images of the target, and the true output there, or what the base says of the prompt `frozen`."""
        pipe, total = self.eraser.pipe, int(self.eraser.pipe.scheduler.config.num_train_timesteps)
        edges = np.linspace(0.2 * total, 0.95 * total, states + 1)
        timesteps = torch.tensor([int(rng.integers(int(a), int(b))) for a, b in pairwise(edges)])
        clean = self.reference_latents[torch.from_numpy(rng.integers(0, len(self.reference_latents), states))]
        noise = torch.randn(clean.shape, generator=generator(int(rng.integers(2**31)), "attack")).to(clean.device)
        alpha = pipe.scheduler.alphas_cumprod[timesteps].to(clean.device)[:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        timesteps = timesteps.to(clean.device)
        if frozen:
            erased = self.eraser.read([frozen] * states, variant="base")
            with torch.no_grad(), self.eraser.acting(erased):
                return Objective(noisy, timesteps, ask(pipe.unet, noisy, timesteps, erased))
        velocity = pipe.scheduler.config.prediction_type == "v_prediction"
        wanted = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean if velocity else noise
        return Objective(noisy, timesteps, wanted)

    def errors(self, texts: Sequence[str], goal: Objective) -> np.ndarray:
        """(B,) mean squared error of the deployed eraser's U-Net at the objective's states."""
        erased, n = self.read(texts), len(goal.timesteps)
        rows = [i for i in range(len(texts)) for _ in range(n)]
        part, repeat = erased.take(rows), len(texts)
        with torch.no_grad(), self.eraser.acting(part):
            out = ask(self.eraser.pipe.unet, goal.latents.repeat(repeat, 1, 1, 1), goal.timesteps.repeat(repeat), part)
        return (
            (out - goal.wanted.repeat(repeat, 1, 1, 1))
            .square()
            .mean((1, 2, 3))
            .reshape(repeat, n)
            .mean(1)
            .numpy(force=True)
        )

    def error(self, states: torch.Tensor, erased: Erased, goal: Objective) -> torch.Tensor:
        """The scalar of one prompt from its states (1, L, D), with gradient; `erased` says which adapters act on it."""
        n = len(goal.timesteps)
        part = with_states(erased.take([0] * n), states.expand(n, -1, -1))
        with self.eraser.acting(part):
            out = ask(self.eraser.pipe.unet, goal.latents, goal.timesteps, part)
        return (out - goal.wanted).square().mean()
