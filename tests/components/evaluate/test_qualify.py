"""Whether judges tell what they judge, and what becomes of gates where they do not."""

import numpy as np
import pandas as pd
import pytest

from components.collect.record import RequestRecord
from components.evaluate.gates import judge_gates
from components.evaluate.measure import erased_of, shown_in, told, told_of
from components.evaluate.metrics import proportion
from components.evaluate.params import GateParams
from components.evaluate.qualify import beside_specs, distort, fault, mark_untold, needed_names, qualify, subjects_of
from components.requests.requests import Request
from components.worlds.base import Judgement
from components.worlds.panel import Findings, JudgePanel
from components.worlds.params import JudgeParams

PARAMS = JudgeParams()


class Brightness:
    """A judge that finds any name where the mean pixel is above a limit; NaN on black."""

    digest, sizes = "brightness", (8, 64)

    def __init__(self, *limits):
        self.limits = dict(limits)

    def knows(self, name):
        """Names with a limit."""
        return name in self.limits

    def present(self, images, names):
        """0.9 or 0.1."""
        mean = images.mean((1, 2, 3)) / 255
        chance = np.stack([(mean > self.limits[name]) * 0.8 + 0.1 for name in names], 1)
        return np.where(mean[:, None] == 0, np.nan, chance)


def made(target="jane", anchor="a woman", kind="person", **more):
    return RequestRecord(
        id="r-1", request=Request(target=target, kind=kind, anchor=anchor, **more), misspellings=(), labels=(target,),
        names={"select": (target,), "calibrate": (target,), "evaluate": (target,)}, is_style=kind == "style", avoid=(target,),
    )  # fmt: skip


def shades(*values, n=10):
    """`n` images of each shade of grey in [0, 1]."""
    return np.concatenate([np.full((n, 16, 16, 3), round(v * 255), np.uint8) for v in values])


def run(shown, others, judge=None, anchor=None, second=None, params=PARAMS):
    first = judge or Brightness(("jane", 0.5), ("a woman", 0.1))
    judges = {name: [first, *((second,) if second and name == "jane" else ())] for name in ("jane", "a woman")}
    given = others if anchor is None else anchor
    return qualify(made(), shown, given, others, JudgePanel(judges), params, seed=0)


def test_a_judge_that_separates_qualifies():
    """Bright images are the target, dark ones are not: all rates are 1 with n and interval, and no reason stands."""
    found = run(shades(0.9, n=24), shades(0.3, n=24))

    assert (found.target, found.anchor) == ("", "")
    assert (found.sensitivity.value, found.specificity.value, found.sensitivity.n) == (1.0, 1.0, 24)
    assert found.sensitivity.low == pytest.approx(0.862, abs=1e-3)
    assert found.worn_sensitivity.value == 1.0
    assert found.disagreement.n == 0


@pytest.mark.parametrize(
    ("shown", "others", "said"),
    [
        (
            shades(0.9, 0.3),
            shades(0.3),
            "no judge tells 'jane' (sensitivity 0.50 [0.30, 0.70], n = 20, at least 0.7 is",
        ),
        (
            shades(0.9),
            shades(0.3, 0.9),
            "no judge tells 'jane' (specificity 0.50 [0.30, 0.70], n = 20, at least 0.9 is",
        ),
        (shades(0.0), shades(0.3), "no judge tells 'jane' (sensitivity has no value, at least 0.7 is needed)"),
    ],
)
def test_a_judge_that_does_not_is_no_judge(shown, others, said):
    """Missed targets, false alarms and images that cannot be judged are each a reason, with numbers."""
    assert run(shown, others).target.startswith(said)


def test_distorted_images_count():
    """A judge that tells clean images alone, by the one grey that they have, does not qualify."""

    class Exact(Brightness):
        def present(self, images, names):
            return np.repeat((images == 230).all((1, 2, 3))[:, None].astype(float), len(names), 1)

    strict = PARAMS.model_copy(update={"worn": 0.0})
    judge = Exact(("jane", 0), ("a woman", 0))
    found = run(np.full((24, 16, 16, 3), 230, np.uint8), shades(0.3), judge=judge, params=strict)

    assert found.sensitivity.value == 1.0
    assert found.target.startswith("no judge tells 'jane' (sensitivity on distorted images 0.67")


def test_an_anchor_that_nobody_finds_is_untold():
    """The judge tells the target but not the anchor: only what rests on the anchor fails."""
    found = run(shades(0.9), shades(0.3), judge=Brightness(("jane", 0.5), ("a woman", 0.6)))

    assert found.target == ""
    assert found.anchor.startswith("no judge tells 'a woman' (sensitivity 0.00")


def test_judges_that_disagree_are_an_error():
    """On more than 2 % of the images the second judge says something else: no word about the name counts."""
    second = Brightness(("jane", 0.92))
    found = run(shades(0.9), shades(0.3), second=second)
    agree = run(shades(0.9), shades(0.3), second=Brightness(("jane", 0.55)))

    assert found.target == "two judges of 'jane' disagree on 50.0% of 20 images"
    assert agree.target == ""
    assert agree.disagreement.n == 20


def test_one_in_fifty_is_no_disagreement():
    """At 2 % exactly judges still agree; above they do not."""
    rates = [proportion([True] * k + [False] * (100 - k)) for k in (2, 3)]
    good = proportion([True] * 100)

    assert [fault("x", good, good, (good, good), rate, PARAMS) == "" for rate in rates] == [True, False]


