import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.diffusion.encode import content_mask, encode, tokenize
from components.diffusion.hooks import read_hookpoint
from components.diffusion.text import load_text
from components.filter.artifact import RequestFilter, read_names, write_filters
from components.filter.encoder import FilteredTextEncoder
from components.filter.explain import Place, explain, explain_prompt

ROOT = Path(__file__).parents[3]
HOOKPOINT = "encoder.layers.0"


def build(**given):
    """Two features that read the stream's two axes, the second being context; two names."""
    fields = {
        "features": torch.tensor([7, 4]),
        "own": torch.tensor([1.0, 0.0]),
        "w_enc": torch.eye(2),
        "b_enc": torch.zeros(2),
        "jump": torch.full((2,), 0.5),
        "w_dec": torch.eye(2),
        "b_dec": torch.zeros(2),
        "weights": torch.tensor([[1.0, 0.0], [2.0, -3.0]]),
        "bias": torch.tensor([0.5, -1.0]),
        "threshold": torch.tensor(3.0),
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
    assert found.positions == (Place(1, "a", 7.0, spelt=False), Place(4, "</s>", 5.0, spelt=False))
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

    assert found.positions == (Place(1, "b", 0.5, spelt=True),)
    assert (found.flagged, found.score, found.threshold) == (True, 0.5, 3.0)
    assert found.lines()[0] == "best at position 1 'b'; flagged at 1 'b' (a name, 0.50)"


@pytest.fixture(scope="module")
def some(tokenizer):
    """Filters with random features, and enough of them to make the sum's order matter, on the shipped encoder."""
    _, stock = load_text(ROOT / "assets" / "openmoji")
    rng, width = torch.Generator().manual_seed(0), stock.config.hidden_size
    probe = read_hookpoint(stock, HOOKPOINT, tokenize(tokenizer, ["a cat in neon style"]).input_ids)[0, 2]

    def item(threshold):
        rows = torch.randn(width, 120, generator=rng) + 0.3 * probe[:, None]
        return build(
            features=torch.randperm(2048, generator=rng)[:120],
            own=(torch.arange(120) < 24).float(),
            w_enc=rows,
            b_enc=torch.zeros(120),
            jump=torch.full((120,), 0.2),
            w_dec=rows.T.contiguous(),
            b_dec=torch.zeros(width),
            weights=torch.randn(3, 120, generator=rng),
            bias=torch.randn(3, generator=rng),
            threshold=torch.tensor(threshold),
            directions=torch.zeros(4, width),
        )

    return stock, {"r-low": item(-1e6), "r-high": item(1e6)}


def test_explain_contributions_add_up_to_the_score(some, tokenizer):
    """Bias and contributions are the score, to rounding; score and decision are the filter's own."""
    stock, filters = some
    encoder = FilteredTextEncoder(stock, filters, HOOKPOINT)
    for prompt in ("a cat in neon style", "a quiet morning", ""):
        reasons = explain_prompt(prompt, tokenizer, stock, filters, HOOKPOINT, {"r-low": ["cat", "kitty", "kitten"]})
        encode(encoder, tokenizer, [prompt])

        for column, reason in enumerate(reasons.values()):
            total = reason.bias + sum(c.amount for c in reason.contributions)
            assert total == pytest.approx(reason.score, rel=1e-5, abs=1e-4)
            assert reason.score == encoder.detection.scores[0, column].item()
            assert reason.flagged == encoder.detection.flagged[0, column].item()
            amounts = [abs(c.amount) for c in reason.contributions]
            assert amounts == sorted(amounts, reverse=True)
        assert [r.flagged for r in reasons.values()] == [True, False]
        assert (reasons["r-low"].name in ("cat", "kitty", "kitten"), reasons["r-high"].name) == (True, "")
        assert len(reasons["r-low"].positions) == int(tokenize(tokenizer, [prompt]).scored.sum())


def test_explain_names_tokens_as_they_are_written(some, tokenizer):
    """Tokens come without the mark of a word's end; the prompt's end is the tokenizer's EOS."""
    stock, filters = some
    reason = explain_prompt("a cat", tokenizer, stock, filters, HOOKPOINT, {})["r-low"]

    assert [place.position for place in reason.positions] == [1, 2, 3]
    assert [place.token for place in reason.positions] == ["a", "cat", tokenizer.eos_token]


@pytest.fixture(scope="module")
def project(some, tmp_path_factory):
    """A project whose filter flags everything for the first request that ships and nothing for the second."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("params.yaml", "requests.yaml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "assets").symlink_to(ROOT / "assets")
    filters = dict(zip(("r-5c1e09a7", "r-d20b6f34"), some[1].values(), strict=True))
    detail = {"r-5c1e09a7": {"names": ["cat", "kitty", "kitten"]}}
    write_filters(
        folder / "models" / "filter", filters, hookpoint=HOOKPOINT, params={}, inputs={}, facts={"detail": detail}
    )
    return folder


def expunge(*arguments, cwd):
    program = Path(sys.executable).parent / "expunge"
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_names_are_read_where_they_are_listed(project):
    """By request id, and no entry for a request whose facts have none."""
    assert read_names(project / "models" / "filter") == {"r-5c1e09a7": ["cat", "kitty", "kitten"]}


def test_cli_explain_says_why(project):
    """A line for every request, and two more for the one that is flagged."""
    done = expunge("explain", "a cat", cwd=project)
    lines = done.stdout.splitlines()

    assert done.returncode == 0, done.stderr
    assert len(lines) == 4
    assert lines[0].startswith("r-5c1e09a7  cat          FLAGGED  score ")
    assert lines[1].startswith("    best at position ")
    assert " = " in lines[2]
    assert lines[3].startswith("r-d20b6f34  neon         passes   score ")


def test_cli_explain_as_json(project):
    """The same for programs: every field of the reason."""
    done = expunge("explain", "a cat", "--json", cwd=project)
    record = json.loads(done.stdout)

    assert done.returncode == 0, done.stderr
    assert record["prompt"] == "a cat"
    assert [(r["target"], r["flagged"]) for r in record["requests"]] == [("cat", True), ("neon", False)]
    first = record["requests"][0]
    assert first["bias"] + sum(c["amount"] for c in first["contributions"]) == pytest.approx(first["score"], rel=1e-4)
    assert {"position", "token", "score", "spelt"} == set(first["positions"][0])
    assert first["name"] in ("cat", "kitty", "kitten")


def test_cli_explain_without_a_filter(project, tmp_path):
    """Before the first training: one sentence and exit code 3."""
    for name in ("params.yaml", "requests.yaml"):
        shutil.copy(project / name, tmp_path / name)
    done = expunge("explain", "a cat", cwd=tmp_path)

    assert done.returncode == 3
    assert done.stderr.strip() == (
        "expunge: models/filter holds no artifact.json; run the stage that writes it: dvc repro"
    )
