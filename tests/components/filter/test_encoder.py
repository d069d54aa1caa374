import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from components.diffusion.encode import spelling_patterns, tokenize, word_ends
from components.diffusion.hooks import read_hookpoint
from components.filter.artifact import RequestFilter
from components.filter.edit import codes
from components.filter.encoder import FilteredTextEncoder
from components.sae.model import SparseAutoencoder
from components.worlds.load import load_world
from tests.states import encode, one_tower

HOOKPOINT = "encoder.layers.0"


@pytest.fixture
def item(tiny_encoder, tokenizer):
    """A filter for "cat": one feature, the direction in which "a cat" differs from "a dog" at that token."""
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, tokenize(tokenizer, ["a cat", "a dog"]).input_ids)
    delta = hidden[1, 2] - hidden[0, 2]
    direction = -delta / delta.norm()
    middle = (hidden[0, 2] + hidden[1, 2]) / 2 @ direction
    return RequestFilter(
        features=torch.tensor([0]),
        own=torch.ones(1),
        w_enc=direction[:, None],
        b_enc=torch.zeros(1),
        latent_threshold=0.45 * delta.norm()[None],
        w_dec=direction[None],
        b_dec=direction * middle,
        weights=torch.ones(1, 1),
        bias=torch.zeros(1),
        decision_threshold=0.4 * delta.norm(),
        directions=torch.stack([delta, 0.1 * delta, 0.2 * delta, 0.3 * delta]),
    )


@pytest.fixture
def filtered(tiny_encoder, tokenizer, item):
    return filtered_by(tiny_encoder, tokenizer, {"r": item})


def filtered_by(encoder, tokenizer, items):
    """The encoder with these filters."""
    return FilteredTextEncoder(one_tower(tokenizer, encoder, HOOKPOINT), items)


def read(encoder, tokenizer, prompts):
    """(states, decision) of prompts."""
    cond, decision = encoder.encode(tokenize(tokenizer, prompts))
    return cond.states, decision


def rewrite(tiny_encoder, tokenizer, item, prompts):
    """(residual stream, the same as the filter rewrites it, decision) of prompts."""
    encoded = tokenize(tokenizer, prompts)
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    filtered = filtered_by(tiny_encoder, tokenizer, {"r": item})
    return hidden, *filtered.rewrite(hidden, encoded.input_ids, encoded.scored)


def test_filter_flags_the_target_and_changes_it(filtered, tiny_encoder, tokenizer):
    """The target's prompt is flagged, and its states differ from the target's token on, never before it."""
    before, (after, decision) = encode(tiny_encoder, tokenizer, ["a cat"]), read(filtered, tokenizer, ["a cat"])

    assert (decision.requests, decision.flagged.tolist()) == (("r",), [[True]])
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().max() > 0.01


def test_filter_leaves_unflagged_prompts_bit_identical(filtered, tiny_encoder, tokenizer):
    """A thousand ordinary prompts: every one that is not flagged comes out with max|Δ| == 0 (invariant 1)."""
    prompts = list(load_world("openmoji").benign(1000, split="evaluate", seed=0))
    encoded = tokenize(tokenizer, prompts)
    before, (after, decision) = tiny_encoder(encoded.input_ids)[0], filtered.encode(encoded)
    quiet = ~decision.flagged.any(1)

    assert int(quiet.sum()) > 500
    assert torch.equal(before[quiet], after.states[quiet])
    assert after.states.dtype == before.dtype


