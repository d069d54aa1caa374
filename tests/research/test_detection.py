import numpy as np
import pytest
import torch

from components.common.words import mentions
from components.features.reading import Tokens
from components.filter.artifact import RequestFilter
from components.requests.requests import Request, load_requests
from components.sae.model import SparseAutoencoder
from research.filter.detection import (
    FLIP,
    Detector,
    Reading,
    Scores,
    by_score_or_name,
    reconstruction_distance,
    summarise,
    unnamed,
)
from research.filter.editing import edits_of
from research.filter.prompts import DESCRIPTIONS, benign_prompts, hard_prompts, world_requests

CAT = Request(target="cat", kind="object", aliases=("kitty", "kitten", "feline"), anchor="dog", neighbours=("lion",))


@pytest.fixture
def sae():
    """A random autoencoder of 12 latents on a stream of 6."""
    rng = torch.Generator().manual_seed(0)
    model = SparseAutoencoder(6, 12, k=3).requires_grad_(False)
    model.initialise(torch.randn(6, generator=rng), torch.randn(12, 6, generator=rng))
    model.threshold.fill_(0.3)
    return model


def reading_of(hidden, scored, sae):
    """A reading of prompts whose streams (P, L, D) are given."""
    tokens = Tokens(hidden[scored], torch.zeros(scored.shape, dtype=torch.int64), scored)
    error = sae.decode(sae.encode(tokens.hidden)) - tokens.hidden
    return Reading(["a"] * len(hidden), tokens, error, torch.zeros(len(hidden), 4))


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
    """By hand: tokens 1, 3 of the first prompt and 5 of the second."""
    scored = torch.tensor([[False, True, True], [False, True, False]])
    reading = reading_of(torch.zeros(2, 3, 6), scored, sae)

    assert reading.maxima(torch.tensor([1.0, 3.0, 5.0])).tolist() == [3.0, 5.0]
    assert reading.means(torch.tensor([1.0, 3.0, 5.0])).tolist() == [2.0, 5.0]


def test_world_requests_share_no_name():
    """Forty requests: those given come first, every later one has an anchor, and no name belongs to two."""
    given = load_requests()
    found = world_requests(40, given, seed=0)
    names = [n for r in found.values() for n in r.names]

    assert list(found)[: len(given)] == list(given)
    assert len(found) == 40
    assert len(names) == len(set(names))
    assert all(r.anchor for r in found.values())
    assert found == world_requests(40, given, seed=0)


def test_hard_prompts_are_what_they_say():
    """Misspelt and spaced ones no longer hold a name, capitals and long ones do, descriptions never name the target."""
    found = hard_prompts(CAT, per_role=20, seed=0)
    known = ("cat", "kitty", "kitten")

    assert {role: len(texts) for role, texts in found.items()} == {
        "misspelt": 20, "spaced": 20, "capitals": 20, "long, target last": 20, "description": 2,
    }  # fmt: skip
    assert not any(mentions(t, known) for t in (*found["misspelt"], *found["spaced"]))
    assert all(mentions(t, known) for t in (*found["capitals"], *found["long, target last"]))
    assert all(t.isupper() for t in found["capitals"])


@pytest.mark.parametrize("name", sorted(DESCRIPTIONS))
def test_descriptions_never_name_what_they_describe(name):
    """No sentence holds its target or one of the target's other names."""
    from components.worlds.openmoji import world

    lookup = world.style if name in world.STYLE_NAMES else world.concept

    assert not any(mentions(text, (name, *lookup(name).aliases)) for text in DESCRIPTIONS[name])


def test_benign_prompts_are_different():
    """As many as asked for, none twice."""
    found = benign_prompts(3000, seed=0)

    assert len(set(found)) == len(found) == 3000


def test_a_name_outranks_every_score(sae):
    """A prompt that holds a known name scores above all others, whatever the logistic says."""
    item = RequestFilter(
        features=torch.tensor([0]), own=torch.ones(1), w_enc=torch.zeros(6, 1), b_enc=torch.zeros(1),
        jump=torch.zeros(1), w_dec=torch.zeros(1, 6), b_dec=torch.zeros(6), weights=torch.ones(1, 1),
        bias=torch.zeros(1), threshold=torch.tensor(1.0), directions=torch.zeros(4, 6),
    )  # fmt: skip

    class Stand:
        """A reader whose codes are those of the autoencoder."""

        def codes(self, hidden, features):
            return sae.encode(hidden)[..., features]

    scored = torch.tensor([[False, True], [False, True]])
    reading = reading_of(torch.randn(2, 2, 6), scored, sae)._replace(texts=["a house", "two Cats"])
    detector = Detector(item, torch.ones(1), ("cat",), ("caat",), torch.zeros(1, 4))

    assert by_score_or_name(reading, Stand(), detector)[1] == np.inf
    assert np.isfinite(by_score_or_name(reading, Stand(), detector)[0])


def test_calibration_leaves_out_every_spelling_of_the_target(sae):
    """A prompt that names the target, well spelt or not, calibrates no threshold; its neighbours' tokens stay in their order."""
    detector = Detector(None, torch.ones(1), ("cat",), ("caat", "c a t"), torch.zeros(1, 4))
    texts = ["a house", "two Cats", "one caat", "a c a t here", "my kitty", "a boat"]
    hidden = torch.randn(6, 2, 6, generator=torch.Generator().manual_seed(0))
    reading = reading_of(hidden, torch.ones(6, 2, dtype=torch.bool), sae)._replace(texts=texts)

    left = unnamed(reading, CAT, detector)

    assert left.texts == ["a house", "a boat"]
    assert torch.equal(left.tokens.hidden, hidden[[0, 5]].flatten(0, 1))
    assert left.tokens.prompt.tolist() == [0, 0, 1, 1]


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
    """`none` changes nothing, `reconstruct` is ItD's whole reconstruction but for BOS, a masked replacement keeps to its class."""
    hidden = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[8, 3, 4, 9, 9]])
    keep = torch.tensor([2, 5])
    item = RequestFilter(
        features=keep, own=torch.ones(2), w_enc=sae.W_enc[:, keep], b_enc=sae.b_enc[keep], jump=sae.threshold[keep],
        w_dec=sae.W_dec[keep], b_dec=sae.b_dec, weights=torch.zeros(1, 2), bias=torch.zeros(1),
        threshold=torch.tensor(1.0), directions=torch.eye(4, 6), spellings=torch.tensor([[-2, 3]]),
        word_ends=torch.arange(10) == 8,
    )  # fmt: skip
    edits = edits_of(item, sae, 9)
    code = sae.encode(hidden)
    code[..., keep] *= FLIP
    whole = edits["reconstruct"](hidden, ids)

    assert edits["none"](hidden, ids) is hidden
    assert torch.equal(whole[:, 0], hidden[:, 0])
    torch.testing.assert_close(whole[:, 1:], sae.decode(code)[:, 1:])
    moved = {
        name: (change(hidden, ids) != hidden).any(-1)[0].nonzero()[:, 0].tolist() for name, change in edits.items()
    }
    assert moved["replace"] == [1, 2, 3, 4]
    assert moved["replace, target only"] == [1]
    assert moved["replace, EOS and padding only"] == [3, 4]
