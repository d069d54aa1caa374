from pathlib import Path

import pytest
import torch

from components.common.files import new_folder
from components.diffusion.encode import content_mask, tokenize
from components.diffusion.text import load_towers
from components.filter.artifact import RequestFilter, read_names, write_filters
from components.filter.encoder import FilteredTextEncoder
from components.filter.explain import TokenScore, explain, explain_prompt

ROOT = Path(__file__).parents[3]
HOOKPOINT = "encoder.layers.0"


def build(**given):
    """Two features that read the stream's two axes, the second being context; two names."""
    fields = {
        "features": torch.tensor([7, 4]),
        "own": torch.tensor([1.0, 0.0]),
        "w_enc": torch.eye(2),
        "b_enc": torch.zeros(2),
        "latent_threshold": torch.full((2,), 0.5),
        "w_dec": torch.eye(2),
        "b_dec": torch.zeros(2),
        "weights": torch.tensor([[1.0, 0.0], [2.0, -3.0]]),
        "bias": torch.tensor([0.5, -1.0]),
        "decision_threshold": torch.tensor(3.0),
        "directions": torch.zeros(4, 2),
        "gain": torch.tensor(0.0),
        "classes": torch.ones(4),
    }
    return RequestFilter(**fields | given)


def test_explain_by_hand():
    """BOS a b c EOS: names score [4.5, 7], [2.5, -3], [0.5, -1] at a, b, c; the second name wins at a."""
    hidden = torch.tensor([[[90.0, 0.0], [4.0, 0.0], [2.0, 2.0], [0.1, 0.2], [3.0, 0.0]]])
    ids = torch.tensor([[8, 1, 2, 3, 9]])
    found = explain(
        hidden,
        ids,
        content_mask(ids, 9),
        build(),
        request="r",
        tokens=["<s>", "a", "b", "c", "</s>"],
        names=["cat", "kitty"],
    )

    assert (found.request, found.score, found.threshold, found.bias) == ("r", 7.0, 3.0, -1.0)
    assert (found.position, found.token, found.name) == (1, "a", "kitty")
    assert found.contributions == ((7, 8.0, True),)
    assert found.positions == (
        TokenScore(1, "a", 7.0, names_target=False),
        TokenScore(4, "</s>", 5.0, names_target=False),
    )
    assert found.flagged


def test_explain_lists_what_speaks_against():
    """At b alone the first name wins; with the second's weights alone both features speak, the larger first."""
    hidden, scored = torch.tensor([[[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]]), torch.tensor([[False, True, False]])
    ids = torch.tensor([[8, 5, 9]])
    first = explain(hidden, ids, scored, build(), request="r", tokens="sbe")
    only = build(weights=torch.tensor([[2.0, -3.0]]), bias=torch.tensor([-1.0]))
    second = explain(hidden, ids, scored, only, request="r", tokens="sbe", names=["kitty"])

    assert (first.score, first.name, first.contributions) == (2.5, "", ((7, 2.0, True),))
    assert second.contributions == ((4, -6.0, False), (7, 4.0, True))
    assert second.score == -3.0
    assert not second.flagged
    assert second.lines() == [
        "best at position 1 'b', by the name 'kitty'; flagged at none",
        "-3.00 = -1.00 bias -6.00 latent 4 (context) +4.00 latent 7",
    ]


def test_explain_marks_a_name_that_is_spelt_out():
    """A name flags its position though the score stays below the threshold, and the score shown is the score."""
    hidden, ids = torch.zeros(1, 3, 2), torch.tensor([[8, 5, 9]])
    listed = build(spellings=torch.tensor([[-2, 5]]), word_ends=torch.arange(10) == 8)
    found = explain(hidden, ids, content_mask(ids, 9), listed, request="r", tokens="sbe")

    assert found.positions == (TokenScore(1, "b", 0.5, names_target=True),)
    assert (found.flagged, found.score, found.threshold) == (True, 0.5, 3.0)
    assert found.lines()[0] == "best at position 1 'b'; flagged at 1 'b' (a name, 0.50)"


@pytest.fixture(scope="module")
def some():
    """Filters with random features, and enough of them to make the sum's order matter, on the shipped encoder."""
    towers = load_towers(ROOT / "assets" / "openmoji", [HOOKPOINT])
    rng = torch.Generator().manual_seed(0)
    probe = towers.stream(towers.tokenize(["a cat in neon style"]))[0, 2]
    width = len(probe)

    def item(threshold):
        rows = torch.randn(width, 120, generator=rng) + 0.3 * probe[:, None]
        return build(
            features=torch.randperm(2048, generator=rng)[:120],
            own=(torch.arange(120) < 24).float(),
            w_enc=rows,
            b_enc=torch.zeros(120),
            latent_threshold=torch.full((120,), 0.2),
            w_dec=rows.T.contiguous(),
            b_dec=torch.zeros(width),
            weights=torch.randn(3, 120, generator=rng),
            bias=torch.randn(3, generator=rng),
            decision_threshold=torch.tensor(threshold),
            directions=torch.zeros(4, width),
        )

    return towers, {"r-low": item(-1e6), "r-high": item(1e6)}


def test_explain_contributions_add_up_to_the_score(some, tokenizer):
    """Bias and contributions are the score, to rounding; score and decision are the filter's own."""
    towers, filters = some
    encoder = FilteredTextEncoder(towers, filters)
    for prompt in ("a cat in neon style", "a quiet morning", ""):
        found = explain_prompt(prompt, towers, filters, {"r-low": ["cat", "kitty", "kitten"]})
        decision = encoder.encode(towers.tokenize([prompt]))[1]

        for column, each in enumerate(found.values()):
            total = each.bias + sum(c.amount for c in each.contributions)
            assert total == pytest.approx(each.score, rel=1e-5, abs=1e-4)
            assert each.score == decision.scores[0, column].item()
            assert each.flagged == decision.flagged[0, column].item()
            amounts = [abs(c.amount) for c in each.contributions]
            assert amounts == sorted(amounts, reverse=True)
        assert [r.flagged for r in found.values()] == [True, False]
        assert (found["r-low"].name in ("cat", "kitty", "kitten"), found["r-high"].name) == (True, "")
        assert len(found["r-low"].positions) == int(tokenize(tokenizer, [prompt]).scored.sum())


def test_explain_names_tokens_as_they_are_written(some, tokenizer):
    """Tokens come without the mark of a word's end; the prompt's end is the tokenizer's EOS."""
    each = explain_prompt("a cat", *some, {})["r-low"]

    assert [score.position for score in each.positions] == [1, 2, 3]
    assert [score.token for score in each.positions] == ["a", "cat", tokenizer.eos_token]


def test_names_are_read_where_they_are_listed(some, tmp_path):
    """By request id, and no entry for a request whose facts have none."""
    with new_folder(tmp_path / "filter") as partial:
        write_filters(
            partial, some[1], towers=some[0], params={}, inputs={}, facts={"detail": {"r-low": {"names": ["cat"]}}}
        )

    assert read_names(tmp_path / "filter") == {"r-low": ["cat"]}
