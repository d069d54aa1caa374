import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.common.errors import ArtifactError, StageError, TransientError, UserError
from components.evaluate.attacks.params import TierGate
from components.ledger import releases
from components.ledger.events import Ledger
from components.ledger.releases import History, read_history
from components.registry import promotion
from components.registry.compare import compare
from components.registry.promotion import RefusedError, Registrar, read_policy
from components.registry.release import read_release
from tests.toyattacks import attack_params
from tests.toyregistry import GATES, POLICY, PROMOTE, REQUEST, Shown, Store, write_release

DAY = timedelta(days=1)
IRA = ("r-1/summed/ira", "joint/summed/ira")


class World:
    """A ledger, a registry, and people."""

    def __init__(self, folder, policy=POLICY):
        self.ledger, self.store = Ledger(f"sqlite:///{folder}/ledger.db"), Store()
        self.folder, self.policy = folder, policy

    def by(self, name, **more):
        """The acts of one person."""
        return Registrar(self.ledger, self.store, self.policy, name, **more)

    def register(self, *shown, by="ann", **more):
        """Registers releases and returns the last version."""
        for one in shown or (Shown(),):
            number = len(self.store.folders) + 1
            made = write_release(self.folder / f"v{number}", one, **{"note": str(number)} | more)
            self.store.folders.append(made.folder)
            history = read_history(self.ledger)
            entry = releases.registration(history, number, made.digest, "pass" if made.passed else "fail")
            releases.append(self.ledger, history, entry, by)
        return number

    def champion(self, *versions):
        """Approves and promotes versions."""
        for version in versions:
            self.by("bob").approve(version)
            self.by("carl").promote(version)
        return self

    @property
    def moved(self):
        """What an act could have changed."""
        return self.ledger.verify(), self.store.aliases()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_from_candidate_to_champion_and_back(world):
    """Approval and promotion move champion and previous and stand in the ledger; a rollback restores the previous bytes."""
    one, two = world.register(), world.register()
    world.champion(one)
    assert world.store.named == {"candidate": 2, "champion": 1}
    world.by("bob").approve(two)
    act = world.by("carl").promote(two)
    assert (act.did, act.result, act.champion, act.previous) == ("promoted", "PASSED", 2, 1)
    assert world.store.named == {"candidate": 2, "champion": 2, "previous": 1}
    assert world.ledger.events()[-1].body["result"] == "PASSED"
    back = world.by("dora").rollback()
    assert (back.did, back.champion, back.previous) == ("rolled back to", 1, None)
    assert world.store.named == {"candidate": 2, "champion": 1}
    first = read_release(world.store.folders[0])
    assert world.store.fetch(world.store.named["champion"], world.folder / "live").digest == first.digest == back.digest


def test_a_dry_run_moves_nothing(world):
    """Each act says what it would do, and neither the ledger nor an alias changes, not even one to be mended."""
    world.register(Shown(), Shown(), Shown(ira=160))
    world.champion(1, 2)
    world.store.named = {"champion": 1}
    before, dry = world.moved, world.by("bob", dry_run=True)
    assert dry.rollback().champion == 1
    assert dry.reject(3, "no").did == "would have rejected"
    assert dry.approve(3).did == "would have approved"
    assert dry.override(3, IRA[0], "due", datetime.now(UTC) + DAY).did == "would have overrode"
    assert world.moved == before
    with pytest.raises(UserError, match="not approved"):
        dry.promote(3)
    assert world.moved == before


def test_an_override_promotes_with_a_warning(world):
    """A release that fails a gate on utility is promoted once a named person answers for each, and the history says WARNED and for what."""
    version = world.register(Shown(ira=160))
    world.by("bob").approve(version)
    with pytest.raises(UserError, match="has the verdict fail; promote one that passes, or override the gate"):
        world.by("carl").promote(version)
    world.by("dora").override(version, IRA[0], "due by law", datetime.now(UTC) + DAY)
    with pytest.raises(RefusedError, match=f"fails {IRA[1]} .*override it: expunge release override 1 --gate {IRA[1]}"):
        world.by("carl").promote(version)
    world.by("dora").override(version, IRA[1], "due by law", datetime.now(UTC) + DAY)

    assert world.by("carl").promote(version).result == "WARNED"
    body = world.ledger.events()[-1].body
    assert (body["result"], body["overridden"]) == ("WARNED", sorted(IRA))


