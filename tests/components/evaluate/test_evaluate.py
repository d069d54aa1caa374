import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from components.collect.record import RequestRecord
from components.common.errors import UserError
from components.common.paths import EVALUATE
from components.common.roc import auroc
from components.common.sections import validated
from components.evaluate.detection import Seen, group_prompts
from components.evaluate.gates import judge_gates, variants_of
from components.evaluate.measure import anchored_in, erased_of
from components.evaluate.metrics import (
    auroc_of,
    calibration_error,
    likeness,
    mean_interval,
    paired_change,
    proportion,
    rate_of,
)
from components.evaluate.params import METRICS, GateParams
from components.evaluate.select import pick_retain, retain_specs
from components.evaluate.summary import METRICS as METRICS_FILE
from components.requests.requests import Request
from components.worlds.base import Judgement


def gate(**changes):
    given = {"metric": "ua", "variant": "summed", "direction": "at_least", "threshold": 0.9, "n": 10}
    return GateParams.model_validate(given | changes)


def metrics(value=0.95, n=10, base=0.5):
    record = {"value": value, "n": n, "low": 0.0, "high": 1.0}
    return {"r": {"summed": {"ua": record}, "base": {"ua": {"value": base, "n": n, "low": 0.0, "high": 1.0}}}}


ROOT = Path(__file__).parents[3]
CHANNELS = {"r": ["filter", "guidance", "summed"]}
JUDGED = {"base": "0" * 64}


def test_proportion_equals_scipys_wilson():
    """Value and interval are those of scipy's Wilson interval."""
    wanted = binomtest(47, 50).proportion_ci(method="wilson")
    found = proportion([True] * 47 + [False] * 3)

    assert (found.value, found.n) == (0.94, 50)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_metrics_of_nothing_are_not_a_number():
    """No observation is no evidence: NaN, and null in JSON, never 0 or 1."""
    assert math.isnan(proportion([]).value)
    assert mean_interval([]).record() == {"value": None, "n": 0, "low": None, "high": None}


def test_calibration_error_by_hand():
    """Two bins: four answers at 0.95 of which three are right, four at 0.55 of which none is: (4·0.2 + 4·0.55) / 8."""
    sure, right = np.array([0.95] * 4 + [0.55] * 4), np.array([True] * 3 + [False] * 5)

    found = calibration_error(sure, right)

    assert found.value == pytest.approx((4 * 0.2 + 4 * 0.55) / 8)
    assert found.low <= found.value <= found.high
    assert found.n == 8
    assert math.isnan(calibration_error(np.array([]), np.array([])).value)


def test_calibration_error_of_an_honest_forecast_is_small():
    """Answers that are right as often as they claim have next to no error; the same answers claimed surer have one."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1.0, 20_000)
    right = rng.random(20_000) < sure

    assert calibration_error(sure, right).value < 0.02
    assert calibration_error(np.minimum(1.0, sure + 0.2), right).value > 0.1


def test_gate_passes_with_evidence():
    """A metric that reaches its threshold on enough observations passes."""
    assert judge_gates(metrics(), [gate()], CHANNELS, JUDGED).passed


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "the metric is missing"),
        ({"r": {}}, "the metric is missing"),
        (metrics(value=None), "the metric has no value"),
        (metrics(value=math.nan), "the metric has no value"),
        (metrics(n=9), "9 observations are fewer than the 10 declared"),
        (metrics(value=0.89), "0.89 misses 0.9"),
    ],
)
def test_gate_fails_closed(found, said):
    """Missing, null, NaN, too few observations, under the line: the gate fails and says why (invariant 7)."""
    verdict = judge_gates(found, [gate()], CHANNELS, JUDGED)

    assert not verdict.passed
    assert verdict.gates[0].reason == said


def test_gate_without_gates_is_no_pass():
    """An evaluation that nothing was held against does not pass."""
    assert not judge_gates(metrics(), [], CHANNELS, JUDGED).passed


def test_a_scope_without_a_gate_is_no_pass():
    """Gates that bind on one request alone say nothing of the other, so that the verdict is fail."""
    alone = gate(variant="filter")
    record = {"r": {"filter": {"ua": metrics()["r"]["summed"]["ua"]}}}

    assert judge_gates(record, [alone], {"r": ["filter"]}, JUDGED).passed
    assert not judge_gates(record, [alone], {"r": ["filter"], "s": ["guidance"]}, JUDGED).passed


def test_gate_relative_to_base():
    """A relative gate compares the difference to base; without a base value it fails."""
    relative = gate(relative_to_base=True, threshold=-0.05)

    assert judge_gates(metrics(value=0.46, base=0.5), [relative], CHANNELS, JUDGED).passed
    assert not judge_gates(metrics(value=0.44, base=0.5), [relative], CHANNELS, JUDGED).passed
    assert "the base has no value" in judge_gates(metrics(base=None), [relative], CHANNELS, JUDGED).gates[0].reason


def test_gate_on_buckets_takes_the_worst():
    """A metric in buckets passes only if every bucket does."""
    record = {
        "r": {"guidance": {"uncond_drift": {"0-200": {"value": 0.01, "n": 10}, "200-400": {"value": 0.2, "n": 10}}}}
    }
    drift = gate(metric="uncond_drift", variant="guidance", direction="at_most", threshold=0.05)
    verdict = judge_gates(record, [drift], CHANNELS, JUDGED)

    assert not verdict.passed
    assert verdict.gates[0].value == 0.2


def test_gate_of_an_absent_channel_does_not_apply():
    """A request without a filter is not held against the filter's gates, but against those on both."""
    verdict = judge_gates(metrics(), [gate(), gate(variant="filter")], {"r": ["guidance", "summed"]}, JUDGED)

    assert verdict.passed
    assert len(verdict.gates) == 1


