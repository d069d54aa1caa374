import copy

import pytest
import torch
from components.worlds.openmoji.captions import english

from components.diffusion.encode import encode, spelling_patterns, tokenize, word_ends
from components.diffusion.hooks import read_hookpoint
from components.filter.artifact import RequestFilter
from components.filter.edit import codes, evidence
from components.filter.encoder import FilteredTextEncoder
from components.filter.scores import prompt_scores
from components.sae.model import SparseAutoencoder

HOOKPOINT = "encoder.layers.0"


@pytest.fixture
def item(tiny_encoder, tokenizer):
    """A filter for "cat": one feature, the direction in which "a cat" differs from "a dog" at that token."""
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, tokenize(tokenizer, ["a cat", "a dog"]).input_ids)
    step = hidden[1, 2] - hidden[0, 2]
    direction = -step / step.norm()
    middle = (hidden[0, 2] + hidden[1, 2]) / 2 @ direction
    return RequestFilter(
        features=torch.tensor([0]),
        own=torch.ones(1),
        w_enc=direction[:, None],
        b_enc=torch.zeros(1),
        jump=0.45 * step.norm()[None],
        w_dec=direction[None],
        b_dec=direction * middle,
        weights=torch.ones(1, 1),
        bias=torch.zeros(1),
        threshold=0.4 * step.norm(),
        directions=torch.stack([step, 0.1 * step, 0.2 * step, 0.3 * step]),
    )


@pytest.fixture
def filtered(tiny_encoder, item):
    return FilteredTextEncoder(tiny_encoder, {"r": item}, HOOKPOINT)


def test_filter_flags_the_target_and_changes_it(filtered, tiny_encoder, tokenizer):
    """The target's prompt is flagged, and its states differ from the target's token on, never before it."""
    before, after = (encode(e, tokenizer, ["a cat"]) for e in (tiny_encoder, filtered))

    assert filtered.detection.flagged.tolist() == [[True]]
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().max() > 0.01


def test_filter_leaves_unflagged_prompts_bit_identical(filtered, tiny_encoder, tokenizer):
    """A thousand ordinary prompts: every one that is not flagged comes out with max|Δ| == 0 (invariant 1)."""
    prompts = list(english(1000, split="evaluate", seed=0))
    before = encode(tiny_encoder, tokenizer, prompts, batch=1000)
    after = encode(filtered, tokenizer, prompts, batch=1000)
    quiet = ~filtered.detection.flagged.any(1)

    assert int(quiet.sum()) > 500
    assert (before - after)[quiet].abs().max() == 0
    assert (before.shape, before.dtype) == (after.shape, after.dtype)


def test_filter_in_a_half_precision_encoder(item, tiny_encoder, tokenizer):
    """In a float16 encoder the filter decides as in a float32 one, and hands on float16; unflagged rows keep their bits."""
    half = copy.deepcopy(tiny_encoder).half()
    filtered = FilteredTextEncoder(half, {"r": item}, HOOKPOINT)
    ids = tokenize(tokenizer, ["a cat", "a dog", "a car"]).input_ids
    edited, stock = filtered(ids)[0], half(ids)[0]

    assert filtered.detection.flagged[:, 0].tolist() == [True, False, False]
    assert edited.dtype == torch.float16
    assert torch.equal(edited[1:], stock[1:])
    assert not torch.equal(edited[0], stock[0])


def test_filter_follows_its_encoder_to_another_device(filtered, tokenizer):
    """Where a pipeline is moved its filters go too: a pass on the meta device, which has no values, meets no other device."""
    away = copy.deepcopy(filtered).to("meta")
    ids = tokenize(tokenizer, ["a cat", "a dog"]).input_ids.to("meta")

    assert away(ids)[0].device.type == "meta"
    assert away.detection.flagged.device.type == "meta"
    assert away.filters["r"].threshold.device.type == "meta"


def test_filter_decision_does_not_depend_on_the_batch(filtered, tokenizer):
    """Alone, first, last, beside flagged or unflagged prompts: the decision is the same (invariant 2)."""
    prompts = ["a cat", "a dog", "cat and a very long list of other things", "", "a cat in neon style"]
    encode(filtered, tokenizer, prompts)
    together = filtered.detection.flagged.flatten().tolist()
    alone = []
    for prompt in prompts:
        encode(filtered, tokenizer, [prompt])
        alone.append(filtered.detection.flagged.item())
    encode(filtered, tokenizer, prompts[::-1])

    assert together == alone == filtered.detection.flagged.flatten().tolist()[::-1]


def test_filter_never_scores_or_edits_bos(filtered, item, tiny_encoder, tokenizer):
    """However much the feature fires at BOS, score and BOS itself stay as they are (invariant 3)."""
    encoded = tokenize(tokenizer, ["a dog"])
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    loud = hidden.clone()
    loud[:, 0] += 1000 * item.w_enc[:, 0]

    named = torch.zeros_like(encoded.scored)
    quiet, shouted = (prompt_scores(evidence(codes(h, item), named, item), encoded.scored) for h in (hidden, loud))
    assert torch.equal(quiet, shouted)
    encode(filtered, tokenizer, ["a cat"])
    rewritten = filtered.rewrite(hidden, encoded.input_ids, encoded.scored)
    assert torch.equal(rewritten[:, 0], hidden[:, 0])