def test_an_override_that_has_ended_is_none(world, monkeypatch):
    """The day after its end the release is refused again, though it could have been promoted the day before; a longer one answers anew."""
    version = world.register(Shown(ira=160))
    world.by("bob").approve(version)
    for gate in IRA:
        world.by("dora").override(version, gate, "due by law", datetime.now(UTC) + DAY)
    assert world.by("carl", dry_run=True).promote(version).result == "WARNED"
    before, later = world.moved, datetime.now(UTC) + 2 * DAY
    monkeypatch.setattr(promotion, "_now", lambda: later)

    with pytest.raises(UserError, match="has the verdict fail"):
        world.by("carl").promote(version)
    assert world.moved == before
    world.by("dora").override(version, IRA[0], "due by law", later + DAY)
    with pytest.raises(RefusedError, match=f"fails {IRA[1]}"):
        world.by("carl").promote(version)
    assert "champion" not in world.store.named


@pytest.mark.parametrize("gate", ["r-1/gated/ua", "r-1/base/ua", "size", "joint/-/-", "r-1/summed/ira", "ira"])
def test_no_other_gate_can_be_overridden(world, gate):
    """One on erasure, one on evidence, the size, one that passes, or none at all: refused, and nothing moves."""
    version, before = world.register(Shown(ua=100)), world.moved[0]
    with pytest.raises(UserError, match=f"gate '{gate}' cannot be overridden"):
        world.by("dora").override(version, gate, "due", datetime.now(UTC) + DAY)
    assert world.moved[0] == before


def test_todays_gates_count_and_its_own(world):
    """A release that passed its own gates is refused by stricter ones of today, and one that failed its own is not saved by laxer ones."""
    strict, lax = (GATES[1].model_copy(update={"threshold": line}) for line in (0.99, 0.1))
    passed, failing = world.register(Shown(ua=190)), world.register(Shown(ua=170))
    for version in (passed, failing):
        world.by("bob").approve(version)
    world.policy = POLICY._replace(gates=(strict, *GATES))
    with pytest.raises(RefusedError, match="version 1 fails r-1/gated/ua and 1 more"):
        world.by("carl").promote(passed)
    world.policy = POLICY._replace(gates=(lax,))
    with pytest.raises(UserError, match="version 2 has the verdict fail"):
        world.by("carl").promote(failing)
    world.policy = POLICY._replace(gates=())
    assert world.by("carl").promote(passed).champion == passed


def test_worse_than_the_champion_is_refused(world):
    """All gates pass, but the target is drawn again in 7 % of the images: the champion stays."""
    world.register(Shown(), Shown(ua=186))
    world.champion(1).by("bob").approve(2)
    with pytest.raises(RefusedError, match=r"fails r-1/gated/ua and 1 more \(0.93 against the champion's 1: worse by"):
        world.by("carl").promote(2)
    assert world.store.named["champion"] == 1


def altered(world, version, how):
    """A registered release that somebody has changed since."""
    if how == "gone":
        world.store.folders = []
        return
    folder = world.store.folders[version - 1]
    if how == "filter":
        (folder / "filter" / "artifact.json").write_text("{}")
    elif how == "missing":
        shutil.rmtree(folder / "filter")
    elif how == "evaluation":
        shutil.rmtree(folder / "report")
    else:
        shutil.rmtree(folder)
        write_release(folder, note="another release under the same version")


@pytest.mark.parametrize("how", ["filter", "missing", "evaluation", "another", "gone"])
def test_altered_bytes_are_neither_approved_nor_promoted_nor_rolled_back_to(world, how):
    """A byte, a folder, the evaluation or the whole release changed after it was registered: one sentence, and nothing moves."""
    world.register(Shown(), Shown(), Shown())
    world.champion(1, 3).by("bob").approve(2)
    altered(world, 1, how)
    altered(world, 2, how)
    before = world.ledger.verify()
    for act in (
        lambda: world.by("carl").promote(2),
        lambda: world.by("carl").approve(2),
        lambda: world.by("eve").rollback(1),
    ):
        with pytest.raises((ArtifactError, UserError)) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert world.ledger.verify() == before


