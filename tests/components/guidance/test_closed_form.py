import numpy as np
import pytest
import torch

from components.common.errors import UserError
from components.diffusion.encode import tokenize
from components.guidance.adapters import adapted_layers, attach
from components.guidance.closed_form import (
    Moments,
    closed_form_loss,
    corresponding,
    moments,
    principal_axes,
    start_in_closed_form,
    steer,
)
from components.guidance.recipe import RIDGE
from tests.states import encode

IN_ENGLISH = ("my cat will jump", "my dog will jump", "context", "calibrate", True, ("cat",))
WEIGHTS = {"retain_weight": 2.0, "uncond_weight": 3.0}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def samples():
    """States of a target, of its anchor, to retain, and of the empty prompt."""
    return normal(40, 8), normal(40, 8, seed=1), normal(60, 8, seed=2), normal(5, 8, seed=3)


def moments_of(c, a, k, u):
    return Moments(c.T @ c / len(c), a.T @ c / len(c), k.T @ k / len(k), u.T @ u / len(u))


@pytest.mark.parametrize(
    ("target", "anchor", "wanted"),
    [
        ([9, 1, 2, 3, 0, 0, 0], [9, 1, 7, 3, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]),  # one word for one
        ([9, 1, 2, 5, 3, 0, 0], [9, 1, 7, 3, 0, 0, 0], [0, 1, 2, 2, 3, 4, 5]),  # one word for two
        ([9, 1, 2, 3, 0, 0, 0], [9, 1, 7, 5, 3, 0, 0], [0, 1, 3, 4, 5, 6, 6]),  # two words for one
        ([9, 2, 3, 0, 0, 0, 0], [9, 3, 0, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4, 5]),  # none for one
        ([9, 2, 1, 2, 0, 0, 0], [9, 7, 1, 7, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]),  # named twice
    ],
)
def test_corresponding_positions(target, anchor, wanted):
    """Words outside the names meet themselves, a name's last token the other's last, the end of text the end of text."""
    found = corresponding(torch.tensor([target]), torch.tensor([anchor]), 0)

    assert found[0].tolist() == wanted


def test_steer_is_least_squares_at_full_rank(samples):
    """With nothing truncated the map is the solution of a brute-force least-squares problem over the very samples."""
    c, a, k, u = samples
    up, down = steer(moments_of(*samples), rank=8, **WEIGHTS)
    parts = [(c, a - c, 1 / 40), (k, 0 * k, 2 / 60), (u, 0 * u, 3 / 5), (torch.eye(8), torch.zeros(8, 8), RIDGE)]
    rows = torch.cat([x * weight**0.5 for x, _, weight in parts])
    wanted = torch.cat([y * weight**0.5 for _, y, weight in parts])

    torch.testing.assert_close(up @ down, torch.linalg.lstsq(rows, wanted).solution.T)


def test_steer_truncates_best(samples):
    """No other map of rank 2 that is tried has a lower objective: not the truncated SVD of M, nor ten neighbours of the solution."""
    c, a, k, _ = samples

    def objective(step):
        erased, moved = c + c @ step.T - a, k @ step.T
        return (erased.square().sum() / 40 + 2 * moved.square().sum() / 60 + RIDGE * step.square().sum()).item()

    up, down = steer(moments_of(*samples), rank=2, retain_weight=2.0, uncond_weight=0.0)
    full_up, full_down = steer(moments_of(*samples), rank=8, retain_weight=2.0, uncond_weight=0.0)
    left, spread, right = torch.linalg.svd(full_up @ full_down)
    others = [left[:, :2] * spread[:2] @ right[:2]]
    others += [(up + 0.02 * normal(8, 2, seed=s)) @ (down + 0.02 * normal(2, 8, seed=s + 50)) for s in range(10)]
    least = objective(up @ down)

    assert objective(full_up @ full_down) < least
    assert all(objective(other) > least for other in others)


def test_steer_refuses_a_rank_beyond_the_width(samples):
    """One sentence with the value, the limit and the remedy."""
    with pytest.raises(UserError, match=r"guidance\.rank=9 exceeds the 8 dimensions .*; lower it"):
        steer(moments_of(*samples), rank=9, **WEIGHTS)


def test_moments_by_hand(tiny_pipe, table):
    """They are averages over positions of what may be trained on: the evaluation's prompts are not among them."""

    def states(*prompts):
        return encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, prompts).double()

    c, k = states("a cat", "neon cat on a car"), states("an owl", "a car").flatten(0, 1)
    pairs = (["a cat", "neon cat on a car"], ["a dog", "neon dog on a car"])
    ids = (tokenize(tiny_pipe.tokenizer, each).input_ids for each in pairs)
    at = corresponding(*ids, tiny_pipe.tokenizer.eos_token_id)
    a = torch.stack([row[index] for row, index in zip(states("a dog", "neon dog on a car"), at, strict=True)])
    found = moments(tiny_pipe, table())

    torch.testing.assert_close(found.target, torch.einsum("pld,ple->de", c, c) / c.shape[:2].numel())
    torch.testing.assert_close(found.wanted, torch.einsum("pld,ple->de", a, c) / c.shape[:2].numel())
    torch.testing.assert_close(found.retain, k.T @ k / len(k))


def test_moments_count_the_target_in_everyday_english_as_the_target(tiny_pipe, table):
    """A prompt that names the target is never among those to retain, whatever role it was composed for."""
    plain, more = moments(tiny_pipe, table()), moments(tiny_pipe, table(IN_ENGLISH))
    c = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat", "neon cat on a car", IN_ENGLISH[0]]).double()

    torch.testing.assert_close(more.target, torch.einsum("pld,ple->de", c, c) / c.shape[:2].numel())
    assert torch.equal(more.retain, plain.retain)