def test_gates_on_gated_need_a_filter_for_every_request():
    """An adapter without a filter acts on all prompts, so that no line for gated images is held against it."""
    both = Request(target="cat", kind="object", anchor="dog", neighbours=("lion",))
    alone = both.model_copy(update={"channels": ("guidance",)})

    assert variants_of([both]) == ["filter", "guidance", "summed", "gated"]
    assert variants_of([alone]) == ["guidance", "summed"]
    assert variants_of([both, alone]) == ["filter", "guidance", "summed"]


def record(target, kind="object", anchor="", labels=None, names=None):
    request = Request(target=target, kind=kind, anchor=anchor)
    every = tuple(names or (target,))
    return RequestRecord(
        id=target[0], request=request, names={"select": every, "calibrate": every, "evaluate": every}, misspellings=(),
        labels=tuple(labels or (target,)), is_style=kind == "style", avoid=(target,),
    )  # fmt: skip


def test_judgement_by_hand():
    """A concept is present from one half on, unless nothing is recognisable; the likeliest is named; so is the style."""
    said = Judgement(
        np.array([[0.9, 0.6], [0.4, 0.45], [0.9, 0.1]]), np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]]),
        np.array([0.1, 0.2, 0.7]), ("cat", "dog"), ("neon", "plain"),
    )  # fmt: skip

    assert said.present() == [frozenset({"cat", "dog"}), frozenset(), frozenset()]
    assert said.top() == ["cat", "dog", "none"]
    assert said.style() == ["neon", "plain", "neon"]


def test_erased_of_several_needs_all_of_them_gone():
    """An image that shows what another acting request erases is no success, whatever it shows of the request's own target."""
    concepts = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]], float)
    styles = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], float)
    said = Judgement(concepts, styles, np.zeros(4), ("cat", "dog", "ghost"), ("pixel art", "neon"))
    cat, ghost, neon = record("cat", anchor="dog"), record("ghost", "character"), record("neon", "style", "pixel art")

    assert erased_of(said, cat).tolist() == [True, True, False, True]
    assert erased_of(said, cat, ghost).tolist() == [True, False, False, True]
    assert erased_of(said, cat, ghost, neon).tolist() == [True, False, False, False]
    assert anchored_in(said, cat).tolist() == [True, False, False, False]
    assert anchored_in(said, neon).tolist() == [True, True, True, False]


def retain_table(rows):
    table = pd.DataFrame(rows, columns=["prompt", "concepts", "style"]).assign(role="retain")
    return table.assign(concepts=table["concepts"].map(lambda shown: (shown,)))


def test_unrelated_prompts_neither_show_nor_name_a_target():
    """A prompt that shows another thing by a name that holds a target's is not unrelated: filters and adapters answer to names."""
    table = retain_table(
        [
            ("an owl", "owl", "neon"),
            ("a big cat", "tiger", ""),
            ("a feline", "cat", ""),
            ("an axe guitar", "guitar", ""),
        ]
    )
    cat, neon = record("cat"), record("neon", "style")

    assert sorted(pick_retain(table, {"c": cat}, 9, 0)["prompt"]) == ["an axe guitar", "an owl"]
    assert pick_retain(table, {"c": cat, "n": neon}, 9, 0)["prompt"].tolist() == ["an axe guitar"]


def test_unrelated_prompts_do_not_depend_on_what_else_is_measured():
    """One more request takes those that it touches away and leaves the others, with their seeds and in their order."""
    concepts = [f"thing {n}" for n in range(40)] + ["cat", "dog", "owl"]
    table = retain_table([(f"a {c}", c, "") for c in concepts])
    cat, dog = record("cat"), record("dog")
    before = retain_specs(pick_retain(table, {"c": cat}, 99, 0), 0)
    after = retain_specs(pick_retain(table.iloc[::-1], {"c": cat, "d": dog}, 99, 0), 0)

    assert after == tuple(p for p in before if p.prompt != "a dog") != before
    assert retain_specs(pick_retain(table, {"c": cat}, 9, 0), 0) == before[:9]
    few = retain_specs(pick_retain(table, {"c": cat, "d": dog}, len(before) - 2, 0), 0)
    assert few == after[: len(few)]
    assert [p.prompt for p in before] != sorted(p.prompt for p in before)