@pytest.mark.parametrize("how", ["by hand", "no gates"])
def test_a_verdict_set_by_hand_is_found_out(world, how):
    """A verdict that its metrics do not give is refused, even under a digest that was registered and approved."""
    more = {"gates": ()} if how == "no gates" else {}
    version = world.register(Shown(ua=100), passed=True, **more)
    world.by("bob").approve(version)
    said = {
        "by hand": (ArtifactError, "version 1 says pass, which its metrics do not; evaluate and register it"),
        "no gates": (UserError, r"evaluate\.gates is \[\]; list at least one"),
    }
    with pytest.raises(said[how][0], match=said[how][1]):
        world.by("carl").promote(version)
    assert "champion" not in world.store.named


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda w: w.by("carl").promote(9), "version 9 is not registered; use one of: 1, 2, 3"),
        (lambda w: w.by("carl").promote(2, "0" * 64), "was registered with digest"),
        (lambda w: w.by("carl").promote(2, w.ledger.events()[1].body["digest"][:11]), "was registered with digest"),
        (lambda w: w.by("bob").approve(2, "f" * 12), "was registered with digest"),
        (lambda w: w.by("carl").promote(2), "version 2 is not approved"),
        (lambda w: w.by("carl").promote(1), "version 1 is the champion already"),
        (lambda w: w.by("carl").rollback(), "there is no earlier champion to roll back to; promote a version instead"),
        (lambda w: w.by("carl").rollback(2), "version 2 was never champion"),
        (lambda w: w.by("carl").reject(1, "bad"), "version 1 is the champion; roll back"),
        (lambda w: w.by("carl").reject(2, ""), "the reason is empty"),
    ],
)
def test_what_the_history_refuses(world, act, said):
    """Each is one sentence, and neither the ledger nor an alias moves."""
    world.register(Shown(), Shown(), Shown())
    before = world.champion(1).moved
    with pytest.raises(UserError, match=re.escape(said)):
        act(world)
    assert world.moved == before


def test_a_digest_may_be_shortened(world):
    """Twelve digits of the digest name the release, in any case."""
    world.register()
    digest = world.ledger.events()[0].body["digest"]

    assert world.by("bob").approve(1, digest[:12].upper()).digest == digest


def test_quick_is_refused_unless_it_is_asked_for(world):
    """A quick evaluation promotes only where promote.size says quick; one named full with few images not even there where full is asked."""
    few = Shown(ua=24, ira=23, images=24)
    gates = tuple(gate.model_copy(update={"n": 24}) for gate in GATES)
    world.policy = POLICY._replace(gates=gates)
    world.register(few, size="quick", gates=gates)
    world.register(few, size="full", gates=gates)
    for version, said in (
        (1, "'quick' is not 'full', which promotion asks for"),
        (2, "24 images are fewer than the 142"),
    ):
        world.by("bob").approve(version)
        with pytest.raises(RefusedError, match=said):
            world.by("carl").promote(version)
    world.policy = world.policy._replace(promote=PROMOTE.model_copy(update={"size": "quick", "margin": {}}))

    assert world.by("carl").promote(1).champion == 1


@pytest.mark.parametrize("found", [{}, {"champion": 1, "previous": 2, "theirs": 1}])
def test_aliases_are_rebuilt_from_the_history(world, found):
    """Aliases that were deleted or set by hand are those of the history again after the next act, even a refused one; others stay."""
    world.register(Shown(), Shown(), Shown())
    wanted = dict(world.champion(1, 2).store.named)
    world.store.named = dict(found)
    with pytest.raises(UserError):
        world.by("carl").promote(2)

    others = {name: version for name, version in found.items() if name == "theirs"}
    assert wanted == {"candidate": 3, "champion": 2, "previous": 1}
    assert world.store.named == wanted | others


def test_an_empty_ledger_takes_no_champion_away(world, tmp_path):
    """The ledger was lost, or another is named: acts are refused in one sentence, and the champion stays until the right one is back."""
    world.register(Shown(), Shown())
    right, named = world.champion(1).ledger, dict(world.store.named)
    (tmp_path / "other").mkdir()
    world.ledger = Ledger(f"sqlite:///{tmp_path}/other/ledger.db")
    releases.append(
        world.ledger, read_history(world.ledger), releases.registration(History(), 2, "0" * 64, "pass"), "ann"
    )
    with pytest.raises(
        ArtifactError, match="registry's champion is version 1, and the ledger does not know it; name the"
    ):
        world.by("bob").approve(2)
    assert world.store.named == named
    world.ledger = right
    assert world.by("bob").approve(2).champion == 1