def test_filter_agrees_with_dense_arithmetic(tiny_encoder, tokenizer, item):
    """Two requests, one that replaces and one that zeroes, recomputed position by position with numpy."""
    zero = item._replace(
        directions=torch.zeros_like(item.directions), gain=torch.tensor(-1.0), decision_threshold=torch.tensor(-9.0)
    )
    items = {"a": item, "b": zero}
    encoded = tokenize(tokenizer, ["a cat asleep", "a dog", "a cat in a big house"])
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    filtered = filtered_by(tiny_encoder, tokenizer, items)
    found, decision = filtered.rewrite(hidden, encoded.input_ids, encoded.scored)

    wanted, stream, scored = hidden.numpy().copy(), hidden.numpy(), encoded.scored.numpy()
    for column, each in enumerate(items.values()):
        pre = (stream - each.b_dec.numpy()) @ each.w_enc.numpy() + each.b_enc.numpy()
        code = np.where(pre > each.latent_threshold.numpy(), pre, 0)
        score = (code @ each.weights.numpy().T + each.bias.numpy()).max(-1)  # (P, L)
        for row in range(len(stream)):
            last = int(np.flatnonzero(scored[row])[-1])
            hits = scored[row] & (score[row] >= float(each.decision_threshold))
            np.testing.assert_allclose(
                decision.scores[row, column], score[row][scored[row]].max(), rtol=1e-4, atol=1e-5
            )
            assert bool(decision.flagged[row, column]) == hits.any()
            for j in range(np.flatnonzero(hits)[0] if hits.any() else 99, stream.shape[1]):
                kind = 3 if j > last else 2 if j == last else 0 if hits[j] else 1
                delta = each.directions[kind].numpy() + float(each.gain) * code[row, j] @ each.w_dec.numpy()
                wanted[row, j] += delta

    assert decision.flagged.tolist() == [[True, True], [False, True], [True, True]]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_filter_is_safe_under_threads(tiny_encoder, tokenizer, item):
    """Six threads on one stock encoder, with filters, without, and reading it: each gets what it gets alone, to the bit."""
    eager = item._replace(decision_threshold=torch.tensor(-9.0))
    encoders = [filtered_by(tiny_encoder, tokenizer, {"r": each}) for each in (item, eager)]
    encoded = [tokenize(tokenizer, prompts) for prompts in (["a cat", "a dog"], ["a house"], ["cats", "a", "an owl"])]
    ids = [each.input_ids for each in encoded]

    def work(job):
        which, part = job
        if which < 2:
            cond, decision = encoders[which].encode(encoded[part])
            return cond.states, decision.scores, decision.flagged
        return (tiny_encoder(ids[part])[0] if which == 2 else read_hookpoint(tiny_encoder, HOOKPOINT, ids[part]),)

    jobs = [(which, part) for which in range(4) for part in range(3)] * 12
    alone = [work(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(work, jobs))

    for left, right in zip(alone, together, strict=True):
        assert all(map(torch.equal, left, right))
    assert not tiny_encoder.get_submodule(HOOKPOINT)._forward_hooks


def test_filter_in_a_half_precision_encoder(item, tiny_encoder, tokenizer):
    """In a float16 encoder the filter decides as in a float32 one, and returns float16; unflagged rows keep their bits."""
    half = copy.deepcopy(tiny_encoder).half()
    prompts = ["a cat", "a dog", "a car"]
    edited, decision = read(filtered_by(half, tokenizer, {"r": item}), tokenizer, prompts)
    stock = half(tokenize(tokenizer, prompts).input_ids)[0]

    assert decision.flagged[:, 0].tolist() == [True, False, False]
    assert edited.dtype == torch.float16
    assert torch.equal(edited[1:], stock[1:])
    assert not torch.equal(edited[0], stock[0])


def test_filter_follows_its_encoder_to_another_device(filtered, tokenizer):
    """When a pipeline is moved its filters go too: a pass on the meta device, which has no values, meets no other device."""
    away = copy.deepcopy(filtered).to("meta")
    states, decision = read(away, tokenizer, ["a cat", "a dog"])

    assert states.device.type == decision.flagged.device.type == decision.scores.device.type == "meta"


def test_filter_decision_does_not_depend_on_the_batch(filtered, tokenizer):
    """Alone, first, last, beside flagged or unflagged prompts: the decision is the same (invariant 2)."""
    prompts = ["a cat", "a dog", "cat and a very long list of other things", "", "a cat in neon style"]
    together, backwards = (read(filtered, tokenizer, p)[1].flagged[:, 0].tolist() for p in (prompts, prompts[::-1]))
    alone = [read(filtered, tokenizer, [prompt])[1].flagged.item() for prompt in prompts]

    assert together == alone == backwards[::-1]
    assert set(together) == {True, False}


def test_filter_never_scores_or_edits_bos(tiny_encoder, tokenizer, item):
    """However much the feature fires at BOS, the score stays; BOS itself is not edited even in a flagged prompt (invariant 3)."""
    encoded = tokenize(tokenizer, ["a cat"])
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    loud = hidden.clone()
    loud[:, 0] += 1000 * item.w_enc[:, 0]
    filtered = filtered_by(tiny_encoder, tokenizer, {"r": item})
    (_, quiet), (edited, shouted) = (filtered.rewrite(h, encoded.input_ids, encoded.scored) for h in (hidden, loud))

    assert torch.equal(quiet.scores, shouted.scores)
    assert bool(shouted.flagged.all())
    assert torch.equal(edited[:, 0], loud[:, 0])


def test_filter_does_not_depend_on_the_order_of_requests(tiny_encoder, tokenizer, item):
    """Two requests that both flag a prompt are detected and edited alike, whichever comes first, and their edits add up."""
    other = item._replace(directions=item.directions.flip(1), decision_threshold=0.5 * item.decision_threshold)
    encoded = tokenize(tokenizer, ["a cat", "a dog"])
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    out = {}
    for names in ("ab", "ba", "a", "b"):
        encoder = filtered_by(tiny_encoder, tokenizer, {n: {"a": item, "b": other}[n] for n in names})
        out[names], decision = encoder.rewrite(hidden, encoded.input_ids, encoded.scored)
        assert decision.requests == tuple(names)
        assert bool(decision.flagged[0].all())

    torch.testing.assert_close(out["ab"], out["ba"])
    torch.testing.assert_close(out["ab"][0], (out["a"] + out["b"] - hidden)[0])


def test_filter_leaves_the_empty_prompt_alone(filtered, tiny_encoder, tokenizer):
    """The unconditional prompt passes untouched (invariant 4)."""
    states, decision = read(filtered, tokenizer, [""])

    assert torch.equal(states, encode(tiny_encoder, tokenizer, [""]))
    assert not decision.flagged.any()


def test_filter_edits_the_positions_that_it_is_told_to(tiny_encoder, tokenizer, item):
    """With the class of the target alone, every other position comes out of the edit bit-identical."""
    only = item._replace(classes=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    hidden, edited, _ = rewrite(tiny_encoder, tokenizer, only, ["a cat"])

    assert (edited != hidden).any(-1)[0].nonzero()[:, 0].tolist() == [2]


def test_filter_flags_every_name_that_is_spelt_out(tiny_encoder, tokenizer, item):
    """At any score: listed names, their plurals and any case are flagged; words that merely end in one are not."""
    deaf = item._replace(
        decision_threshold=torch.tensor(1e6),
        spellings=spelling_patterns(tokenizer, ["cat", "big cat", "neon sign"]),
        word_ends=word_ends(tokenizer),
    )
    naming = ["a cat", "CATS and dogs", "one Big Cat", "neon signs", "house, cat.", "cat"]
    others = ["bobcat", "a tomcat asleep", "catalogue", "neon", "sign of neon", "", "concatenate"]
    _, decision = read(filtered_by(tiny_encoder, tokenizer, {"r": deaf}), tokenizer, naming + others)

    assert decision.flagged[:, 0].tolist() == [True] * len(naming) + [False] * len(others)


def test_filter_never_edits_by_context_features(tiny_encoder, tokenizer, item):
    """A feature that is evidence only takes part in the score and leaves the residual stream alone."""
    bare = item._replace(directions=torch.zeros_like(item.directions), gain=torch.tensor(-1.0))
    hidden, edited, decision = rewrite(tiny_encoder, tokenizer, bare._replace(own=torch.zeros(1)), ["a cat"])

    assert bool(decision.flagged.all())
    assert torch.equal(edited, hidden)
    assert not torch.equal(rewrite(tiny_encoder, tokenizer, bare, ["a cat"])[1], hidden)


def test_filter_rows_decide_as_the_whole_sae(tiny_encoder, tokenizer, item):
    """The features cut out of a JumpReLU SAE have the codes that the whole SAE gives them."""
    sae = SparseAutoencoder(32, 64, k=4).requires_grad_(False)
    sae.initialise(torch.zeros(32), torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(0)))
    sae.threshold.fill_(0.2)
    keep = torch.tensor([5, 17, 40])
    cut = item._replace(
        features=keep,
        w_enc=sae.W_enc[:, keep],
        b_enc=sae.b_enc[keep],
        latent_threshold=sae.threshold[keep],
        b_dec=sae.b_dec,
    )
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, tokenize(tokenizer, ["a cat next to a dog"]).input_ids)

    torch.testing.assert_close(codes(hidden, cut), sae.encode(hidden)[..., keep])
