import numpy as np
import pytest

from components.collect.spelling import misspellings, slips
from components.common.words import mentions
from components.worlds.load import load_world
from training.openmoji.captions import misspell

KNOWN = load_world("openmoji").known_words()


def test_slips_by_hand():
    """A word of three letters has one letter doubled; a longer one also loses one or swaps two neighbours."""
    assert set(slips("cat")) == {"ccat", "caat", "catt"}
    assert set(slips("neon")) == {
        "nneon", "neeon", "neoon", "neonn",
        "eon", "non", "nen", "neo",
        "enon", "noen", "neno",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["cat", "kitten", "neon sign"])
def test_misspellings_hold_every_slip_of_the_world(name):
    """Whatever `misspell`, which knows nothing of this list, makes of a name is on the list, unless words remain."""
    rng, listed = np.random.default_rng(0), set(misspellings([name], frozenset()))
    found = {misspell(name, rng) for _ in range(300)}
    long = {f for f in found - {name} if len(name) > 3 or len(f) > len(name)}  # a dropped or swapped letter of three

    assert long <= listed
    assert len(long) >= 2


def test_misspellings_are_no_words():
    """What is left of a name when a letter is lost may be another word, which nobody asked to erase."""
    assert "king" not in misspellings(["kings"], KNOWN)
    assert {"c a t", "caat"} <= set(misspellings(["cat"], KNOWN))
    assert not set(misspellings(["cat", "neon", "ghost", "robot"], KNOWN)) & KNOWN


def test_misspellings_of_one_name_name_no_other():
    """No misspelt form holds a name of the world as a whole word, so that one request does not flag another's prompts."""
    forms = misspellings(["cat", "car", "bat", "boat", "coat"], KNOWN)

    assert not any(mentions(form, ("cat", "car", "bat", "boat", "goat", "bear")) for form in forms)
