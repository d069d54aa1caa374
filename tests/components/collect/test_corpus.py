import pandas as pd
import pytest

from components.collect.corpus import build_corpus, read_source
from components.collect.params import BenignParams, CorpusParams
from components.collect.tables import SOURCES
from components.common.errors import UserError
from components.common.words import mentions
from components.worlds.load import load_world

WORLD = load_world("openmoji")
PARAMS = CorpusParams(captions=400, english=400, benign=BenignParams(calibrate=200, evaluate=100), held_out=0.1, seed=0)


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
    few = PARAMS.model_copy(update={"captions": 50, "english": 50, "benign": BenignParams(calibrate=50, evaluate=50)})
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


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_read_source_formats(tmp_path, suffix):
    """CSV, Parquet and JSONL give the same prompts, blanks left out."""
    table = pd.DataFrame({"prompt": ["a cat", None, "  ", "a dog"]})
    path = tmp_path / f"prompts{suffix}"
    write = {".csv": table.to_csv, ".parquet": table.to_parquet, ".jsonl": table.to_json}[suffix]
    write(path, **({"orient": "records", "lines": True} if suffix == ".jsonl" else {"index": False}))

    assert read_source(str(path)) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prompts.txt", "corpus.sources names 'prompts.txt'; use a file that ends in .csv, .parquet, .jsonl"),
        ("none.csv", "corpus.sources names 'none.csv', which does not exist; mend the path"),
    ],
)
def test_read_source_bad_name_is_one_sentence(name, said):
    """An unknown format and a missing file are refused."""
    with pytest.raises(UserError) as caught:
        read_source(name)

    assert str(caught.value).startswith(said)


def test_read_source_without_prompts_is_one_sentence(tmp_path):
    """A table without the column names those that it has."""
    pd.DataFrame({"text": ["a cat"]}).to_csv(tmp_path / "x.csv", index=False)

    with pytest.raises(UserError, match=r"has no column 'prompt' but text; rename the column"):
        read_source(str(tmp_path / "x.csv"))
