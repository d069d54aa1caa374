import pandas as pd
import pytest
import torch

from components.common.errors import UserError
from components.common.sections import load_params
from components.diffusion.encode import encode, tokenize
from components.guidance.adapters import attach
from components.guidance.closed_form import Moments, corresponding, map_loss, moments, pool, start_in_closed_form, steer
from components.guidance.prepare import prepare
from components.requests.requests import Request
from research.guidance.erasers import uce_weight

ROWS = [
    ("a cat", "a dog", "target", "select", True),
    ("neon cat on a car", "neon dog on a car", "mixed", "select", True),
    ("an owl", "", "retain", "select", False),
    ("a car", "", "neighbour", "calibrate", False),
    ("a red cat", "a red dog", "target", "evaluate", True),
]
IN_ENGLISH = ("my cat will jump", "my dog will jump", "context", "calibrate", True)


def table(*more, anchor=True):
    rows = pd.DataFrame([*ROWS, *more], columns=["prompt", "counterpart", "role", "split", "carries"])
    rows = rows.assign(pair=rows["role"] == "mixed", spoken="cat", style="", concepts=rows["prompt"])
    return rows if anchor else rows.assign(counterpart="")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def samples():
    """States of a target, of its anchor, and to keep."""
    return normal(40, 8), normal(40, 8, seed=1), normal(60, 8, seed=2)


@pytest.fixture
def given(samples):
    c, a, k = samples
    return Moments(c.T @ c / len(c), a.T @ c / len(c), k.T @ k / len(k), torch.zeros(8, 8).double())


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


def test_steer_is_uce_at_full_rank(samples, given):
    """With nothing truncated, W (I + M) is the weight that the benchmark's UCE solves for, on the same states and weights."""
    c, a, k = samples
    weight, size = normal(5, 8, seed=3), len(c)
    up, down = steer(given, rank=8, retain_weight=2.5, uncond_weight=0.0)
    oracle = uce_weight(weight, c, a, k, preserve_weight=2.5 * size / len(k), ridge=1e-4 * size)

    torch.testing.assert_close(weight + weight @ up @ down, oracle)


def test_steer_truncates_best(samples, given):
    """Of maps of rank 2 none that is tried has a lower objective: not the truncated SVD of M, nor ten neighbours of the solution."""
    c, a, k = samples

    def objective(step):
        erased, kept = c + c @ step.T - a, k @ step.T
        return (erased.square().sum() / len(c) + 2 * kept.square().sum() / len(k) + 1e-4 * step.square().sum()).item()

    up, down = steer(given, rank=2, retain_weight=2.0, uncond_weight=0.0)
    full_up, full_down = steer(given, rank=8, retain_weight=2.0, uncond_weight=0.0)
    left, spread, right = torch.linalg.svd(full_up @ full_down)
    others = [left[:, :2] * spread[:2] @ right[:2]]
    others += [(up + 0.02 * normal(8, 2, seed=s)) @ (down + 0.02 * normal(2, 8, seed=s + 50)) for s in range(10)]
    least = objective(up @ down)

    assert objective(full_up @ full_down) < least
    assert all(objective(other) > least for other in others)


def test_steer_holds_the_empty_prompt_as_asked(given):
    """The more the empty prompt weighs, the less the map moves its states."""
    empty = normal(3, 8, seed=4)
    given = given._replace(uncond=empty.T @ empty / 3)
    moved = []
    for weight in (0.0, 1.0, 1000.0):
        up, down = steer(given, rank=8, retain_weight=1.0, uncond_weight=weight)
        moved.append((empty @ (up @ down).T).norm().item())

    assert moved[0] > moved[1] > 20 * moved[2]


def test_steer_refuses_a_rank_beyond_the_width(given):
    """One sentence with the value, the limit and the remedy."""
    with pytest.raises(UserError, match=r"guidance\.rank=9 exceeds the 8 dimensions .*; lower it"):
        steer(given, rank=9, retain_weight=1.0, uncond_weight=0.0)


def test_moments_by_hand(tiny_pipe):
    """They are averages over positions of what may be trained on: the evaluation's prompts are not among them."""

    def states(*prompts):
        return encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, prompts).double()

    c, k = states("a cat", "neon cat on a car"), states("an owl", "a car").flatten(0, 1)
    pairs = (["a cat", "neon cat on a car"], ["a dog", "neon dog on a car"])
    ids = (tokenize(tiny_pipe.tokenizer, each).input_ids for each in pairs)
    at = corresponding(*ids, tiny_pipe.tokenizer.eos_token_id)
    a = torch.stack([row[index] for row, index in zip(states("a dog", "neon dog on a car"), at, strict=True)])
    found = moments(tiny_pipe, table(), negative=0.0)

    torch.testing.assert_close(found.target, torch.einsum("pld,ple->de", c, c) / c.shape[:2].numel())
    torch.testing.assert_close(found.wanted, torch.einsum("pld,ple->de", a, c) / c.shape[:2].numel())
    torch.testing.assert_close(found.keep, k.T @ k / len(k))


def test_moments_count_the_target_in_ordinary_english_as_the_target(tiny_pipe):
    """A prompt that carries the target is never among those to keep, whatever role it was composed for."""
    plain, more = moments(tiny_pipe, table(), negative=0.0), moments(tiny_pipe, table(IN_ENGLISH), negative=0.0)
    c = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat", "neon cat on a car", IN_ENGLISH[0]]).double()

    torch.testing.assert_close(more.target, torch.einsum("pld,ple->de", c, c) / c.shape[:2].numel())
    assert torch.equal(more.keep, plain.keep)


