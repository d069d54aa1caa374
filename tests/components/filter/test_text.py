import pytest
import torch

from components.collect.names import target_forms
from components.collect.spelling import misspellings
from components.common.errors import UserError
from components.filter.normal import check_prompt, readings
from components.filter.targets import TargetNames
from components.filter.text import Found, Names, is_slip, positions

CAT = ("cat", "kitty", "kitten", "feline")
NAMES = Names(
    {
        "cat": TargetNames(target_forms(CAT, ("en", "de", "ru", "ja")), ("big cat", "big cats"), ("en", "de", "ru", "ja")),
        "neon": TargetNames(target_forms(("neon", "neon sign", "luminous tube"), ("en",)), ("neon tetra", "neon tetras")),
        "dog": TargetNames(target_forms(("dog", "puppy"), ("en",)), ("hot dog", "hot dogs")),
        "tree": TargetNames(target_forms(("tree",), ("en",)), ("palm tree", "palm trees")),
        "hero": TargetNames(target_forms(("superhero", "hero"), ("en",))),
    }
)  # fmt: skip


def kinds(prompt):
    return {(hit.request, hit.kind) for hit in NAMES.find(prompt)}


@pytest.mark.parametrize(
    ("kind", "request_id", "prompts"),
    [
        ("name", "cat", ["A CAT", "(kitten:1.3)", "[cat]", "cat++", "a dim room BREAK cat", "two kitties", "kittens'", "cat's", "eine Katze"]),
        ("name", "cat", ["c\u200bat", "\u202ecat\u202c", "ki\u00adtten", "c\u0301a\u0301t", "ＣＡＴ", "𝓬𝓪𝓽", "ⓒⓐⓣ", "ca\ufe0ft", "кошка", "КОШКА", "一只ネコ"]),
        ("name", "cat", ["<|endoftext|>cat", "<|startoftext|><|endoftext|> a kitten", "#! cat", "cat<|endoftext|>", "<s>cat</s>"]),
        ("emoji", "cat", ["🐈", "a 🐱 on a sofa", "🐈\u200d⬛"]),
        ("look-alike", "cat", ["kitt\u0435n", "\u0441\u0430t", "ᴄᴀᴛ", "🅺🅸🆃🆃🅴🅽", "k\u0456tten"]),
        ("digits", "cat", ["k1tt3n", "c4t", "c@t", "fe1ine"]),
        ("apart", "cat", ["k i t t e n", "c-a-t", "c.a.t", "c, a, t", "kit ten", "fe\nline", "kit_ten", "fe-line"]),
        ("apart", "neon", ["n-e-o-n", "ne on", "neonsign", "luminoustube"]),
        ("long", "cat", ["caaaat", "kiiiittennnn", "catt", "catlike", "kittenish", "superkitten", "kittengirl", "kittenned", "cating"]),
        ("long", "neon", ["neonlet", "neones", "a luminous tubegirl", "luminous tubeing"]),
        ("slip", "cat", ["kittep", "kitteg", "kitti", "kittin", "kiten", "ktiten", "felinne", "kittys", "k!tten"]),
        ("slip", "neon", ["neon sgin", "luminous tubee", "nnon"]),
        ("sound", "neon", ["nion", "nean"]),
    ],
)  # fmt: skip
def test_hidden_names_are_found(kind, request_id, prompts):
    """What a person still reads as the name is found, whatever letters, signs and spaces it is written with."""
    for prompt in prompts:
        assert request_id in {request for request, _ in kinds(prompt)}, prompt
        assert kind in ("name", "slip") or (request_id, kind) in kinds(prompt), prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "neo Tokyo", "non-binary person", "catalog", "a cathedral", "hot dog", "two hot dogs", "neon tetra", "a big cat", "palm trees",
        "he gave her a hat", "a mitten", "a non-euclidean room", "the cattle scatter", "he at the table", "education", "a caterpillar",
        "a 4k photo, 3d, 10th street", "vacation", "c", "", " ", "!!!", "\ud800", "1234",
    ],
)  # fmt: skip
def test_real_words_and_longer_names_are_no_slips(prompt):
    """A word of its own, a longer name that must survive and a text without words flag nothing."""
    assert NAMES.find(prompt) == []


