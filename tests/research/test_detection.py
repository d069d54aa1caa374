import json
from pathlib import Path

import numpy as np
import pytest
import torch

from components.common.words import mentions
from components.diffusion.encode import spelling_patterns, tokenize, word_ends
from components.features.reading import Reader
from components.filter.artifact import RequestFilter
from components.filter.edit import find_target
from components.requests.requests import Request, load_requests
from components.sae.model import SparseAutoencoder
from components.worlds.load import world_folder
from components.worlds.templated import read_world
from research.filter.detection import (
    FLIP,
    SHIPPED,
    Detector,
    Reading,
    Scores,
    decide,
    join,
    make_detector,
    reconstruction_distance,
    scores_of,
    summarise,
    unnamed,
)
from research.filter.editing import GAIN, edits_of
from research.filter.prompts import DESCRIPTIONS, benign_prompts, hard_prompts, world_requests
from research.filter.report import act_together

ROOT = Path(__file__).parents[2]
CAT = Request(target="cat", kind="object", aliases=("kitty", "kitten", "feline"), anchor="dog", neighbours=("lion",))


@pytest.fixture(scope="module")
def world():
    return read_world(world_folder("openmoji"))


@pytest.fixture
def sae():
    """A random autoencoder of 12 latents on a stream of 6."""
    rng = torch.Generator().manual_seed(0)
    model = SparseAutoencoder(6, 12, k=3).requires_grad_(False)
    model.initialise(torch.randn(6, generator=rng), torch.randn(12, 6, generator=rng))
    model.threshold.fill_(0.3)
    return model


def reading_of(hidden, scored, sae, texts=None):
    """A reading of prompts whose streams (P, L, D) are given."""
    tokens = hidden[scored]
    prompt = torch.arange(len(hidden)).repeat_interleave(scored.sum(1))
    error = sae.decode(sae.encode(tokens)) - tokens
    return Reading(texts or ["a"] * len(hidden), tokens, prompt, error, torch.zeros(len(hidden), 4))


def test_distance_is_itds_formula(sae):
    """Against the formula written out: all codes, the features' times -8, decoded whole, mean of squares over scored positions."""
    hidden = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    scored = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    features = torch.tensor([1, 4, 9])
    code = sae.encode(hidden)
    flipped = code.clone()
    flipped[..., features] *= FLIP
    squares = (sae.decode(flipped) - hidden).square()
    wanted = [squares[p][scored[p]].mean().item() for p in range(3)]

    found = reconstruction_distance(reading_of(hidden, scored, sae), code[scored][:, features], sae.W_dec[features])

    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_reading_takes_maxima_and_means_by_prompt(sae):
    """By hand: tokens 1, 3 of the first prompt and 5 of the second; joined readings number their prompts on."""
    scored = torch.tensor([[False, True, True], [False, True, False]])
    reading = reading_of(torch.zeros(2, 3, 6), scored, sae)

    assert reading.maxima(torch.tensor([1.0, 3.0, 5.0])).tolist() == [3.0, 5.0]
    assert reading.means(torch.tensor([1.0, 3.0, 5.0])).tolist() == [2.0, 5.0]
    assert join([reading, reading]).prompt.tolist() == [0, 0, 1, 2, 2, 3]


def test_world_requests_share_no_name(world):
    """Forty requests: those given come first, every later one has an anchor, and no name belongs to two."""
    given = load_requests(ROOT / "requests.yaml")
    found = world_requests(40, given, world, seed=0)
    names = [n for r in found.values() for n in r.names]

    assert list(found)[: len(given)] == list(given)
    assert len(found) == 40
    assert len(names) == len(set(names))
    assert all(r.anchor for r in found.values())
    assert found == world_requests(40, given, world, seed=0)


def test_hard_prompts_are_what_they_say(world):
    """Misspelt and spaced ones no longer contain a name, capitals and long ones do, descriptions never name the target."""
    found = hard_prompts(CAT, world, per_role=20, seed=0)
    known = ("cat", "kitty", "kitten")

    assert {role: len(texts) for role, texts in found.items()} == {
        "misspelt": 20, "spaced": 20, "capitals": 20, "long, target last": 20, "description": 2,
    }  # fmt: skip
    assert not any(mentions(t, known) for t in (*found["misspelt"], *found["spaced"]))
    assert all(mentions(t, known) for t in (*found["capitals"], *found["long, target last"]))
    assert all(t.isupper() for t in found["capitals"])


