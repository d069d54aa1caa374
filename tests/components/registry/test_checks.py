import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.common.errors import UserError
from components.common.sections import validated
from components.evaluate.metrics import proportion
from components.evaluate.params import GateParams
from components.registry.checks import Assessment, Evidence, assess, loss_interval
from components.registry.params import PromoteParams
from components.requests.requests import Request
from tests.toyregistry import GATES, PROMOTE, REQUEST, Shown, metrics_of

CAT, DOG = (Request.model_validate(REQUEST | {"target": name}) for name in ("cat", "lantern"))


def release(shown=Shown(), size="full", requests=None):  # noqa: B008
    requests = {"r-1": CAT} if requests is None else requests
    return Evidence(size, metrics_of(shown, requests), requests)


def failed(found):
    return sorted({(finding.gate, finding.check) for finding in found.findings if not finding.passed})


def test_a_good_release_passes_every_gate_of_every_scope():
    """Each gate that concerns a scope is a finding, beside the size; all pass."""
    found = assess(release(), GATES, PROMOTE)

    assert found.result == "PASSED"
    assert {f.gate for f in found.findings if f.check == "gate"} == {
        f"{scope}/{gate}" for scope in ("r-1", "joint") for gate in ("base/ua", "gated/ua", "summed/ira", "filter/fpr")
    }


@pytest.mark.parametrize(
    ("shown", "gates", "can"),
    [
        (Shown(ua=150), {"joint/gated/ua", "r-1/gated/ua"}, ()),
        (Shown(ira=150), {"joint/summed/ira", "r-1/summed/ira"}, {"joint/summed/ira", "r-1/summed/ira"}),
        (Shown(fpr=40), {"joint/filter/fpr", "r-1/filter/fpr"}, {"joint/filter/fpr", "r-1/filter/fpr"}),
    ],
)
def test_only_a_gate_on_utility_can_be_answered_for(shown, gates, can):
    """A failed gate fails the release; overrides of all its gates make it WARNED if they are on utility, and change nothing if on erasure."""
    found = assess(release(shown), GATES, PROMOTE)
    answered = assess(release(shown), GATES, PROMOTE, overridden=gates)
    half = assess(release(shown), GATES, PROMOTE, overridden=sorted(gates)[:1])

    assert (found.result, {gate for gate, _ in failed(found)}) == ("FAILED", gates)
    assert set(found.overridable) == set(can)
    assert answered.result == ("WARNED" if can else "FAILED")
    assert half.result == "FAILED"


@pytest.mark.parametrize("loss", ["missing", "null", "few"])
def test_evidence_that_lacks_cannot_be_answered_for(loss):
    """A metric of utility that is missing, null or rests on too few images fails, whoever overrides it."""
    one = release()
    metrics = {scope: {v: dict(found) for v, found in variants.items()} for scope, variants in one.metrics.items()}
    record = dict(metrics["joint"]["summed"]["ira"])
    metrics["joint"]["summed"]["ira"] = record | ({"value": None} if loss == "null" else {"n": 31})
    if loss == "missing":
        del metrics["joint"]["summed"]["ira"]
    found = assess(one._replace(metrics=metrics), GATES, PROMOTE, overridden=["joint/summed/ira"])

    assert found.result == "FAILED"
    assert failed(found) == [("joint/summed/ira", "gate")]
    assert found.overridable == ()


def test_nothing_is_no_pass():
    """No gate at all, and no finding at all, are FAILED; an empty override list does not help."""
    found = assess(release(), (), PROMOTE, overridden=["joint/-/-", "r-1/-/-"])

    assert found.result == "FAILED"
    assert failed(found) == [("joint/-/-", "gate"), ("r-1/-/-", "gate")]
    assert Assessment((), ()).result == "FAILED"


def test_size():
    """`quick` and an unknown size are refused where full is asked for; full passes where quick is; few images are no full size."""
    quick = PROMOTE.model_copy(update={"size": "quick", "margin": {}})
    few = Shown(ua=24, ira=23, images=24)

    assert failed(assess(release(few, "quick"), GATES, PROMOTE))[-1] == ("size", "size")
    assert ("size", "size") in failed(assess(release(size="enormous"), GATES, PROMOTE))
    assert assess(release(), GATES, quick).result == "PASSED"
    called_full = assess(release(few, "full"), GATES, PROMOTE)
    assert {check for _, check in failed(called_full) if check != "gate"} == {"images"}
    assert not any(f.utility for f in called_full.findings if f.check == "images")
    assert assess(release(Shown(ua=142, ira=135, images=142)), GATES, PROMOTE).result == "PASSED"
    assert assess(release(Shown(ua=141, ira=134, images=141)), GATES, PROMOTE).result == "FAILED"