def test_a_crash_between_the_event_and_the_alias_is_mended(world, monkeypatch):
    """Killed after the event was written: the ledger says who is champion, and the next act moves the aliases."""
    world.register(Shown(), Shown())
    world.champion(1).by("bob").approve(2)
    calls = []

    def killed(wanted):
        calls.append(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr(world.store, "set_aliases", killed)
    with pytest.raises(KeyboardInterrupt):
        world.by("carl").promote(2)
    assert len(calls) == 1
    assert (read_history(world.ledger).champion, world.store.named["champion"]) == (2, 1)
    monkeypatch.undo()
    world.by("dora").repair()
    assert world.store.named == {"candidate": 2, "champion": 2, "previous": 1}


def test_a_registry_that_goes_away_after_the_event_does_not_undo_the_act(world, monkeypatch):
    """The promotion stands and says that the aliases lag and why; the next act mends them and is not told to promote again."""
    world.register(Shown(), Shown())
    world.champion(1).by("bob").approve(2)

    def away(_wanted):
        raise TransientError("the model registry cannot be reached", "start it")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "set_aliases", away)
        act = world.by("carl").promote(2)
    assert (act.did, act.champion, act.lagging) == ("promoted", 2, "the model registry cannot be reached")
    assert world.store.named["champion"] == 1
    assert world.by("bob").reject(1, "old").lagging == ""
    assert world.store.named["champion"] == 2


def test_of_two_at_once_one_wins(world, monkeypatch):
    """Somebody else promotes while this one is checking bytes: it is told in one sentence, and the winner stays champion."""
    world.register(Shown(), Shown())
    for version in (1, 2):
        world.by("bob").approve(version)
    real = promotion.assess

    def slow(*arguments, **more):
        monkeypatch.setattr(promotion, "assess", real)
        world.by("dora").promote(2)
        return real(*arguments, **more)

    monkeypatch.setattr(promotion, "assess", slow)
    with pytest.raises(
        StageError, match=r"^the ledger has changed meanwhile: release.promoted of release/2 by dora came first; look"
    ):
        world.by("carl").promote(1)
    assert (read_history(world.ledger).champions, world.store.named["champion"]) == ((2,), 2)


def test_a_version_that_the_registry_has_lost_blocks_no_rollback(world):
    """The newest version was deleted in MLflow: its alias names nothing, and the champion can still be rolled back."""
    world.register(Shown(), Shown(), Shown())
    world.champion(1, 2).store.folders.pop()

    assert world.by("carl").rollback().champion == 1
    assert world.store.named == {"champion": 1}


def test_compare(tmp_path):
    """Requests, params, metrics and digests that differ are named with both values; equal releases differ in nothing."""
    one = write_release(tmp_path / "one", Shown())
    two = write_release(
        tmp_path / "two", Shown(ua=190), requests={"r-2": REQUEST | {"target": "lantern"}}, gates=GATES[1:]
    )
    found = compare(one, two)

    assert found["requests"] == {"added": {"r-2": "lantern"}, "removed": {"r-1": "cat"}, "changed": {}}
    assert list(found["params"]) == ["evaluate.gates"]
    old, new = found["metrics"]["joint/gated/ua"]
    assert (old["value"], new["value"], new["n"]) == (1.0, 0.95, 200)
    assert "report/verdict.json" in found["digests"]
    assert "filter/artifact.json" not in found["digests"]
    assert not any(compare(one, one)["requests"].values())
    assert not any(compare(one, one)[what] for what in ("params", "metrics", "digests"))


def test_the_policy_is_that_of_params_yaml():
    """The shipped params ask for the full size with 142 images, and for the gates of `evaluate`."""
    policy = read_policy(Path(__file__).parents[3])

    assert (policy.promote.size, policy.promote.images["full"], policy.four_eyes) == ("full", 142, False)
    assert {gate.metric for gate in policy.gates} >= {"ua", "ira", "cra", "fpr", "passthrough_max_abs"}


