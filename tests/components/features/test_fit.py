import numpy as np
import pandas as pd
import pytest

from components.collect.record import RequestRecord
from components.features.fit import fit_own, fit_request, read_own, read_shared, read_store
from components.features.params import FeaturesParams
from components.features.regression import Score, fit_score
from components.features.scores import conformal_threshold, strictest_threshold
from components.features.selection import Sizes, draw_sample, fit_scores
from components.features.store import Store, TokenSet
from components.requests.requests import Request

SETTINGS = FeaturesParams(
    max_features=16,
    context_features=8,
    min_contrast=0.02,
    fpr=0.02,
    fpr_all=0.02,
    acting=2.0,
    fit="sample",
    positions=("target", "later"),
)
NAMES, SCENES = ("cat", "kitty"), ("house", "river", "boat", "lamp", "tree", "road", "table", "cloud")
LOOKS = ("old", "red", "loud", "tiny", "wet", "calm", "odd", "new", "soft", "tall")


def record(anchor="dog"):
    request = Request(target="cat", kind="object", aliases=("kitty", "feline"), anchor=anchor)
    return RequestRecord(
        id="r", request=request, misspellings=("c a t", "kittty"), labels=("cat",), is_style=False, avoid=("cat",),
        names={"select": NAMES, "calibrate": NAMES, "evaluate": (*NAMES, "feline")},
    )  # fmt: skip


def table():
    """A few prompts of each split that name the target, and some that do not."""
    rows = []
    for split, verb in (("select", "beside"), ("calibrate", "near")):
        for scene in SCENES:
            rows += [
                (split, "target", f"a {name} {verb} the {scene}", name, f"a dog {verb} the {scene}") for name in NAMES
            ]
            rows += [(split, "retain", f"a {look} lamp {verb} the {scene}", "", "") for look in LOOKS[:5]]
            rows += [(split, "neighbour", f"a lion {verb} the {scene}", "", "")]
    out = pd.DataFrame(rows, columns=["split", "role", "prompt", "name_used", "counterpart"])
    return out.assign(names_target=out["name_used"] != "")


def corpus(traffic=()):
    """English, and the user's own prompts."""
    rows = [
        ("train", "english", f"the {a} {s} of a {b} {t}")
        for a in LOOKS
        for s in SCENES
        for b in LOOKS[:2]
        for t in SCENES[:2]
    ]
    rows += [
        ("calibrate", "english", f"my {a} {s} and a {b} {t}")
        for a in LOOKS
        for s in SCENES
        for b in LOOKS[:2]
        for t in SCENES[:2]
    ]
    rows += [("calibrate", "sources", text) for text in traffic]
    return pd.DataFrame(rows, columns=["split", "source", "prompt"])


@pytest.fixture(scope="module")
def shared(reader):
    return read_shared(corpus(), reader)


def test_read_shared_keeps_a_users_prompts_apart(reader, shared):
    """Own prompts that calibrate are `traffic` and nothing else; without any there is no such store."""
    more = read_shared(corpus(["a first prompt of mine", "another"]), reader)

    assert shared.traffic is None
    assert more.traffic.words.find(["mine", "another"]).tolist() == [True, True]
    assert not more.benign.words.find(["mine", "another"]).any()
    assert more.benign.words.prompts == shared.benign.words.prompts == 320


def test_fit_request_keeps_the_budget_for_a_users_prompts(reader, shared):
    """Traffic that scores high raises the threshold until at most the budget of it is flagged, and the facts say so."""
    plain, _ = fit_request(record(), table(), shared, SETTINGS)
    words = [token.removesuffix("</w>") for token in reader.tokenizer.get_vocab() if token.endswith("</w>")]
    prompts = [f"a {word} near the lamp" for word in sorted(words) if word.isalpha() and word not in NAMES]
    score = Score(plain.weights.numpy(), plain.bias.numpy())
    found = read_store(prompts, reader).prompt_scores(plain.features, score)
    hard = [prompts[row] for row in np.argsort(-found, kind="stable")[:160]]
    heard = np.sort(found)[::-1][:160]
    low = float(heard[40]) - 1  # below what the hard prompts score: without them the threshold lies where it lay
    shared = read_shared(corpus(hard), reader)
    item, facts = fit_request(record(), table(), shared, SETTINGS)
    calibration = facts["calibration"]

    assert (calibration["traffic"]["n"], calibration["traffic"]["alone"]) == (160, True)
    assert calibration["traffic"]["fpr"] <= SETTINGS.fpr
    assert strictest_threshold([np.full(900, low), heard], SETTINGS.fpr) > float(heard[40])
    assert float(item.decision_threshold) >= max(
        float(plain.decision_threshold), conformal_threshold(heard, SETTINGS.fpr)
    )