def test_a_candidate_may_not_be_worse_than_the_champion():
    """A loss beyond the margin that chance does not explain fails, whatever the gate says; one within it or within chance does not."""
    champion = release(Shown(ua=200, ira=198))

    def against(shown):
        return failed(assess(release(shown), GATES, PROMOTE, champion=champion))

    assert against(Shown(ua=200, ira=198)) == []
    assert against(Shown(ua=197, ira=198)) == []  # 1.5 %: within the margin of 2 %
    assert against(Shown(ua=185, ira=198)) == [("joint/gated/ua", "champion"), ("r-1/gated/ua", "champion")]
    assert against(Shown(ua=200, ira=187)) == [("joint/summed/ira", "champion"), ("r-1/summed/ira", "champion")]
    assert against(Shown(ua=200, ira=189)) == []  # 4.5 %: within the margin of 5 %
    few = Evidence("full", metrics_of(Shown(ua=15, ira=15, images=16), {"r-1": CAT}), {"r-1": CAT})
    full = Evidence("full", metrics_of(Shown(ua=16, ira=16, images=16), {"r-1": CAT}), {"r-1": CAT})
    gates = [gate.model_copy(update={"n": 1}) for gate in GATES]
    found = assess(few, gates, PROMOTE.model_copy(update={"images": {"full": 1}, "margin": {}}), champion=full)
    assert {check for _, check in failed(found)} == {"gate"}  # 1 of 16 less is chance


def test_requests_that_the_champion_lacks_are_not_compared():
    """A new request has nothing to be compared with; all at once are compared, and so is what both have."""
    found = assess(release(requests={"r-1": CAT, "r-2": DOG}), GATES, PROMOTE, champion=release())
    compared = {finding.gate.partition("/")[0] for finding in found.findings if finding.check == "champion"}

    assert compared == {"r-1", "joint"}


def test_a_value_that_only_the_candidate_lacks_is_worse():
    """The champion has a value and the candidate none: both the gate and the comparison fail."""
    one = release()
    metrics = {s: {v: {} if v == "gated" else m for v, m in found.items()} for s, found in one.metrics.items()}
    found = assess(one._replace(metrics=metrics), GATES, PROMOTE, champion=release())

    assert ("r-1/gated/ua", "champion") in failed(found)


def test_loss_interval_by_hand():
    """Newcombe's published example, 56/70 against 48/80, has the 95 % interval [0.0524, 0.3339] (1998, method 10)."""
    old, new = (proportion([i < hits for i in range(n)]) for hits, n in ((56, 70), (48, 80)))
    triple = [(m.value, m.low, m.high) for m in (new, old)]

    assert loss_interval(*triple) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert loss_interval((0.5, None, math.nan), (0.7, None, None)) == pytest.approx((0.2, 0.2, 0.2))


@given(st.integers(0, 200), st.integers(0, 200))
def test_direction_is_symmetric(old, new):
    """More false positives are as bad as fewer erased images: the comparison says the same of a rate and of its complement."""
    records = [proportion([i < hits for i in range(200)]).record() for hits in (old, new)]
    mirrored = [proportion([i >= hits for i in range(200)]).record() for hits in (old, new)]
    said = []
    for direction, pair in (("at_least", records), ("at_most", mirrored)):
        gate = GateParams(metric="ua", variant="gated", direction=direction, threshold=0.5, n=1)
        both = [Evidence("full", {"joint": {"gated": {"ua": one}}}, {"r-1": CAT}) for one in pair]
        found = assess(both[1], [gate], PROMOTE, champion=both[0])
        said.append([f.passed for f in found.findings if f.check == "champion" and f.gate.startswith("joint")])

    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"size": "huge"}, "promote.size='huge' is not among promote.images"),
        ({"images": {"full": 0}}, "promote.images are counts"),
        ({"margin": {"ua": -0.1}}, "promote.margin is not negative"),
        ({"sise": "full"}, "unknown key 'promote.sise'"),
    ],
)
def test_params_that_make_no_sense(section, said):
    """Each is one sentence."""
    with pytest.raises(UserError, match=said):
        validated(PROMOTE.model_dump() | section, PromoteParams, "params.yaml", "promote")
