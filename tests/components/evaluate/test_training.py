import pytest
import torch

from components.common.config import load_params
from components.evaluate.training import of_several
from components.guidance import guidance_loss


def test_one_adapter_for_several_has_all_their_surgical_terms():
    """N times the loss of a batch with a prompt of each request is the sum of their surgical terms, and what is held once."""
    rng = torch.Generator().manual_seed(0)
    target, uncond, anchor, frozen, retain, kept = torch.randn(6, 4, 2, 3, 3, generator=rng)
    alone = load_params().guidance
    joint = of_several(alone, 4, most=256)

    def loss(rows, settings):
        return guidance_loss(
            *(part[rows] for part in (target, uncond, anchor, frozen)), retain, kept,
            uncond_weight=settings.uncond_weight, retain_weight=settings.retain_weight,
        )  # fmt: skip

    whole = loss(slice(None), joint)
    surgical = sum(loss([row], alone).surgical for row in range(4))
    expected = surgical + alone.uncond_weight * whole.uncond + alone.retain_weight * whole.retain

    assert (4 * whole.total).item() == pytest.approx(expected.item(), rel=1e-5)


def test_steps_and_ranks_of_several_add_up():
    """Up to the rank that the hidden states have; one request alone is as it was."""
    alone = load_params().guidance

    assert (of_several(alone, 4, most=256).steps, of_several(alone, 4, most=256).rank) == (
        4 * alone.steps,
        4 * alone.rank,
    )
    assert of_several(alone, 40, most=256).rank == 256
    assert of_several(alone, 1, most=256) == alone
