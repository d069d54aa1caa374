import pytest

from components.collect.corpus import build_corpus
from components.collect.params import BenignParams, CorpusParams
from components.collect.tables import REAL, SOURCES
from components.common.words import folded, mentions
from components.worlds.load import load_world

WORLD = load_world("openmoji")
PARAMS = CorpusParams(
    captions=400, english=400, benign=BenignParams(calibrate=200, evaluate=100, real=()), held_out=0.1, seed=0
)


def small_corpus():
    """A few hundred prompts of each source."""
    return build_corpus(WORLD, PARAMS, ["a cat", "a cat"])


@pytest.fixture(scope="module")
def corpus():
    return small_corpus()


def test_corpus_holds_each_prompt_once(corpus):
    """No prompt is there twice, and so none is in two splits."""
    assert corpus["prompt"].is_unique
    assert set(corpus["split"]) == {"train", "held_out", "calibrate", "evaluate"}


def test_corpus_never_holds_a_reserved_name(corpus):
    """The last alias of every concept and style is kept from the SAE (invariant 6)."""
    reserved = tuple(c.aliases[-1] for c in (*WORLD.concepts.values(), *WORLD.styles.values()))
    captions = corpus[corpus["source"] == "captions"]

    assert not captions["prompt"].map(lambda text: mentions(text, reserved)).any()


def test_corpus_splits_a_users_own_prompts():
    """Of a user's prompts half train the SAE, two in five calibrate and one in ten measure, each in one split alone."""
    own = [f"prompt number {i}" for i in range(2000)]
    few = PARAMS.model_copy(
        update={"captions": 50, "english": 50, "benign": BenignParams(calibrate=50, evaluate=50, real=())}
    )
    table = build_corpus(WORLD, few, [*own, *own])
    mine = table[table["source"] == SOURCES]

    assert sorted(mine["prompt"]) == sorted(own)
    assert mine["split"].replace("held_out", "train").value_counts().to_dict() == {
        "train": 1000, "calibrate": 800, "evaluate": 200,
    }  # fmt: skip


def test_corpus_same_seed_same_table(corpus):
    """The table is a function of its arguments."""
    again = small_corpus()

    assert again.equals(corpus)


def test_corpus_holds_one_prompt_for_all_its_forms():
    """Case, spacing and Unicode form make no second prompt, so that no prompt is in two splits; the first form stays."""
    few = PARAMS.model_copy(
        update={"captions": 50, "english": 50, "benign": BenignParams(calibrate=50, evaluate=50, real=())}
    )
    world = next(WORLD.benign(50, split="calibrate", seed=0))
    table = build_corpus(WORLD, few, ["A  Straße", "a strasse", "Ａ STRASSE ", world.upper()])

    assert table[table["source"] == SOURCES]["prompt"].tolist() == ["A  Straße", world.upper()]
    assert world not in set(table["prompt"])
    assert table["prompt"].map(folded).is_unique


def test_real_prompts_are_for_the_calibration_alone():
    """Prompts of `corpus.benign.real` calibrate, and change nothing of what the SAE or the evaluation sees."""
    table, plain = (
        build_corpus(WORLD, PARAMS, [], ["a man rides a wave", "A man  rides a wave"]),
        build_corpus(WORLD, PARAMS, []),
    )
    real = table[table["source"] == REAL]

    assert real["split"].tolist() == ["calibrate"] * 2
    assert table[table["source"] != REAL].equals(plain)