def test_moments_without_an_anchor_want_the_empty_prompt(tiny_pipe, table):
    """Without a counterpart a state that has read the name is to become the empty prompt's; those before it stay."""
    found = moments(tiny_pipe, table(anchor=False))
    empty = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""])[0].double()
    c = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat", "neon cat on a car"]).double()
    a = empty.repeat(2, 1, 1)
    ids = tokenize(tiny_pipe.tokenizer, ["a cat", "neon cat on a car", "cat"]).input_ids
    for row in range(2):
        name = ids[row].tolist().index(int(ids[2, 1]))
        a[row, :name] = c[row, :name]

    assert name > 1
    torch.testing.assert_close(found.wanted, torch.einsum("pld,ple->de", a, c) / c.shape[:2].numel())


def test_moments_in_bf16_are_those_of_float32_to_a_hundredth(tiny_pipe, table):
    """The instant mode's reading differs from the exact one, and by little."""
    exact, quick = moments(tiny_pipe, table()), moments(tiny_pipe, table(), bf16=True)

    for one, other in zip(exact, quick, strict=True):
        assert other.dtype == torch.float64
        assert 0 < (one - other).norm() < 0.01 * one.norm()


def test_start_edits_hidden_states(tiny_pipe, table):
    """An initial adapter gives the keys and values that the base gives for hidden states moved by M, and changes no other layer."""
    found = moments(tiny_pipe, table())
    attach(tiny_pipe.unet, "r", rank=4, layers=("attn2.to_q", "attn2.to_k", "attn2.to_v"))
    start_in_closed_form(tiny_pipe.unet, "r", found, rank=4, **WEIGHTS)
    up, down = steer(found, rank=4, **WEIGHTS)
    states = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat"])[0]
    moved = states + states @ (up @ down).T.float()
    queries = [m for path, m in tiny_pipe.unet.named_modules() if path.endswith("attn2.to_q")]

    assert not any(layer.lora_B["r"].weight.any() for layer in queries)
    with torch.no_grad():
        for layer in adapted_layers(tiny_pipe.unet, "r"):
            torch.testing.assert_close(layer(states), layer.base_layer(moved), rtol=1e-4, atol=1e-5)


def test_closed_form_loss_is_what_the_closed_form_minimises(tiny_pipe):
    """Summed over samples of states it is the module's equation, less what the base has, on random A and B."""
    size = tiny_pipe.unet.config.cross_attention_dim
    c, a, k, u = (normal(n, size, seed=i) for i, n in enumerate((40, 40, 60, 5)))
    attach(tiny_pipe.unet, "r", rank=3)
    found = []
    for layer in adapted_layers(tiny_pipe.unet, "r"):
        with torch.no_grad():
            layer.lora_B["r"].weight.copy_(normal(layer.out_features, 3, seed=9))
        weight = layer.base_layer.weight.double()
        step = layer.lora_B["r"].weight.double() @ layer.lora_A["r"].weight.double()
        off = ((c @ step.T - (a - c) @ weight.T).square().sum() - ((a - c) @ weight.T).square().sum()) / 40
        still = 2 * (k @ step.T).square().sum() / 60 + 3 * (u @ step.T).square().sum() / 5
        found.append((off + still + RIDGE * step.square().sum()) / ((c @ weight.T).square().sum() / 40))
    loss = closed_form_loss(tiny_pipe.unet, "r", moments_of(c, a, k, u), **WEIGHTS)

    assert loss().item() == pytest.approx(torch.stack(found).mean().item(), 1e-5)


def test_closed_form_loss_is_least_at_the_start(tiny_pipe, table):
    """At full rank the closed form leaves it no gradient, and it lies below that of an adapter that changes nothing."""
    found = moments(tiny_pipe, table())
    size = found.target.shape[0]
    parameters = attach(tiny_pipe.unet, "r", rank=size)
    loss = closed_form_loss(tiny_pipe.unet, "r", found, **WEIGHTS)
    before = torch.autograd.grad(loss(), parameters)
    start_in_closed_form(tiny_pipe.unet, "r", found, rank=size, **WEIGHTS)
    after = torch.autograd.grad(loss(), parameters)

    assert loss().item() < 0
    assert max(g.abs().max() for g in after) < 1e-3 * max(g.abs().max() for g in before)


def test_principal_axes_are_the_singular_vectors_of_the_states():
    """They agree with an independent singular value decomposition of the weighted states without the empty prompt's part."""
    rng = np.random.default_rng(0)
    c, k, u = (rng.normal(size=(n, 12)) * np.arange(1, 13) for n in (200, 300, 2))
    empty = np.linalg.qr(u.T)[0].T  # (2, D)
    given = moments_of(*(torch.from_numpy(x) for x in (c, c, k, u)))
    axes = principal_axes(given, torch.from_numpy(empty).float(), **WEIGHTS).double().numpy()
    rows = np.concatenate([c / 200**0.5, k * (2 / 300) ** 0.5])
    wanted = np.linalg.svd(rows - rows @ empty.T @ empty)[2][:10][::-1]

    assert axes.shape == (10, 12)
    np.testing.assert_allclose(np.abs(axes @ wanted.T), np.eye(10), atol=1e-3)  # up to their signs
    np.testing.assert_allclose(axes @ empty.T, 0, atol=1e-6)
