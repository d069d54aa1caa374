import pandas as pd
import pytest
import torch

from components.collect.concepts import build_prompts
from components.collect.corpus import SOURCES, build_corpus
from components.collect.params import BenignParams
from components.features.fit import fit_request, shared_tokens
from components.features.params import FeaturesParams
from components.features.reading import Reader
from components.requests.requests import Request
from components.sae.model import SparseAutoencoder

REQUEST = Request(target="cat", kind="object", aliases=("kitty", "feline"), anchor="dog")
SETTINGS = FeaturesParams(
    max_features=16, context_features=8, min_contrast=0.02, fpr=0.02, edit="replace", positions=("target", "later")
)


@pytest.fixture(scope="module")
def reader(tiny_encoder, tokenizer):
    """A random encoder, read by random latents."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(32, 256, k=8).requires_grad_(False)
    sae.W_enc.copy_(torch.randn(32, 256))
    sae.threshold.fill_(4.0)
    return Reader(tokenizer, tiny_encoder, "encoder.layers.0", sae)


def corpus_with(own: list[str]) -> pd.DataFrame:
    return build_corpus(
        captions=100,
        english_phrases=300,
        benign=BenignParams(calibrate=300, evaluate=50),
        held_out=0.1,
        seed=0,
        extra=own,
    )


def fit(reader, own):
    """(the filter of a cat, its calibration) with those prompts of the user's own."""
    table = build_prompts({"r": REQUEST}, per_name=6, retain=40, mixed=8, seed=0)
    item, facts = fit_request(REQUEST, table, reader, shared_tokens(corpus_with(own), reader), SETTINGS)
    return item, facts["calibration"]


def test_shared_tokens_keep_a_users_prompts_apart(reader):
    """Own prompts that calibrate are `traffic` and nothing else; without any there is no such group."""
    corpus = corpus_with([f"prompt number {i}" for i in range(100)])
    read, without = shared_tokens(corpus, reader), shared_tokens(corpus_with([]), reader)
    mine = set(corpus.loc[corpus["source"] == SOURCES, "prompt"])

    assert len(read["traffic"][0]) == len(read["traffic"][1].ids) == 40
    assert set(read["traffic"][0]) <= mine
    assert not set(read["benign"][0]) & mine
    assert set(without) == {"benign", "background"}


def test_fit_request_holds_the_budget_for_a_users_prompts(reader):
    """Traffic that scores high raises the threshold until at most the budget of it is flagged, and the facts say so."""
    hard = [f"cub {i} cot kit cap" for i in range(400)]  # no name of the target, but much like it to a random encoder
    plain, _ = fit(reader, [])
    item, calibration = fit(reader, hard)

    assert calibration["traffic"]["n"] == 160
    assert calibration["traffic"]["alone"]
    assert calibration["traffic"]["fpr"] <= SETTINGS.fpr
    assert item.threshold > plain.threshold


def test_fit_request_never_calibrates_on_the_target(reader):
    """Traffic that names the target, in any case, in the plural or misspelt, is left out."""
    spoken = [f"{name} number {i}" for name in ("cat", "Kitty", "felines", "c a t", "kittty") for i in range(80)]

    assert fit(reader, spoken)[1]["traffic"] == {"n": 0, "alone": False}
