import numpy as np
import torch

from components.guidance.losses import guidance_loss, relative_drift


def tensors(count):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, 1, 2, 2, generator=rng, requires_grad=True) for _ in range(count)]


def test_loss_equals_its_equation():
    """The terms and their weighted sum are those of numpy, from the equation in the module."""
    given = tensors(6)
    loss = guidance_loss(*given, uncond_weight=2.0, retain_weight=3.0)
    target, uncond, g, frozen, retain, frozen_retain = (t.detach().numpy() for t in given)
    terms = [np.mean(d**2) for d in (target - uncond - g, uncond - frozen, retain - frozen_retain)]

    np.testing.assert_allclose([t.item() for t in loss], [terms @ np.array([1.0, 2.0, 3.0]), *terms], rtol=1e-6)


def test_loss_unconditional_term_carries_gradient():
    """The unconditional output is pulled back by the second term, not just watched (invariant 5)."""
    target, uncond, g, frozen, retain, frozen_retain = tensors(6)
    loss = guidance_loss(target, uncond, g, frozen, retain, frozen_retain, uncond_weight=1.0, retain_weight=0.0)
    (from_term,) = torch.autograd.grad(loss.uncond_loss, uncond)

    torch.testing.assert_close(from_term, 2 * (uncond - frozen) / uncond.numel())


def test_target_loss_alone_cannot_see_a_common_shift():
    """One vector added to both outputs leaves the first term as it was: why the second must exist."""
    target, uncond, *others = tensors(6)
    one, two = (
        guidance_loss(target + s, uncond + s, *others, uncond_weight=1.0, retain_weight=0.0) for s in (0.0, 5.0)
    )

    torch.testing.assert_close(one.target_loss, two.target_loss)
    assert two.uncond_loss > one.uncond_loss + 1


def test_relative_drift_is_a_ratio_of_lengths():
    """Each sample's change over its length, by numpy."""
    edited, frozen = (t.detach() for t in tensors(2))
    a, b = edited.numpy().reshape(2, -1), frozen.numpy().reshape(2, -1)

    expected = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(relative_drift(edited, frozen), expected, rtol=1e-6)