def test_filter_does_not_depend_on_the_order_of_requests(tiny_encoder, tokenizer, item):
    """Two requests that both flag a prompt are detected and edited alike, whichever comes first, and their steps add up."""
    other = item._replace(directions=item.directions.flip(1), threshold=0.5 * item.threshold)
    encoded = tokenize(tokenizer, ["a cat", "a dog"])
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    out, alone = {}, {}
    for names in ("ab", "ba", "a", "b"):
        encoder = FilteredTextEncoder(tiny_encoder, {n: {"a": item, "b": other}[n] for n in names}, HOOKPOINT)
        out[names] = encoder.rewrite(hidden, encoded.input_ids, encoded.scored)
        alone[names] = encoder.detection.flagged[0].all()

    assert all(alone.values())
    torch.testing.assert_close(out["ab"], out["ba"])
    torch.testing.assert_close(out["ab"][0], (out["a"] + out["b"] - hidden)[0])


def test_filter_leaves_the_empty_prompt_alone(filtered, tiny_encoder, tokenizer):
    """The unconditional prompt passes untouched (invariant 4)."""
    assert torch.equal(encode(filtered, tokenizer, [""]), encode(tiny_encoder, tokenizer, [""]))
    assert not filtered.detection.flagged.any()


def test_filter_without_an_anchor_switches_the_features_off(tiny_encoder, tokenizer, item):
    """With no replacement the feature's code is taken out and the SAE's error stays: h - z W_dec."""
    bare = item._replace(directions=torch.zeros_like(item.directions), gain=torch.tensor(-1.0))
    encoder = FilteredTextEncoder(tiny_encoder, {"r": bare}, HOOKPOINT)
    encoded = tokenize(tokenizer, ["a cat"])
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    wanted = hidden - codes(hidden, bare) @ bare.w_dec
    wanted[:, :2] = hidden[:, :2]  # BOS and "a", which cannot know of the cat

    torch.testing.assert_close(encoder.rewrite(hidden, encoded.input_ids, encoded.scored), wanted)


def test_filter_edits_the_positions_that_it_is_told_to(tiny_encoder, tokenizer, item):
    """With the class of the target alone, every other position comes out of the edit bit-identical."""
    only = item._replace(classes=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    encoder = FilteredTextEncoder(tiny_encoder, {"r": only}, HOOKPOINT)
    encoded = tokenize(tokenizer, ["a cat"])
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    changed = (encoder.rewrite(hidden, encoded.input_ids, encoded.scored) != hidden).any(-1)[0]

    assert changed.nonzero()[:, 0].tolist() == [2]


def test_filter_flags_every_name_that_is_spelt_out(tiny_encoder, tokenizer, item):
    """Whatever the score: listed names, their plurals and any case are flagged; words that merely end in one are not."""
    deaf = item._replace(
        threshold=torch.tensor(1e6),
        spellings=spelling_patterns(tokenizer, ["cat", "big cat", "neon sign"]),
        word_ends=word_ends(tokenizer),
    )
    encoder = FilteredTextEncoder(tiny_encoder, {"r": deaf}, HOOKPOINT)
    carrying = ["a cat", "CATS and dogs", "one Big Cat", "neon signs", "house, cat.", "cat"]
    others = ["bobcat", "a tomcat asleep", "catalogue", "neon", "sign of neon", "", "concatenate"]
    encode(encoder, tokenizer, carrying + others)

    assert encoder.detection.flagged[:, 0].tolist() == [True] * len(carrying) + [False] * len(others)


def test_filter_never_edits_by_context_features(tiny_encoder, tokenizer, item):
    """A feature that is evidence only takes part in the score and leaves the residual stream alone."""
    bare = item._replace(directions=torch.zeros_like(item.directions), gain=torch.tensor(-1.0))
    evidence_only = bare._replace(own=torch.zeros(1))
    encoded = tokenize(tokenizer, ["a cat"])
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, encoded.input_ids)
    encoder = FilteredTextEncoder(tiny_encoder, {"r": evidence_only}, HOOKPOINT)

    assert torch.equal(encoder.rewrite(hidden, encoded.input_ids, encoded.scored), hidden)
    assert encoder.detection.flagged.all()
    assert not torch.equal(
        FilteredTextEncoder(tiny_encoder, {"r": bare}, HOOKPOINT).rewrite(hidden, encoded.input_ids, encoded.scored),
        hidden,
    )


def test_filter_rows_decide_as_the_whole_sae(tiny_encoder, tokenizer, item):
    """The features cut out of a JumpReLU SAE have the codes that the whole SAE gives them."""
    sae = SparseAutoencoder(32, 64, k=4).requires_grad_(False)
    sae.initialise(torch.zeros(32), torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(0)))
    sae.threshold.fill_(0.2)
    keep = torch.tensor([5, 17, 40])
    cut = item._replace(
        features=keep, w_enc=sae.W_enc[:, keep], b_enc=sae.b_enc[keep], jump=sae.threshold[keep], b_dec=sae.b_dec
    )
    hidden = read_hookpoint(tiny_encoder, HOOKPOINT, tokenize(tokenizer, ["a cat next to a dog"]).input_ids)

    torch.testing.assert_close(codes(hidden, cut), sae.encode(hidden)[..., keep])


def test_filter_counts_its_calls(filtered, tokenizer):
    """A harness can assert that the filter ran."""
    encode(filtered, tokenizer, ["a cat"])

    assert filtered.calls == 1
