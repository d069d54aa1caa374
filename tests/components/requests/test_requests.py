import pytest
import yaml

from components.collect.concepts import build_prompts, check_world, names_for
from components.common.errors import UserError
from components.common.words import mentions
from components.requests.requests import Request, add_request, load_requests, remove_request

CAT = {"target": "cat", "kind": "object", "aliases": ["kitty", "feline"], "anchor": "dog", "neighbours": ["lion"]}


def write(path, *records):
    path.write_text(yaml.safe_dump({"requests": {f"r-{i}": record for i, record in enumerate(records)}}))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": ""}, "target"),
        ({"target": "  "}, "the target is empty; name what must no longer be drawn"),
        ({"anchor": "cat"}, "the anchor 'cat' is the target itself; name something else"),
        ({"anchor": "Kitty"}, "the anchor 'kitty' is the target itself"),
        ({"neighbours": ["lion", "cat"]}, "'cat' is target and neighbour at once"),
        ({"channels": []}, "channels is empty; use filter, guidance or both"),
        ({"channels": ["erase"]}, "channels"),
        ({"kind": "thing"}, "kind"),
        ({"colour": "red"}, "unknown key 'requests.r-0.colour'"),
    ],
)
def test_request_bad_input_is_one_sentence(tmp_path, change, said):
    """What does not make sense is refused with the request's id and the reason."""
    with pytest.raises(UserError) as caught:
        load_requests(write(tmp_path / "requests.yaml", CAT | change))

    assert said in str(caught.value)
    assert "requests.r-0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_request_names_are_unique_over_requests(tmp_path):
    """One alias cannot belong to two requests."""
    other = {"target": "lion", "kind": "object", "aliases": ["feline"]}

    with pytest.raises(UserError, match="'feline' is a name of both r-0 and r-1; leave it to one of them"):
        load_requests(write(tmp_path / "requests.yaml", CAT, other))


def test_request_anchor_that_another_request_erases_is_refused(tmp_path):
    """Nothing may draw what another request erases, whether it says so by a name or by its category."""
    dog = {"target": "dog", "kind": "object", "anchor": "horse"}
    weapon = {"target": "weapon", "kind": "category", "anchor": "umbrella"}
    axe = {"target": "key", "kind": "object", "anchor": "axe"}

    with pytest.raises(UserError, match="the anchor 'dog' of r-0 is erased by r-1; draw something that no request"):
        load_requests(write(tmp_path / "requests.yaml", CAT, dog))
    with pytest.raises(UserError, match="request r-1: the anchor 'axe' is erased by r-0; draw something"):
        check_world(load_requests(write(tmp_path / "requests.yaml", weapon, axe)))


def test_request_add_then_remove_restores_the_file(tmp_path):
    """Withdrawing a request gives back the bytes from before it."""
    path = write(tmp_path / "requests.yaml", CAT)
    add_request({"target": "ghost", "kind": "character"}, path)
    before = path.read_bytes()
    added = add_request({"target": "robot", "kind": "character", "anchor": "alien"}, path)

    assert load_requests(path)[added].anchor == "alien"
    remove_request(added, path)
    assert path.read_bytes() == before


def test_request_add_refused_leaves_the_file_alone(tmp_path):
    """A bad request changes nothing, and neither does a dry run."""
    path = write(tmp_path / "requests.yaml", CAT)
    before = path.read_bytes()

    with pytest.raises(UserError):
        add_request({"target": "lion", "kind": "object", "aliases": ["kitty"]}, path)
    add_request({"target": "ghost", "kind": "character"}, path, dry_run=True)
    assert path.read_bytes() == before


def test_request_remove_unknown_is_one_sentence(tmp_path):
    """An unknown id names those that exist."""
    with pytest.raises(UserError, match=r"request 'r-9' is not in .*; use one of: r-0"):
        remove_request("r-9", write(tmp_path / "requests.yaml", CAT))


def test_request_outside_of_the_world_is_refused():
    """An anchor or target that the world cannot draw is refused before anything is loaded."""
    with pytest.raises(UserError, match="request r-0: the anchor 'unicorn' is not in the world; use one of"):
        check_world({"r-0": Request.model_validate(CAT | {"anchor": "unicorn"})})


@pytest.fixture(scope="module")
def prompts():
    style = {"target": "neon", "kind": "style", "aliases": ["glowing", "luminous tube"], "anchor": "line art"}
    requests = {"a": Request.model_validate(CAT), "b": Request.model_validate(style)}
    return build_prompts(requests, per_name=12, retain=100, mixed=20, seed=0)


def test_prompts_splits_share_nothing(prompts):
    """No prompt is in two splits, and the last alias is in the evaluation alone (invariant 6)."""
    for request, alias in (("a", "feline"), ("b", "luminous tube")):
        own = prompts[prompts["request"] == request]
        splits = {s: set(own.loc[own["split"] == s, "prompt"]) for s in ("select", "calibrate", "evaluate")}
        assert not splits["select"] & splits["calibrate"]
        assert not splits["evaluate"] & (splits["select"] | splits["calibrate"])
        assert any(alias in p for p in splits["evaluate"])
        assert not any(alias in p for p in splits["select"] | splits["calibrate"])


def test_prompts_carry_the_target_exactly_when_they_say_so(prompts):
    """A prompt carries the target if and only if one of its names is in it."""
    own = prompts[prompts["request"] == "a"]
    named = own["prompt"].str.contains(r"\b(?:cat|kitty|feline)\b")

    assert (named == own["carries"]).all()


def test_prompts_of_a_category_name_one_member():
    """Beside a member stands no other, so that the counterpart, which names the anchor in its place, names none."""
    weapon = Request(target="weapon", kind="category", anchor="umbrella")
    table = build_prompts({"w": weapon}, per_name=1, retain=1, mixed=200, seed=0)
    mixed = table[table["role"] == "mixed"]
    names = tuple(names_for(weapon, "evaluate"))

    assert len(mixed) > 500
    assert mixed["prompt"].map(lambda text: mentions(text, names)).all()
    assert not mixed["counterpart"].map(lambda text: mentions(text, names)).any()


def test_prompts_adding_a_request_leaves_the_others_alone(prompts):
    """The prompts of one request do not depend on which others there are (invariant 9)."""
    alone = build_prompts({"a": Request.model_validate(CAT)}, per_name=12, retain=100, mixed=20, seed=0)

    assert alone.equals(prompts[prompts["request"] == "a"].reset_index(drop=True))