@pytest.mark.parametrize("name", sorted(DESCRIPTIONS))
def test_descriptions_never_name_what_they_describe(name, world):
    """No sentence contains its target or one of the target's other names."""
    lookup = world.style if name in world.style_names else world.concept

    assert not any(mentions(text, (name, *lookup(name).aliases)) for text in DESCRIPTIONS[name])


def test_benign_prompts_are_different(world):
    """As many as asked for, none twice."""
    found = benign_prompts(world, 3000, seed=0)

    assert len(set(found)) == len(found) == 3000


@pytest.fixture
def reader(tiny_towers):
    """The tiny encoder, read by random latents."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(32, 64, k=8).requires_grad_(False)
    sae.initialise(torch.zeros(32), torch.randn(64, 32))
    sae.threshold.fill_(0.0)
    return Reader(tiny_towers, sae)


@pytest.fixture
def cat_filter(reader, tokenizer):
    """A filter that lists `cat` and `feline`, with random evidence and a threshold that some prompts reach without a name."""
    torch.manual_seed(1)
    sae, chosen = reader.sae, torch.arange(16)
    item = RequestFilter(
        features=chosen, own=torch.ones(16), w_enc=sae.W_enc[:, chosen], b_enc=sae.b_enc[chosen],
        latent_threshold=sae.threshold[chosen], w_dec=sae.W_dec[chosen], b_dec=sae.b_dec, weights=torch.randn(1, 16),
        bias=torch.zeros(1), decision_threshold=torch.tensor(0.0), directions=torch.zeros(4, 32),
        spellings=spelling_patterns(tokenizer, ["cat", "feline"]), word_ends=word_ends(tokenizer),
    )  # fmt: skip
    texts = [f"{word} by day" for word in ("river", "boat", "hill", "lamp", "door", "tree", "sun", "bread")]
    scores = decide(reader, {"r": item}, texts).scores[:, 0]
    return item._replace(decision_threshold=scores.sort().values[-2].clone()), texts


def test_the_shipped_detector_is_the_products_decision(reader, cat_filter):
    """Score or name: flagged are two prompts by their score and those with a listed name, and that is what the rates count.

    The reserved alias is on the list of the request and not on the detector's: only its score can find it.
    """
    item, texts = cat_filter
    named = ["two cats here", "my CAT"]
    seen = decide(reader, {"r": item}, [*texts, *named])
    listed = find_target(tokenize(reader.tokenizer, [*texts, *named]).input_ids, item).any(1)

    def compute(reading):
        return decide(reader, {"r": item}, reading.texts).scores[:, 0].numpy()

    stub = Reading(texts, *[torch.zeros(0)] * 4)
    found = scores_of(compute, float(item.decision_threshold), CAT, {"target": stub._replace(texts=named)}, stub)
    rates = summarise({"r": found})

    assert listed.tolist() == [False] * len(texts) + [True, True]
    assert seen.flagged[:, 0].tolist() == (seen.scores[:, 0] >= item.decision_threshold).tolist()
    assert (rates["tpr target"].value, rates["tpr target"].n) == (1.0, 2)
    assert rates["fpr benign"].value == float(seen.flagged[: len(texts), 0].float().mean()) == 2 / len(texts)


def test_a_detectors_list_lacks_the_reserved_alias(reader, cat_filter, world):
    """Names that selection saw and slips of them are found, the alias that is reserved for the evaluation is not."""
    item, _ = cat_filter
    detector = make_detector(reader, item, [0.5], ["cat", "kitty", "kitten"], world)
    ids = tokenize(reader.tokenizer, ["a kitten", "a kiten", "a feline"]).input_ids

    assert find_target(ids, detector.item).any(1).tolist() == [True, True, False]


def test_requests_together_flag_what_any_flags(reader, cat_filter):
    """`fpr any` is the share of nameless prompts that one filter or another flags, as the product decides with all of them."""
    item, texts = cat_filter
    other = item._replace(weights=-item.weights, decision_threshold=torch.tensor(0.0))
    filters = {"a": item, "b": other}
    seen = decide(reader, filters, texts)
    stub = Reading(texts, *[torch.zeros(0)] * 4)
    requests = {"a": CAT, "b": Request(target="river", kind="object")}
    scores = {i: Scores(0.0, {"target": np.array([1.0])}, {}) for i in filters}
    found = act_together(requests, scores, seen, stub)
    free = ["river" not in text for text in texts]
    wanted = (seen.flagged[:, 0] | seen.flagged[:, 1])[torch.tensor(free)].float().mean()

    assert found["fpr any"].n == len(texts) - 1
    assert found["fpr any"].value == pytest.approx(float(wanted))
    assert found["tpr"].value == 1.0


def test_calibration_leaves_out_every_spelling_of_the_target(sae):
    """A prompt that names the target, well spelt or not, calibrates no threshold; the others' tokens stay in their order."""
    detector = Detector(None, torch.ones(1), ("cat",), ("caat", "c a t"), torch.zeros(1, 4))
    texts = ["a house", "two Cats", "one caat", "a c a t here", "my kitty", "a boat"]
    hidden = torch.randn(6, 2, 6, generator=torch.Generator().manual_seed(0))
    left = unnamed(reading_of(hidden, torch.ones(6, 2, dtype=torch.bool), sae, texts), CAT, detector)

    assert left.texts == ["a house", "a boat"]
    assert torch.equal(left.hidden, hidden[[0, 5]].flatten(0, 1))
    assert left.prompt.tolist() == [0, 0, 1, 1]


