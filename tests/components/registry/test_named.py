"""What an alias names: the registry says it, the ledger has to agree."""

import pytest

from components.common.errors import ArtifactError, UserError
from components.ledger.releases import History, Release
from components.registry.named import check_named, find_history
from components.registry.registry import Version

HISTORY = History(
    {n: Release(n, digest, "pass", "ann", served=n < 3) for n, digest in ((1, "a" * 64), (2, "b" * 64), (3, "c" * 64))},
    champions=(1, 2),
)


def found(number, digest):
    """A version as the registry has it."""
    return Version(number, digest * 64, "pass", "full", "run")


@pytest.mark.parametrize("wanted", ["champion", "previous", "candidate", "mine", 1])
def test_what_the_ledger_confirms_is_taken(wanted):
    """Every alias that follows from the history, one of the user's own, and a number."""
    version = {"champion": 2, "previous": 1, "candidate": 3, "mine": 2}.get(wanted, wanted)
    check_named(HISTORY, found(version, "abc"[version - 1]), wanted)


@pytest.mark.parametrize(
    ("wanted", "version", "digest", "said"),
    [
        ("champion", 1, "a", "@champion is version 1 in the registry and version 2 in the ledger; any `expunge release`"),
        ("previous", 3, "c", "@previous is version 3 in the registry and version 1 in the ledger"),
        ("champion", 2, "a", "version 2 has digest aaaaaaaaaaaa in the registry and bbbbbbbbbbbb in the ledger; it was altered"),
        ("mine", 2, "a", "has digest aaaaaaaaaaaa in the registry"),
        (3, 3, "a", "version 3 has digest aaaaaaaaaaaa in the registry and cccccccccccc in the ledger"),
        (4, 4, "a", "the ledger does not know version 4 of the registry; name the ledger by EXPUNGE_LEDGER_URL"),
    ],
)  # fmt: skip
def test_what_the_ledger_contradicts_is_refused(wanted, version, digest, said):
    """Another version under the name, or other bytes under the number, is one sentence with both sides of it."""
    with pytest.raises(ArtifactError) as error:
        check_named(HISTORY, found(version, digest), wanted)

    assert said in str(error.value)


def test_a_champion_that_the_ledger_does_not_have_is_refused():
    """Before the first promotion the ledger has no champion: the registry's is somebody's own idea."""
    with pytest.raises(ArtifactError, match="@champion is version 1 in the registry and none in the ledger"):
        check_named(HISTORY._replace(champions=()), found(1, "a"), "champion")


def test_a_ledger_that_is_named_must_be_there(tmp_path, monkeypatch):
    """Without one nothing is confirmed; one that EXPUNGE_LEDGER_URL names and that is not there is a mistake, not none."""
    monkeypatch.delenv("EXPUNGE_LEDGER_URL", raising=False)
    assert find_history(tmp_path) is None
    monkeypatch.setenv("EXPUNGE_LEDGER_URL", f"sqlite:///{tmp_path / 'lost.db'}")
    with pytest.raises(UserError, match=r"lost.db holds no ledger"):
        find_history(tmp_path)
    assert not (tmp_path / "lost.db").exists()
