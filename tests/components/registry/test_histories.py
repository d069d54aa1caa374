import shutil
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.common.errors import ArtifactError, ExpungeError
from components.ledger import releases
from components.ledger.events import Ledger
from components.ledger.releases import read_history
from components.registry.promotion import Registrar
from components.registry.release import read_release
from tests.toyregistry import POLICY, Shown, Store, write_release

DAY = timedelta(days=1)
IRA = ("r-1/summed/ira", "joint/summed/ira")
KINDS = ("good", "good", "good", "good", "utility", "utility", "erasure", "quick", "by hand", "swapped")
ACTS = [
    "register",
    "approve",
    "approve",
    "promote",
    "promote",
    "promote",
    "rollback",
    "rollback",
    "reject",
    "override",
    "crash",
    "aliases",
]
STEP = st.tuples(
    st.sampled_from(ACTS), st.integers(1, 4), st.sampled_from(["ann", "bob", "carl"]),
    st.sampled_from([None, None, None, "0" * 64]), st.sampled_from([None, None, None, None, "promote", "reject"]),
)  # fmt: skip
APPROVED, OVERRIDDEN, PROMOTED = (
    [(name, version, who, None, None) for version in (1, 2, 3)]
    for name, who in (("approve", "bob"), ("override", "carl"), ("promote", "carl"))
)
BACK = [("rollback", 1, "dora", None, None)]
STEPS = st.tuples(
    st.sampled_from(
        [[], APPROVED, APPROVED + OVERRIDDEN, APPROVED + OVERRIDDEN + PROMOTED, APPROVED + OVERRIDDEN + PROMOTED + BACK]
    ),
    st.lists(STEP, min_size=7, max_size=10),
).map(lambda parts: parts[0] + parts[1])
HISTORIES = st.tuples(st.lists(st.sampled_from(KINDS), min_size=3, max_size=3), st.booleans(), STEPS)


@pytest.fixture(scope="module")
def kinds():
    """A release of each kind, and what stands under its version instead where that was swapped."""
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        folder = Path(name)
        made = {
            "good": write_release(folder / "good"),
            "utility": write_release(folder / "utility", Shown(ira=160)),
            "erasure": write_release(folder / "erasure", Shown(ua=150)),
            "quick": write_release(folder / "quick", size="quick"),
            "by hand": write_release(folder / "hand", Shown(ua=150), passed=True),
            "swapped": write_release(folder / "swapped", note="registered"),
        }
        other = write_release(folder / "other", note="there now")
        yield folder, made, other


def _memory():
    memory = Path("/dev/shm")  # noqa: S108 - a fresh folder is made in it
    return memory if memory.is_dir() else None


class Toys(Store):
    """Releases that are read where they lie, and a registry that dies or is acted on at the worst moment."""

    def __init__(self, listed, other):
        super().__init__()
        self.listed, self.other, self.dies, self.race = listed, other, False, None
        self.folders = listed

    def fetch(self, which, _out):
        """The version where it lies, after whatever happens meanwhile."""
        kind, made = self.listed[which - 1]
        if self.race is not None:
            race, self.race = self.race, None
            race()
        return read_release(self.other.folder if kind == "swapped" else made.folder)

    def set_aliases(self, wanted):
        """Sets them, unless the process dies here."""
        if self.dies:
            raise KeyboardInterrupt
        super().set_aliases(wanted)


def faults(events, kinds, four_eyes):
    """Promotions and rollbacks without their evidence in the raw events before, by an independent reading."""
    out = []
    for i, event in enumerate(events):
        if event.kind not in ("release.promoted", "release.rolled_back"):
            continue
        mine = [e for e in events[:i] if e.body["version"] == event.body["version"]]
        (registered,) = [e for e in mine if e.kind == "release.registered"]
        rejected = max((e.seq for e in mine if e.kind == "release.rejected"), default=0)
        approved = [
            e for e in mine
            if e.kind == "release.approved" and e.seq > rejected and e.body["digest"] == registered.body["digest"]
        ]  # fmt: skip
        kind = kinds[event.body["version"] - 1]
        good = event.body["digest"] == registered.body["digest"] and kind in ("good", "utility")
        if event.kind == "release.promoted":
            if four_eyes:
                approved = [e for e in approved if e.actor != registered.actor]
            answered = {e.body["gate"] for e in mine if e.kind == "release.overridden"}
            good = good and bool(approved) and (kind == "good" or answered >= set(IRA))
            good = good and event.body["result"] == ("PASSED" if kind == "good" else "WARNED")
        else:
            served = [e.seq for e in mine if e.kind in ("release.promoted", "release.rolled_back")]
            good = good and bool(served) and (max(served) > rejected or bool(approved))
        if not good:
            out.append(event)
    return out


