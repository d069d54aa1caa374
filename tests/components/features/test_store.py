import numpy as np
import pytest
import torch

from components.common.words import mentions
from components.diffusion.encode import tokenize
from components.diffusion.hooks import read_hookpoint
from components.features.regression import Score
from components.features.store import Store, TokenSet
from components.features.word_index import WordIndex
from components.filter.scores import position_scores, prompt_scores

TEXTS = ["a cat in the rain", "the quiet house of my neighbour", "", "cat", "a very long list of other things " * 5]
FEATURES = torch.tensor([40, 5, 0])
SCORE = Score(np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32), np.array([0.5, -0.5], dtype=np.float32))


@pytest.fixture(scope="module")
def tokens(reader):
    return reader.tokens(TEXTS)


@pytest.fixture(scope="module")
def store(reader, tokens):
    return Store(reader, TEXTS, tokens)


def test_tokens_do_not_depend_on_the_batch(reader, tokens):
    """Prompts read together by length, without padding, are those that the encoder reads at full length, in their order."""
    ids, scored = tokenize(reader.tokenizer, TEXTS)[:2]
    tower = reader.towers.first

    torch.testing.assert_close(tokens.hidden, read_hookpoint(tower.encoder, tower.hookpoint, ids)[scored])
    assert torch.equal(tokens.scored, scored)


def test_sparse_codes_are_the_dense_ones(reader, tokens, store):
    """Columns, firing rates, token scores and prompt scores equal those of dense arithmetic on the residual stream."""
    dense = reader.codes(tokens.hidden)
    every = TokenSet((store, np.arange(len(store))))
    wanted = position_scores(dense[:, FEATURES], *map(torch.from_numpy, SCORE))
    each = torch.full(tokens.scored.shape, float("-inf"))
    each[tokens.scored] = wanted

    assert 0 < int((dense > 0).sum()) < dense.numel() / 2
    np.testing.assert_array_equal(every.columns(FEATURES).toarray(), dense[:, FEATURES])
    torch.testing.assert_close(every.firing(), (dense > 0).float().mean(0))
    np.testing.assert_allclose(every.scores(FEATURES, SCORE), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        store.prompt_scores(FEATURES, SCORE), prompt_scores(each, tokens.scored), rtol=1e-4, atol=1e-5
    )


def test_sets_of_tokens_of_two_stores(reader, tokens, store):
    """Joined sets answer for all their tokens, store by store; a part of a set answers as the whole does for those tokens."""
    other = Store(reader, TEXTS[:2], reader.tokens(TEXTS[:2]))
    few = TokenSet((store, np.array([7, 3])), (other, np.array([1])))
    whole = few.join([TokenSet((other, np.array([0, 2])), (store, np.array([9])))])
    dense = reader.codes(
        torch.cat([tokens.hidden[[7, 3, 9]], tokens.hidden[[1, 0, 2]]])
    )  # the other store's first prompt

    np.testing.assert_allclose(whole.columns(FEATURES).toarray(), dense[:, FEATURES], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.firing(), (dense > 0).float().mean(0))
    assert whole.holds(few).tolist() == [True, True, False, True, False, False]
    part = np.array([1, 2, 5])
    np.testing.assert_allclose(
        whole.take(part).scores(FEATURES, SCORE), whole.scores(FEATURES, SCORE)[part], rtol=1e-4, atol=1e-5
    )


def test_word_index_finds_what_mentions_finds():
    """Plurals, capitals, spaced-out letters, signs around a name and names of two words; never a part of a word."""
    texts = [
        "Two Cats sat",
        "a catfish",
        "ice  creams",
        "cream of ice",
        "the ICE CREAM",
        "c a t",
        "(cat:1.2)",
        "ice",
        "",
    ]
    index = WordIndex(texts)
    both = [name + end for name in ("cat", "ice cream") for end in ("", "s", "es")]

    assert index.find(both).tolist() == [mentions(" ".join(t.split()), ("cat", "ice cream")) for t in texts]
    assert index.find(["c a t"]).nonzero()[0].tolist() == [5]
    assert not index.find(["cream cat", "owl", ""]).any()


def test_word_index_never_joins_two_prompts():
    """A name does not begin in one prompt and end in the next."""
    assert not WordIndex(["my ice", "cream is here"]).find(["ice cream"]).any()


def test_word_index_reads_any_unicode_form():
    """A composed and a decomposed accent are one letter."""
    assert WordIndex(["a CAFE\u0301"]).find(["caf\u00e9"]).tolist() == [True]