def test_prompts_that_name_a_target_are_no_negatives():
    """A benign prompt that names a target in any listed spelling, or that is one of ours, is not counted; nor is such a neighbour."""
    table = pd.DataFrame(
        [("c", "a cat", True), ("c", "a lion", False), ("c", "cats and lions", False), ("d", "a dog", True)],
        columns=["request", "prompt", "names_target"],
    )
    corpus = pd.DataFrame(
        [
            ("a kettle", "english"),
            ("my cats", "english"),
            ("a caat", "english"),
            ("a dog", "english"),
            ("ours", "sources"),
        ],
        columns=["prompt", "source"],
    )
    texts = [*table["prompt"], *corpus["prompt"]]
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(texts))}
    named = np.array([[prompt == "a caat"] for prompt in rows])
    seen = Seen(rows, ("c",), np.zeros((len(rows), 1)), named, np.zeros(len(rows)))

    assert group_prompts([record("cat")], seen, table, corpus) == {
        "positive": ["a cat"], "near": ["a lion"], "benign": ["a kettle"], "traffic": ["ours"],
    }  # fmt: skip


def test_auroc_and_its_interval_are_those_of_sklearn_and_hanley_mcneil():
    """The area equals scikit-learn's; the interval holds it and shrinks with n."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    on, off = rng.normal(1, 1, 60), rng.normal(0, 1, 80)
    found, more = auroc_of(on, off), auroc_of(np.repeat(on, 4), np.repeat(off, 4))

    assert auroc(on, off) == pytest.approx(roc_auc_score([1] * 60 + [0] * 80, [*on, *off]))
    assert found.n == 140
    assert found.low < found.value < found.high
    assert more.high - more.low < 0.6 * (found.high - found.low)


def test_rate_needs_every_concept():
    """Of a pair both must be found; more than was asked for does no harm."""
    found = [frozenset({"cat", "car"}), frozenset({"cat"})]

    assert rate_of(found, [frozenset({"cat", "car"})] * 2).tolist() == [True, False]


def test_likeness_is_ssim_of_each_pair():
    """An image is wholly like itself; of two pairs each has its own value, and order does not matter."""
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    other = images.copy()
    other[1] = 255 - other[1]
    found = likeness(images, other)

    assert found[0] == 1.0
    assert found[1] < 0.5
    np.testing.assert_allclose(found, likeness(other, images), atol=1e-6)


def test_paired_change_covers_what_is_true():
    """Of 4,000 samples of 200 pairs the interval holds the true change in about 95 of a hundred; no change is no certainty."""
    rng = np.random.default_rng(0)
    before = rng.random((4000, 200)) < 0.9
    after = np.where(rng.random((4000, 200)) < 0.1, rng.random((4000, 200)) < 0.5, before)  # 0.1 · (0.5 - 0.9) = -0.04
    found = [paired_change(b, a) for b, a in zip(before, after, strict=True)]
    still = paired_change(before[0], before[0])

    assert 0.935 < np.mean([m.low <= -0.04 <= m.high for m in found]) < 0.965
    assert np.mean([m.value for m in found]) == pytest.approx(-0.04, abs=0.005)
    assert (still.value, still.n) == (0.0, 200)
    assert still.low < 0 < still.high


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "uaa"}, "metric='uaa' is not among the metrics (ua, anchor_rate, ira"),
        ({"metric": "auroc"}, "metric='auroc' is taken of filter, not of variant='summed'"),
        ({"metric": "uncond_drift", "variant": "gated"}, "is taken of guidance, not of variant='gated'"),
    ],
)
def test_a_gate_that_nothing_is_measured_for_is_refused_when_read(changes, said):
    """A misspelt metric, or one of another variant, is found before hours of training and not by the gate that lacks it."""
    given = {"metric": "ua", "variant": "summed", "direction": "at_least", "threshold": 0.9, "n": 10}
    with pytest.raises(UserError) as refused:
        validated(given | changes, GateParams, "params.yaml", "evaluate")
    assert said in str(refused.value)


def test_the_metrics_that_a_gate_may_name_are_those_that_an_evaluation_writes():
    """Every metric of the evaluation that ships is listed with its variants, and every listed one is there (`fpr_traffic`, which asks for traffic, aside)."""
    written = json.loads((ROOT / EVALUATE / METRICS_FILE).read_text())["requests"]
    found = {(metric, variant) for scope in written.values() for variant, taken in scope.items() for metric in taken}
    listed = {(metric, variant) for metric, variants in METRICS.items() for variant in variants}
    assert listed - found == {("fpr_traffic", "filter")} - found
    assert found <= listed