def test_generated_histories(kinds):
    """In 200 histories with good, bad and swapped releases, crashes and races, none promotes without digest, gates and approval.

    After each act that went through, and after any act once a crash is over, the aliases are those of the ledger; a champion
    that it does not know, where it has none, is refused instead.
    """
    folder, made, other = kinds
    Ledger(f"sqlite:///{folder}/empty.db").close()
    happened = Counter()

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(history=HISTORIES)
    def run(history):
        names, four_eyes, steps = history
        shutil.copy(folder / "empty.db", folder / "ledger.db")
        ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        names = [*names, names[0]]  # version 4 is registered on the way, if at all
        store = Toys([(kind, made[kind]) for kind in names], other)
        policy = POLICY._replace(four_eyes=four_eyes)

        def act(name, version, who, digest=None):
            by, until = Registrar(ledger, store, policy, who), datetime.now(UTC) + DAY
            if name == "register":
                entry = releases.registration(
                    read_history(ledger), version, made[names[version - 1]].digest,
                    "pass" if made[names[version - 1]].passed else "fail",
                )  # fmt: skip
                releases.append(ledger, read_history(ledger), entry, who)
            elif name == "override":
                for gate in IRA:
                    by.override(version, gate, "due", until)
            elif name == "aliases":
                store.named = {
                    "champion": min(version, 3)
                }  # one that the ledger does not know is refused: `check_same`
            elif name == "crash":
                store.dies = True
                by.promote(version, digest)
            else:
                {
                    "approve": lambda: by.approve(version, digest), "promote": lambda: by.promote(version, digest),
                    "reject": lambda: by.reject(version, "bad"), "rollback": by.rollback,
                }[name]()  # fmt: skip

        def attempt(name, *arguments):
            try:
                act(name, *arguments)
            except ExpungeError as error:
                happened[type(error).__name__] += 1
            except KeyboardInterrupt:
                happened["crash"] += 1
            else:
                happened[name] += 1
                return True
            return False

        for version in (1, 2, 3):
            act("register", version, "ann")
        for name, version, who, digest, race in steps:
            store.dies = False
            if race is not None:
                store.race = lambda race=race, version=version: happened.update(
                    [f"race {race}"] if attempt(race, version % 3 + 1, "dora") else []
                )
            went = attempt(name, version, who, digest)
            store.race, store.dies = None, False
            if went and name not in ("register", "aliases"):
                assert store.named == read_history(ledger).aliases()
        known = read_history(ledger)
        if known.champion is None and store.named.get("champion", 1) not in known.releases:
            with pytest.raises(ArtifactError, match="the ledger does not know it"):
                Registrar(ledger, store, policy, "ann").repair()
            store.named = {}  # as a person does who means this ledger
        Registrar(ledger, store, policy, "ann").repair()
        assert store.named == read_history(ledger).aliases()
        assert ledger.verify().seq == len(ledger.events())
        assert faults(ledger.events(), names, four_eyes) == []
        happened.update(event.kind for event in ledger.events())
        ledger.close()

    run()
    for name, least in (
        ("release.promoted", 60), ("release.rolled_back", 5), ("release.rejected", 50), ("release.overridden", 20),
        ("RefusedError", 8), ("ArtifactError", 50), ("UserError", 200), ("StageError", 3), ("crash", 8),
    ):  # fmt: skip
        assert happened[name] >= least, str(happened)