def test_gates_on_an_untold_name_fail():
    """A metric that reaches its line fails with the reason, in the request's scope and in that of all; others stand."""
    good = run(shades(0.9), shades(0.3))
    judges = {"r-1": good._replace(target="no judge tells 'x'"), "r-2": good._replace(anchor="no judge tells 'y'")}
    metric = {"value": 1.0, "n": 50, "low": 0.9, "high": 1.0}
    metrics = {s: {"summed": {"ua": {**metric}, "anchor_rate": {**metric}}} for s in ("r-1", "r-2", "joint")}
    gates = [
        GateParams(metric=name, variant="summed", direction="at_least", threshold=0.9, n=10)
        for name in ("ua", "anchor_rate")
    ]
    channels = {scope: ["summed"] for scope in metrics}
    assert judge_gates(metrics, gates, channels, {}).passed
    mark_untold(metrics, judges)
    verdict = judge_gates(metrics, gates, channels, {})
    said = {(g.request, g.metric): (g.passed, g.reason) for g in verdict.gates}

    assert not verdict.passed
    assert said["r-1", "ua"] == (False, "no judge tells 'x'")
    assert said["r-1", "anchor_rate"][0]
    assert said["r-2", "ua"][0]
    assert said["r-2", "anchor_rate"] == (False, "no judge tells 'y'")
    assert [said["joint", m][0] for m in ("ua", "anchor_rate")] == [False, False]


def test_faceless_images_leave_the_denominator():
    """An image that cannot be judged counts neither as erased nor as shown."""
    said = JudgePanel({"jane": [Brightness(("jane", 0.5))]})(shades(0.0, 0.3, 0.9, n=1))

    assert told_of(said, made()).tolist() == [False, True, True]
    assert erased_of(said, made())[told_of(said, made())].tolist() == [True, False]
    assert np.isnan(said.found("nobody", style=False)).all()


def test_what_is_shown_by_hand():
    """All that is wanted must be found; NaN where nobody can tell or where nothing is wanted."""
    said = Findings(("cat", "dog", "oil"), np.array([[0.9, 0.9, 0.1], [0.9, 0.1, 0.9], [np.nan, 0.9, 0.5]]))

    assert shown_in(said, [("cat", "dog"), ("cat", "dog"), ("dog",)], style=False).tolist() == [1, 0, 1]
    np.testing.assert_array_equal(shown_in(said, [("cat",), ("unknown",), ("cat",)], style=False), [1, np.nan, np.nan])
    np.testing.assert_array_equal(shown_in(said, [(), ("oil",), ("oil",)], style=True), [np.nan, 1, 1])
    assert told(np.array([1, np.nan, 0])).tolist() == [1, 0]


def test_a_closed_worlds_judgement_is_read_as_before():
    """Concepts from one half on, the likeliest style, nothing where nothing is recognisable."""
    said = Judgement(
        np.array([[0.9, 0.6], [0.4, 0.45], [0.9, 0.1]]), np.array([[0.4, 0.3], [0.2, 0.8], [0.5, 0.5]]),
        np.array([0.1, 0.2, 0.7]), ("cat", "dog"), ("neon", "plain"),
    )  # fmt: skip

    assert said.found("cat", style=False).tolist() == [1, 0, 0]
    assert said.found("neon", style=True).tolist() == [1, 0, 1]


def test_subjects_are_all_that_judges_are_asked():
    """Targets with what may stand instead and their images, anchors, neighbours, and what prompts to retain show."""
    record = made(neighbours=("joan",))
    retain = pd.DataFrame({"concepts": [("dog", "cat"), ("a woman",)], "style": ["oil", ""]})
    found = {s.name: s for s in subjects_of({"r-1": record}, retain)}

    assert list(found) == ["jane", "a woman", "joan", "cat", "dog", "oil"]
    assert (found["jane"].kind, found["jane"].alternatives) == ("person", ("a woman", "joan"))
    assert (found["oil"].kind, found["dog"].kind) == ("style", "object")
    assert needed_names({"r-1": record}) == ["jane", "a woman"]


def test_prompts_beside_the_target_are_few_and_seeded():
    """At most twelve of the anchor and of each neighbour, every one with a seed of its own."""
    rows = [("r-1", "neighbour", f"{n} {i}", (n,)) for n in ("joan", "june") for i in range(20)]
    rows += [("r-1", "anchor", f"a woman {i}", ("a woman",)) for i in range(20)]
    table = pd.DataFrame(rows, columns=["request", "role", "prompt", "concepts"])
    near, anchor = (beside_specs(table, "r-1", role, 0) for role in ("neighbour", "anchor"))

    assert (len(near), len(anchor)) == (24, 12)
    assert len({spec.seed for spec in (*near, *anchor)}) == 36
    assert beside_specs(table, "r-2", "neighbour", 0) == ()


def test_distortion_is_slight_and_reproducible():
    """Worn images differ from the clean ones, a little, the same way for the same seed."""
    images = np.random.default_rng(0).integers(60, 200, (6, 32, 32, 3), np.uint8)
    smooth = np.repeat(np.repeat(images[:, ::8, ::8], 8, 1), 8, 2)
    worn = distort(smooth, 1)

    assert np.array_equal(worn, distort(smooth, 1))
    assert all(not np.array_equal(a, b) for a, b in zip(worn, smooth, strict=True))
    assert np.abs(worn.astype(int) - smooth).mean() < 12
    assert len(distort(images[:0], 0)) == 0
