from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from components.common.errors import StageError, UserError
from components.diffusion.encode import tokenize
from components.evaluate.attacks.attempts import Budget
from components.evaluate.attacks.blackbox import near_words
from components.evaluate.attacks.encoder import EncoderAccess, Vocabulary, embedding, states_of
from components.evaluate.attacks.registry import ATTACKS
from components.evaluate.attacks.search import search_by_breeding, search_by_gradient

BUDGET = Budget(iterations=3, candidates=4, tokens=3, similarity=0.9)
WORDS = Vocabulary(tuple("abcdefghijklmnopqrst"), torch.arange(20))


def hidden_word(texts):
    """Letters of a text that are not those of `q t a`, place by place."""
    return np.array([sum(a != b for a, b in zip(t.split(), "qta", strict=True)) for t in texts], float)


def slope_to_hidden_word(_text):
    slope = np.zeros((3, 20))
    slope[range(3), ["abcdefghijklmnopqrst".index(c) for c in "qta"]] = -1
    return slope


def test_both_searches_find_what_is_hidden():
    """A search along the gradient finds three hidden words in few queries, breeding finds them without; the loss they report is the prompt's."""
    budget = Budget(iterations=60, candidates=40, tokens=3, similarity=0.9)
    led = search_by_gradient(WORDS, " ".join, slope_to_hidden_word, hidden_word, np.random.default_rng(0), budget)
    bred = search_by_breeding(WORDS, " ".join, hidden_word, np.random.default_rng(0), budget)

    assert (led.text, led.loss) == ("q t a", 0.0)
    assert (bred.text, bred.loss) == ("q t a", 0.0)


def test_a_spent_budget_ends_a_search():
    """With no time left one iteration is done, and what was found by then is returned."""
    budget = Budget(iterations=1000, candidates=4, tokens=3, similarity=0.9, seconds=0.0, begun=-1.0)

    assert (
        search_by_gradient(WORDS, " ".join, slope_to_hidden_word, hidden_word, np.random.default_rng(0), budget).queries
        == 5
    )


def test_the_vocabulary_is_words_of_one_token(victim, tokenizer):
    """Every word is one token behind any other; none contains a banned name."""
    words = victim.access.vocabulary()
    free = words.without(["cat", "ice cream"])
    ids = tokenizer(" ".join(words.words[:50]), add_special_tokens=False).input_ids

    assert ids == words.ids[:50].tolist()
    assert {"cat", "dog"} <= set(words.words)
    assert "dog" in free.words
    assert not any("cat" in word or "ice" in word for word in free.words)


def test_ids_that_configurations_call_special_are_typed(victim, tokenizer):
    """Beside the special tokens there is text whose first token is id 0, 1 or 2, which published configurations call special: `#!` begins with 2."""
    texts = victim.special_texts()
    first = [tokenizer(text, add_special_tokens=False).input_ids[0] for text in texts]

    assert {"<|startoftext|>", "<|endoftext|>", "#!"} <= set(texts)
    assert {0, 1, 2} <= set(first)


def test_the_gradient_is_the_losses_slope(victim):
    """The slope towards a word is the change of the loss on a small step of the token's embedding towards it, to first order."""
    access, vocabulary = victim.access, victim.access.vocabulary()
    text, weight = "dog bus tree", torch.randn(victim.states(["x"]).shape, generator=torch.Generator().manual_seed(0))
    loss = lambda states, _: (states * weight).sum()  # noqa: E731
    slope = access.gradient(text, 3, vocabulary, loss, filtered=False)
    ids = tokenize(access.tokenizer, [text]).input_ids
    plain, step = access.table[ids], 1e-2

    def at(place, word, size):
        moved = plain.clone()
        moved[0, place + 1] += size * access.table[vocabulary.ids[word]]
        with embedding(access.encoder, moved), torch.no_grad():
            return float(loss(access.encoder(ids)[0], None))

    for place, word in ((0, 5), (2, 100)):
        assert slope[place, word] == pytest.approx(
            (at(place, word, step) - at(place, word, -step)) / (2 * step), rel=0.02, abs=0.02
        )
    assert torch.equal(victim.states([text]), access.towers.encode([text]).states)  # the hook is gone


def test_a_filter_that_never_fires_is_an_error(victim, spelt_filter):
    """An attack on an eraser whose filter flags nothing, or edits nothing, stops instead of proving nothing."""
    victim.check_hook()
    for broken in (spelt_filter("owl", 32)._replace(directions=torch.ones(4, 32)), spelt_filter("cat", 32)):
        victim.eraser.filters["r"] = broken
        victim.eraser._encoders.clear()
        with pytest.raises(StageError, match="the filter of r changes none of 4 prompts that name its target; fit it"):
            victim.check_hook()


def test_a_pipeline_without_a_unet_is_refused(eraser):
    """A pipeline of another architecture is one sentence."""
    eraser.pipe = SimpleNamespace(text_encoder=None)
    with pytest.raises(
        UserError, match="attacks on a SimpleNamespace are not supported; attack a pipeline with a text encoder"
    ):
        EncoderAccess(eraser)


@pytest.mark.parametrize("name", ["hierarchies", "ring-a-bell", "mma", "adaptive", "unlearn-diff-atk", "p4d"])
def test_every_search_is_seeded_and_names_no_target(name, victim, target):
    """Two attempts of every attack on a tiny model: repeatable, of real text, and without the target's name but in UnlearnDiffAtk's plain prompt."""
    one, again = (
        list(islice(ATTACKS[name].run(victim, target, np.random.default_rng(0), BUDGET), 2)) for _ in range(2)
    )

    assert one == again
    for attempt in one:
        said = attempt.prompt.removesuffix(attempt.origin) if name == "unlearn-diff-atk" else attempt.prompt
        assert "cat" not in said.split()
        assert (attempt.queries > 0) == (name != "hierarchies")


def test_unet_searches_lower_the_deployed_models_error(victim):
    """The loss of a search through the U-Net is the deployed eraser's own error of the prompt, and no worse than where it began."""
    goal = victim.objective(np.random.default_rng(3))
    before = victim.errors(["dog bus tree"], goal)[0]
    slope = victim.access.gradient(
        "dog bus tree",
        3,
        victim.access.vocabulary(),
        lambda s, _: victim.error(s, victim.read(["dog bus tree"]), goal),
        filtered=True,
    )

    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0
    assert float(
        victim.error(states_of(victim.read(["dog bus tree"])), victim.read(["dog bus tree"]), goal)
    ) == pytest.approx(before, rel=1e-4)


def test_what_acts_is_what_is_deployed(victim):
    """A flagged prompt is detected and its error is that of the erased model; the base has another."""
    goal = victim.objective(np.random.default_rng(0), frozen="a cat here")
    texts = ["a cat here", "a dog here"]

    assert victim.detected(victim.read(texts)).tolist() == [True, False]
    assert victim.against("base").errors(texts, goal)[0] == pytest.approx(0, abs=1e-6)
    assert victim.errors(texts, goal)[0] > 1e-6
    assert victim.errors(texts, goal)[1] == pytest.approx(victim.against("base").errors(texts, goal)[1], rel=1e-5)


def test_near_words_name_no_target(victim, target):
    """Hierarchies start from the vocabulary's words nearest the target's names, the names left out."""
    found = near_words(victim, target, count=8)

    assert len(set(found)) == 8
    assert not any("cat" in word or "kitty" in word for word in found)