@pytest.mark.parametrize("negative", [0.0, 0.5])
def test_moments_without_an_anchor_want_the_empty_prompt(tiny_pipe, negative):
    """No counterpart: a state that has read the name is to become the empty prompt's, or go beyond it; those before it stay."""
    found = moments(tiny_pipe, table(anchor=False), negative=negative)
    empty = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""])[0].double()
    c = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat", "neon cat on a car"]).double()
    a = (1 + negative) * empty - negative * c
    ids = tokenize(tiny_pipe.tokenizer, ["a cat", "neon cat on a car", "cat"]).input_ids
    for row in range(2):
        name = ids[row].tolist().index(int(ids[2, 1]))
        a[row, :name] = c[row, :name]

    assert name > 1
    torch.testing.assert_close(found.wanted, torch.einsum("pld,ple->de", a, c) / c.shape[:2].numel())


def test_pooled_requests_count_as_they_do_alone(given):
    """What each wants is added up and what is to stay is not, so that one more request makes none of the others weaker."""
    other = Moments(*(3 * each for each in given))

    expected = Moments(4 * given.target, 4 * given.wanted, 2 * given.keep, 2 * given.uncond)
    torch.testing.assert_close(pool([given, other]), expected)


def test_start_edits_hidden_states(tiny_pipe):
    """A fresh adapter gives the keys and values that the base gives for hidden states moved by M, and leaves the rest alone."""
    found = moments(tiny_pipe, table(), negative=0.0)
    params = load_params().guidance.model_copy(update={"rank": 4})
    attach(tiny_pipe.unet, "r", parameters="xattn", rank=4, seed=0)
    start_in_closed_form(tiny_pipe.unet, "r", found, params)
    up, down = steer(found, rank=4, retain_weight=params.start_retain_weight, uncond_weight=params.start_uncond_weight)
    states = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat"])[0]
    moved = states + states @ (up @ down).T.float()
    layers = {n: m for n, m in tiny_pipe.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))}

    assert layers
    with torch.no_grad():
        for layer in layers.values():
            torch.testing.assert_close(layer(states), layer.base_layer(moved), rtol=1e-4, atol=1e-5)
        for name, weight in tiny_pipe.unet.named_parameters():
            if ".lora_B.r." in name and not name.split(".lora_B")[0].endswith(("to_k", "to_v")):
                assert not weight.any()


@pytest.mark.parametrize(("chosen", "read"), [("xattn-v", ("attn2.to_v",)), ("xattn-kv", ("attn2.to_k", "attn2.to_v"))])
def test_map_loss_is_what_the_closed_form_minimises(tiny_pipe, chosen, read):
    """Summed over samples of states it is the module's equation, less what the base has, on random A and B."""
    projection = next(m for n, m in tiny_pipe.unet.named_modules() if n.endswith("attn2.to_k"))
    size = projection.in_features
    c, a, k, u = (normal(n, size, seed=i) for i, n in enumerate((40, 40, 60, 5)))
    given = Moments(c.T @ c / 40, a.T @ c / 40, k.T @ k / 60, u.T @ u / 5)
    attach(tiny_pipe.unet, "r", parameters=chosen, rank=3, seed=0)
    found = []
    for path, layer in tiny_pipe.unet.named_modules():
        if path.endswith(read):
            with torch.no_grad():
                layer.lora_B["r"].weight.copy_(normal(layer.out_features, 3, seed=9))
            weight = layer.base_layer.weight.double()
            step = layer.lora_B["r"].weight.double() @ layer.lora_A["r"].weight.double()
            off = ((c @ step.T - (a - c) @ weight.T).square().sum() - ((a - c) @ weight.T).square().sum()) / 40
            held = 2 * (k @ step.T).square().sum() / 60 + 3 * (u @ step.T).square().sum() / 5
            found.append((off + held + 1e-4 * step.square().sum()) / ((c @ weight.T).square().sum() / 40))
    params = load_params().guidance.model_copy(update={"start_retain_weight": 2.0, "start_uncond_weight": 3.0})

    assert map_loss(tiny_pipe.unet, "r", given, params)().item() == pytest.approx(
        torch.stack(found).mean().item(), 1e-5
    )


@pytest.mark.parametrize("chosen", ["xattn-v", "xattn-kv"])
def test_map_loss_is_least_at_the_start(tiny_pipe, chosen):
    """At full rank the closed form leaves it no gradient, and it lies below what a fresh adapter has."""
    found = moments(tiny_pipe, table(), negative=0.0)
    size = found.target.shape[0]
    params = load_params().guidance.model_copy(update={"rank": size})
    parameters = attach(tiny_pipe.unet, "r", parameters=chosen, rank=size, seed=0)
    loss = map_loss(tiny_pipe.unet, "r", found, params)
    fresh = torch.autograd.grad(loss(), parameters)
    start_in_closed_form(tiny_pipe.unet, "r", found, params)
    solved = torch.autograd.grad(loss(), parameters)

    assert loss().item() < 0
    assert max(g.abs().max() for g in solved) < 1e-3 * max(g.abs().max() for g in fresh)


def test_trajectories_are_drawn_of_every_prompt_that_carries_the_target(tiny_pipe):
    """Ordinary English among them, the evaluation's never; what is kept carries it nowhere."""
    settings = load_params().guidance.model_copy(
        update={"trajectories": 8, "retain_trajectories": 8, "solver_steps": 1, "retain_solver_steps": 1}
    )
    lesson = prepare(tiny_pipe, "r", Request(target="cat", kind="object", anchor="dog"), table(IN_ENGLISH), settings)

    def states(*prompts):
        return encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, prompts)

    def as_sets(each):
        return {row.numpy().tobytes() for row in each}

    assert len(lesson.target) == 3
    assert as_sets(lesson.target) == as_sets(states("a cat", "neon cat on a car", IN_ENGLISH[0]))
    assert as_sets(lesson.retain) == as_sets(states("a car", "an owl"))
