from itertools import islice

import numpy as np
import pytest
from rapidfuzz.distance import DamerauLevenshtein

from components.common.errors import UserError
from components.evaluate.attacks.attempts import Budget, Target, TargetPrompt, check_prompt, check_target
from components.evaluate.attacks.registry import ATTACKS, attack_named
from components.evaluate.attacks.text import disguise, in_company, inflect, look_alikes, slip, surround, translations

TEXTUAL = ("slips", "inflections", "languages", "special-tokens", "unicode")


class Specials:
    """Stands in for a victim: text attacks ask it for special tokens alone."""

    @staticmethod
    def special_texts():
        """Two of them."""
        return ("<|startoftext|>", "<|endoftext|>")


def attempts(name, target, seed, count=60):
    run = ATTACKS[name].run(Specials(), target, np.random.default_rng(seed), Budget(1, 1, 1, 0.9))
    return list(islice(run, count))


@pytest.mark.parametrize("name", TEXTUAL)
def test_attempts_are_seeded_and_different(name, target):
    """The same seed gives the same attempts, another seed others; they say what was done, and stand for a plain prompt."""
    one, again, other = (attempts(name, target, seed) for seed in (0, 0, 1))
    plain = {prompt.text for prompt in target.prompts}

    assert one == again != other
    assert len({a.prompt for a in one}) >= 20
    assert all(a.what and a.origin in plain for a in one)


def test_special_tokens_reach_every_place(target):
    """A literal end-of-text token is tried in front of a prompt, before the name and inside it."""
    prompts = [a.prompt for a in attempts("special-tokens", target, 0, 400)]

    assert any(p.startswith("<|endoftext|> a cat") for p in prompts)
    assert any("a <|endoftext|> cat" in p for p in prompts)
    assert any("c<|endoftext|>at" in p or "ca<|endoftext|>t" in p for p in prompts)


def test_slips_are_one_or_two_edits():
    """A slip stays within four edits of its name, three in four cases within the two of one spelling by ear, and many are one edit."""
    rng = np.random.default_rng(0)
    distance = [DamerauLevenshtein.distance("kitten", slip("kitten", rng)[0]) for _ in range(300)]

    assert max(distance) <= 4
    assert sum(d == 1 for d in distance) > 150


def test_disguises_include_every_kind():
    """Accents, look-alikes, invisible characters, letters apart, full width, mathematical letters and digits all come up."""
    rng = np.random.default_rng(0)
    said = {disguise("kitten", rng)[1].split(" by ")[0] for _ in range(400)}

    assert said >= {
        "an accent", "an invisible character", "letters apart", "full width", "mathematical letters", "a look-alike letter",
        "a digit or sign in the place of a letter", "a space inside",
    }  # fmt: skip
    assert "е" in look_alikes("e")  # Cyrillic


def test_inflections_keep_the_stem():
    """Every inflected form contains the name, but for those that change its ending."""
    rng = np.random.default_rng(0)
    forms = {inflect("kitty", rng)[0].lower() for _ in range(300)}

    assert {"kittys", "kitties", "three kittys", "kitty's"} <= forms
    assert all("kitt" in form for form in forms)


def test_translations_come_from_unicodes_emoji():
    """A cat has its emoji and its names in other languages; what is no emoji has none, and is tried beside foreign articles alone."""
    found = dict(translations(("cat", "kitty")))

    assert {"🐈": "its emoji", "katze": "in de", "кошка": "in ru"}.items() <= found.items()
    assert "cat" not in found
    ghost = Target("r", ("xyzzy",), tuple(TargetPrompt(f"an xyzzy {i}", "xyzzy", "") for i in range(4)))
    assert {a.what for a in attempts("languages", ghost, 0)} == {"a foreign article"}


@pytest.mark.parametrize("name", ["cat", "ice cream", "café"])
def test_surroundings_leave_the_names_tokens_whole(name, tokenizer):
    """Invisible characters, marks, spaces and signs around a name, mixed capitals and foreign company: the tokens of the name stay, in a row."""
    rng, wanted = np.random.default_rng(0), tokenizer(name, add_special_tokens=False).input_ids
    words = translations(("cat",))
    for written, what in [surround(name, rng) for _ in range(300)] + [in_company(name, words, rng) for _ in range(100)]:
        ids = tokenizer(f"a {written} here", add_special_tokens=False).input_ids
        assert any(ids[i : i + len(wanted)] == wanted for i in range(len(ids))), (written, what)
    assert len({surround(name, rng)[1] for _ in range(300)}) == 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t._replace(prompts=t.prompts[:3]), "there are 3 prompts for r, fewer than 4; give more prompts"),
        (lambda t: t._replace(names=()), "the target of r has no name; give at least one"),
        (
            lambda t: t._replace(prompts=(*t.prompts, TargetPrompt("a cat " * 200_000, "cat", ""))),
            "a prompt has 1200000 characters, more than 2000; shorten it",
        ),
        (
            lambda t: t._replace(prompts=(*t.prompts, TargetPrompt("a cat \ud800", "cat", ""))),
            "holds half a character; write it in UTF-8",
        ),
        (
            lambda t: t._replace(references=np.zeros((3, 8, 8), np.uint8)),
            r"have shape \(3, 8, 8\); give \(T, H, W, 3\)",
        ),
    ],
)
def test_targets_that_cannot_be_attacked_are_refused(target, change, said):
    """Too few prompts, no name, a prompt of a megabyte, half a character and images of no shape are one sentence each."""
    with pytest.raises(UserError, match=said):
        check_target(change(target))


def test_an_unknown_attack_is_refused():
    """The names of all attacks are listed."""
    with pytest.raises(UserError, match="attack 'ring' is unknown; use some of: slips, inflections"):
        attack_named("ring")
    assert check_prompt("a cat") == "a cat"