def test_attacks_that_succeed_are_refused_and_cannot_be_overridden(world):
    """A gate on attacks is one on erasure: promotion names it, and nobody can answer for it."""
    version = world.register(Shown(attacks=40))
    world.by("bob").approve(version)
    gate = "r-1/gated/corrected ASR of T0, all attacks"
    with pytest.raises(UserError, match="cannot be overridden"):
        world.by("dora").override(version, gate, "due", datetime.now(UTC) + DAY)
    with pytest.raises(UserError, match="has the verdict fail"):
        world.by("carl").promote(version)
    found = world.by("carl").assess(read_history(world.ledger), version)
    assert {f.gate: f.check for f in found.failed} == {gate: "attack", gate.replace("T0", "T1"): "attack"}
    assert found.attacks is not None
    assert found.attacks["highest_tier"] == "none"


def test_todays_gates_on_attacks_count_and_the_releases_own(world):
    """Two of 200 attempts pass the release's own gate of 5 %, and fail today's stricter one; a laxer one does not help."""
    world.register(Shown(attacks=2), Shown(attacks=40))
    for version in (1, 2):
        world.by("bob").approve(version)
    none = (TierGate(tier="T0", at_most=0.001, n=1),)
    world.policy = POLICY._replace(attack=attack_params("full", none))
    with pytest.raises(RefusedError, match=r"fails r-1/gated/corrected ASR of T0, all attacks \(the upper bound"):
        world.by("carl").promote(1)
    world.policy = POLICY._replace(attack=attack_params("full", (TierGate(tier="T0", at_most=1.0, n=1),)))
    failed = world.by("carl").assess(read_history(world.ledger), 2).failed
    assert {f.gate for f in failed} == {f"r-1/gated/corrected ASR of {tier}, all attacks" for tier in ("T0", "T1")}
    assert world.by("carl").promote(1).result == "PASSED"


def test_quick_attacks_are_refused_unless_they_are_asked_for(world):
    """The size of the attacks must be promote.size or larger; nobody can answer for it."""
    world.register(attack=attack_params("quick"))
    world.by("bob").approve(1)
    with pytest.raises(RefusedError, match=r"fails attacks \(the attacks' size 'quick' is not 'full'"):
        world.by("carl").promote(1)
    world.policy = POLICY._replace(promote=PROMOTE.model_copy(update={"size": "quick", "margin": {}}))
    assert world.by("carl").promote(1).result == "PASSED"


def test_an_attack_that_the_release_left_out_is_refused(world):
    """Whoever takes an attack out of attack.sizes before the attacks run is found out by today's: it was not tried."""
    world.register()
    world.by("bob").approve(1)
    full = attack_params("full")
    more = full.sizes["full"].model_copy(update={"attacks": ("slips", "mma", "p4d")})
    world.policy = POLICY._replace(attack=full.model_copy(update={"sizes": {"full": more}}))
    with pytest.raises(RefusedError, match=r"fails r-1/attacks \(p4d/gated was not tried"):
        world.by("carl").promote(1)


def test_a_release_without_attacks_is_refused(world):
    """A release from before there were attacks fails, can be looked at, and passes no gate on them."""
    made = write_release(world.folder / "v1", note="1", attacked=False)
    assert not made.passed
    history = read_history(world.ledger)
    world.store.folders.append(made.folder)
    releases.append(world.ledger, history, releases.registration(history, 1, made.digest, "pass"), "ann")
    world.by("bob").approve(1)
    with pytest.raises(RefusedError, match=r"fails attacks \(the release carries no attacks\)"):
        world.by("carl").promote(1)


def test_a_verdict_on_attacks_set_by_hand_is_found_out(world):
    """A release whose attacks' verdict says pass over results that fail is altered, whatever its digests say."""
    made = write_release(world.folder / "v1", Shown(attacks=150), note="1", attacks_passed=True)
    history = read_history(world.ledger)
    world.store.folders.append(made.folder)
    releases.append(world.ledger, history, releases.registration(history, 1, made.digest, "pass"), "ann")
    world.by("bob").approve(1)
    with pytest.raises(ArtifactError, match="verdict on the attacks of version 1 does not follow from their results"):
        world.by("carl").promote(1)


def test_compare_names_what_attacks_found(tmp_path):
    """Highest tier, verdict and every success rate that differs stand in the comparison."""
    old, new = (write_release(tmp_path / str(hits), Shown(attacks=hits), note="") for hits in (0, 150))
    found = compare(old, new)["attacks"]

    assert found["highest_tier"] == ["T1", "none"]
    assert found["passed"] == [True, False]
    assert found["r-1/T0"][1]["value"] == 0.75
    assert "not_tried" not in found