def test_summary_by_hand():
    """Two requests with thresholds of their own: TPR 3 of 4 over named roles, FPR 1 of 4; a described target is no named role."""
    scores = {
        "a": Scores(1.0, {"target": np.array([1.0, 2.0]), "description": np.array([0.0])}, {"benign": np.array([0.0, 1.0])}),
        "b": Scores(5.0, {"alias": np.array([4.0, 6.0])}, {"benign": np.array([3.0, 2.0])}),
    }  # fmt: skip
    found = summarise(scores)

    assert (found["tpr"].value, found["tpr"].n) == (0.75, 4)
    assert (found["fpr benign"].value, found["tpr description"].value) == (0.25, 0.0)
    assert found["auroc"].value == pytest.approx((0.875 + 1.0) / 2)


def test_edits_do_what_their_names_say(sae):
    """Each edit against its formula: `reconstruct` is ItD's whole reconstruction but for BOS, `zero` and `flip` scale codes."""
    hidden = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[8, 3, 4, 9, 9]])
    own = torch.tensor([2, 5])
    item = RequestFilter(
        features=own, own=torch.ones(2), w_enc=sae.W_enc[:, own], b_enc=sae.b_enc[own],
        latent_threshold=sae.threshold[own], w_dec=sae.W_dec[own], b_dec=sae.b_dec, weights=torch.zeros(1, 2),
        bias=torch.zeros(1), decision_threshold=torch.tensor(1.0), directions=torch.eye(4, 6),
        spellings=torch.tensor([[-2, 3]]), word_ends=torch.arange(10) == 8,
    )  # fmt: skip
    edits = edits_of(item, sae, 9)
    code = sae.encode(hidden)
    scaled = code.clone()
    scaled[..., own] *= FLIP
    whole = edits["reconstruct"](hidden, ids)

    assert edits["none"](hidden, ids) is hidden
    assert torch.equal(whole[:, 0], hidden[:, 0])
    torch.testing.assert_close(whole[:, 1:], sae.decode(scaled)[:, 1:])
    for name, multiplier in (("zero", 0.0), ("flip", FLIP)):
        scaled = code.clone()
        scaled[:, 1:, own] *= multiplier
        torch.testing.assert_close(edits[name](hidden, ids) - hidden, sae.decode(scaled) - sae.decode(code))
        assert GAIN[name] == multiplier - 1
    moved = {
        name: (change(hidden, ids) != hidden).any(-1)[0].nonzero()[:, 0].tolist() for name, change in edits.items()
    }
    assert moved["replace"] == [1, 2, 3, 4]
    assert moved["replace, target only"] == [1]
    assert moved["replace, target and later words"] == [1, 2]
    assert moved["replace, EOS and padding only"] == [3, 4]


def test_the_results_in_git_have_the_reports_keys():
    """Every edit has ua, anchor_rate, ira and recognisable with n, and the product's detector is among those compared."""
    record = json.loads((ROOT / "research/results/filter/metrics.json").read_text())
    edits = [found for request in record["edits"].values() for found in request.values()]

    assert SHIPPED in record["detection"]
    assert all(set(found) == {"ua", "anchor_rate", "ira", "recognisable"} for found in edits)
    assert min(metric["n"] for found in edits for metric in found.values()) > 0