def test_fit_request_never_calibrates_on_the_target(reader):
    """Traffic that names the target, in any case, in the plural or misspelt, is left out."""
    naming = [f"{name} number {i}" for name in ("cat", "Kitty", "felines", "c a t", "kittty") for i in range(20)]
    _, facts = fit_request(record(), table(), read_shared(corpus(naming), reader), SETTINGS)

    assert facts["calibration"]["traffic"] == {"n": 0, "alone": False}


def test_fit_request_replaces_with_an_anchor_and_zeroes_without(shared):
    """With an anchor there are directions and no gain; without one no directions, and own features are switched off."""
    rows = table()
    replaced, zeroed = (fit_request(record(a), rows, shared, SETTINGS)[0] for a in ("dog", ""))

    assert float(replaced.gain) == 0
    assert replaced.directions.abs().sum() > 0
    assert float(zeroed.gain) == -1
    assert not zeroed.directions.any()


def test_fit_request_reads_nothing_of_the_shared_prompts_again(shared, reader, monkeypatch):
    """Once a request's own prompts are read, neither encoder nor SAE is asked again."""
    own = read_own(record(), table(), reader)
    monkeypatch.setattr(type(reader), "tokens", None)
    monkeypatch.setattr(type(reader), "codes", None)
    item, _ = fit_own(record(), own, shared, SETTINGS)
    assert len(item.features) == item.weights.shape[1] > 8


def test_a_sample_that_leaves_nothing_out_is_the_regression_on_all_tokens(shared, reader):
    """With room for every token, the score is that of a regression on all of them, the hardest counted twice."""
    own = read_own(record(), table(), reader)
    named = np.flatnonzero(own.labels >= 0)
    retain = [TokenSet((own.select, rows)) for rows in own.retain]
    nothing = TokenSet((shared.background, np.array([], dtype=int)))
    fitted = fit_scores(
        TokenSet((own.select, named)),
        own.labels[named],
        retain,
        nothing,
        SETTINGS.model_copy(update={"fit": "exact"}),
    )
    against = np.concatenate(own.retain)
    codes = own.select.by_token[np.concatenate([named, against, against])][:, fitted.features.numpy()].toarray()
    labels = np.concatenate([own.labels[named], np.full(2 * len(against), -1)])
    wanted = fit_score(codes, labels, np.ones(len(labels)))

    np.testing.assert_allclose(fitted.score.weights, wanted.weights, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fitted.score.bias, wanted.bias, rtol=1e-3, atol=1e-3)


def test_draw_sample_stands_for_all_tokens():
    """The hardest are rows of their own, the others stand for as many as there are; tokens of no count are left out."""
    counts = np.concatenate([np.ones(900), np.zeros(100)])
    ranked = np.arange(10, 40)
    counts[ranked] = 2
    sample = draw_sample(counts, ranked, Sizes(hard=10, middle=5, easy=100))

    assert set(range(10, 20)) <= set(sample.rows.tolist())
    assert sample.counts[np.isin(sample.rows, range(10, 20))].tolist() == [2.0] * 10
    assert sample.counts.sum() == pytest.approx(930)
    assert len(sample.rows) <= 115
    assert sample.rows.max() < 900
    assert sample.rows.tolist() == sorted(sample.rows.tolist())


def test_tokens_of_a_name_are_found_where_it_ends(reader):
    """Each selection prompt that names the target has one labelled token, and its code is that of the name's last token."""
    own = read_own(record(), table(), reader)
    named = np.flatnonzero(own.labels >= 0)
    alone = Store(reader, ["a cat", "a kitty"], reader.tokens(["a cat", "a kitty"]))

    assert own.names == list(NAMES)
    assert len(named) == len(SCENES) * len(NAMES)
    for name, end in enumerate(alone.starts[1:] - 2):  # the token before EOS
        found = own.select.by_token[named[own.labels[named] == name]].toarray()
        np.testing.assert_allclose(found, np.repeat(alone.by_token[[end]].toarray(), len(SCENES), 0), atol=1e-4)
