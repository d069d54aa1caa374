import json

import pytest

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.collect.record import RECORD, read_record, read_records, write_record, write_request_ids
from components.collect.tables import read_table, write_table
from components.common.errors import ArtifactError, UserError
from components.common.words import mentions
from components.requests.requests import Request
from components.worlds.load import load_world

WORLD = load_world("openmoji")
CAT = {"target": "cat", "kind": "object", "aliases": ["kitty", "feline"], "anchor": "dog", "neighbours": ["lion"]}
REQUESTS = {
    "a": Request.model_validate(CAT),
    "b": Request(target="neon", kind="style", aliases=("glowing", "luminous tube"), anchor="line art"),
}
PARAMS = ConceptsParams(per_name=12, retain=100, mixed=20, seed=0)


@pytest.fixture(scope="module")
def prompts():
    return build_prompts(REQUESTS, WORLD, PARAMS)


def test_a_request_outside_of_the_world_is_refused():
    """An anchor or target that the world cannot draw is refused before anything is loaded."""
    with pytest.raises(UserError, match="request r-0: the anchor 'unicorn' is not in the world openmoji; use one of"):
        WORLD.check({"r-0": Request.model_validate(CAT | {"anchor": "unicorn"})})


def test_splits_share_nothing(prompts):
    """No prompt is in two splits, and the last alias is in the evaluation alone (invariant 6)."""
    for request, alias in (("a", "feline"), ("b", "luminous tube")):
        own = prompts[prompts["request"] == request]
        splits = {s: set(own.loc[own["split"] == s, "prompt"]) for s in ("select", "calibrate", "evaluate")}
        assert not splits["select"] & splits["calibrate"]
        assert not splits["evaluate"] & (splits["select"] | splits["calibrate"])
        assert any(alias in p for p in splits["evaluate"])
        assert not any(alias in p for p in splits["select"] | splits["calibrate"])


def test_a_prompt_names_the_target_exactly_when_it_says_so(prompts):
    """`names_target` is true if and only if one of the names is in the prompt, and `name_used` is one that stands there."""
    own = prompts[prompts["request"] == "a"]
    named = own["prompt"].str.contains(r"\b(?:cat|kitty|feline)\b")

    assert (named == own["names_target"]).all()
    assert all(used in prompt for used, prompt in zip(own["name_used"], own["prompt"], strict=True))
    assert (own["name_used"] == "").equals(~own["names_target"])


def test_prompts_of_a_category_name_one_member():
    """Beside a member stands no other, so that the counterpart, which names the anchor in its place, names none."""
    weapon = Request(target="weapon", kind="category", anchor="umbrella")
    table = build_prompts({"w": weapon}, WORLD, ConceptsParams(per_name=1, retain=1, mixed=200, seed=0))
    mixed, names = table[table["role"] == "mixed"], WORLD.names(weapon, "evaluate")

    assert len(mixed) > 500
    assert mixed["prompt"].map(lambda text: mentions(text, names)).all()
    assert not mixed["counterpart"].map(lambda text: mentions(text, names)).any()


def test_adding_a_request_leaves_the_others_alone(prompts):
    """The prompts of one request do not depend on which others there are (invariant 9)."""
    alone = build_prompts({"a": REQUESTS["a"]}, WORLD, PARAMS)

    assert alone.equals(prompts[prompts["request"] == "a"].reset_index(drop=True))


def test_a_record_says_what_the_world_knows():
    """Names by split, labels for the judge, style or not, what to avoid; slips of names that are no words."""
    cat, neon = (make_record(i, r, WORLD) for i, r in REQUESTS.items())
    weapon = make_record("w", Request(target="weapon", kind="category", anchor="umbrella", neighbours=("key",)), WORLD)

    assert cat.names == {
        "select": ("cat", "kitty"),
        "calibrate": ("cat", "kitty"),
        "evaluate": ("cat", "kitty", "feline"),
    }
    assert (cat.labels, cat.is_style, cat.avoid, cat.anchor) == (("cat",), False, ("cat", "dog", "lion"), "dog")
    assert (neon.labels, neon.is_style, neon.avoid) == (("neon",), True, ("neon", "line art"))
    assert weapon.labels == ("dagger", "knife", "axe", "bow", "pistol", "bomb", "boomerang")
    assert {"sword", "gun"} <= set(weapon.names["select"])
    assert "handgun" in weapon.names["select"]
    assert "revolver" not in weapon.names["select"]
    assert "c a t" in cat.misspellings
    assert not set(cat.misspellings) & WORLD.known_words()


def test_records_and_tables_are_read_as_they_were_written(tmp_path, prompts):
    """A round trip loses nothing: records in the order of requests.yaml, lists as tuples."""
    for request_id, request in reversed(REQUESTS.items()):
        write_record(tmp_path / request_id, make_record(request_id, request, WORLD))
        write_table(tmp_path / request_id, prompts[prompts["request"] == request_id], counted=["split", "role"])
    write_request_ids(tmp_path, list(REQUESTS))
    found = read_records(tmp_path)

    assert list(found) == ["a", "b"]
    assert found["a"] == make_record("a", REQUESTS["a"], WORLD)
    assert found["a"].request == REQUESTS["a"]
    table = read_table(tmp_path / "a")
    assert table.equals(prompts[prompts["request"] == "a"].reset_index(drop=True))
    assert isinstance(table["concepts"][0], tuple)
    assert sum(json.loads((tmp_path / "a" / "counts.json").read_text()).values()) == len(table)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "request.json is missing; run the stage that writes it: dvc repro concepts"),
        ("{", "request.json is not JSON; write it again"),
        ('{"version": 2}', "request.json has version 2, not 1; write it again"),
        ("[]", "request.json has version None, not 1; write it again"),
        ('{"version": 1, "id": "a"}', "request.json lacks the key 'request'; write it again"),
    ],
)
def test_a_record_that_is_none_is_one_sentence(tmp_path, content, said):
    """A missing file, no JSON, another version and a missing key are refused, each in one sentence."""
    if content is not None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / RECORD).write_text(content)
    with pytest.raises(ArtifactError) as caught:
        read_record("a", tmp_path)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