def test_a_shield_covers_only_its_own_words():
    """The short name beside the longer one is still found."""
    assert [hit.start for hit in NAMES.find("a palm tree under a tree")] == [20]


def test_every_listed_misspelling_is_found():
    """Text finds whatever the list of tokens finds: no misspelling on a filter's list gets lost."""
    listed = misspellings(CAT, frozenset({"a"}), ("en", "de"))

    assert len(listed) > 30
    assert [form for form in listed if "cat" not in {hit.request for hit in NAMES.find(f"photo of {form} here")}] == []


def test_places_are_those_of_the_prompt():
    """A name is found where it stands in the prompt as typed, invisible characters and all, with its reason in words."""
    prompt = "a <|endoftext|> ki\u200btt\u0435n, please"
    (hit,) = NAMES.find(prompt)

    assert prompt[hit.start : hit.end] == "ki\u200btt\u0435n"
    assert hit.reason("x" * 30) == "'xxxxxxx' is the name 'kitten' (look-alike)"


def test_positions_are_the_tokens_of_the_name(tokenizer):
    """All tokens of a name and none beside it; a name that the tokenizer cuts off has none."""
    prompts = ["a kitteg here", "stone " * 90 + "kitteg"]
    found = positions(tokenizer, prompts, [NAMES.find(prompt) for prompt in prompts], ["dog", "cat"])
    ids = tokenizer(prompts[0]).input_ids

    assert found.shape == (2, tokenizer.model_max_length, 2)
    marked = "".join(tokenizer.convert_ids_to_tokens([ids[i] for i in found[0, :, 1].nonzero()[:, 0].tolist()]))
    assert marked.removesuffix("</w>") == "kitteg"
    assert not found[1].any()
    assert not found[..., 0].any()


@pytest.mark.parametrize(
    ("word", "form", "expected"),
    [("kittep", "kitten", True), ("neom", "neon", False), ("nean", "neon", False), ("neno", "neon", True), ("neeon", "neon", True), ("kixxen", "kitten", False)],
)  # fmt: skip
def test_is_slip_by_hand(word, form, expected):
    """One edit of five letters or more; of four a letter too many, too few or swapped, none changed."""
    assert is_slip(word, form) is expected


def test_readings_by_hand():
    """The plain reading keeps what is a letter of a script; the second takes look-alikes for Latin; digits come last."""
    assert [each.text for each in readings("К\u200bошка é")] == ["кошка e", readings("кошка é")[1].text]
    assert [(each.text, each.kind) for each in readings("K1t")] == [
        ("k1t", "plain"),
        ("kit", "digits"),
        ("klt", "digits"),
    ]


def test_the_index_does_not_mix_requests():
    """With a thousand requests beside it a request finds what it finds alone, in the same places."""
    alone = Names({"cat": TargetNames(target_forms(CAT, ("en",)))})
    many = Names(
        {"cat": TargetNames(target_forms(CAT, ("en",)))} | {f"r{i}": TargetNames((f"wort{i}ung",)) for i in range(1000)}
    )
    prompts = ["a kitteg", "k i t t y", "c4t", "two cats and a dog", "catalog"]

    def of_cat(names, prompt) -> list[Found]:
        return [hit for hit in names.find(prompt) if hit.request == "cat"]

    assert [of_cat(many, prompt) for prompt in prompts] == [of_cat(alone, prompt) for prompt in prompts]


def test_no_names_no_positions(tokenizer):
    """Without requests there is nothing to find, of any shape."""
    assert Names({}).find("a cat") == []
    assert torch.equal(
        positions(tokenizer, ["a"], [[]], []), torch.zeros(1, tokenizer.model_max_length, 0, dtype=torch.bool)
    )


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [("a \ud83d cat", "half a character at position 2"), ("cat " * 300_000, "1200000 characters")],
)
def test_a_prompt_that_no_tokenizer_reads_is_refused(prompt, problem):
    """A lone surrogate and a megabyte are one sentence each."""
    with pytest.raises(UserError, match=problem):
        check_prompt(prompt)
