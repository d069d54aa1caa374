import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from components.cli.params import SECTIONS, read_params
from components.common.errors import UserError
from components.common.sections import PARAMS, read_section
from components.sae.params import SaeParams

ROOT = Path(__file__).parents[3]


def params_with(tmp_path, change):
    content = yaml.safe_load((ROOT / PARAMS).read_text())
    change(content)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_params_that_ship_are_read_as_they_stand():
    """Every section of params.yaml is read by its owner, and comes out with the values that the file has."""
    content = yaml.safe_load((ROOT / PARAMS).read_text())
    found = read_params(ROOT / PARAMS)

    assert set(found) == set(content) == set(SECTIONS)
    assert found["sae"] == content["sae"]
    assert found["guidance"] == content["guidance"]


def test_guidance_has_one_recipe():
    """Users set six parameters and how the unconditional output is held; the rest is the recipe."""
    assert set(SECTIONS["guidance"].model_fields) == {
        "rank", "steps", "retain_weight", "hold", "precision", "gradient_checkpointing", "seed",
    }  # fmt: skip


def test_every_field_is_documented():
    """Every field of every section says what it is; a seed needs no words."""
    bare = [
        f"{section}.{name}"
        for section, model in SECTIONS.items()
        if issubclass(model, BaseModel)
        for name, field in model.model_fields.items()
        if not field.description and name not in ("seed", "gates")
    ]

    assert bare == []


def optional(kind, name):
    """The dotted names of all keys below a section that may be left out; a list's items have no name of their own."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return [found for part in get_args(kind) for found in optional(part, name)]
    here = [f"{name}.{key}" for key, field in kind.model_fields.items() if not field.is_required()]
    below = (optional(field.annotation, f"{name}.{key}") for key, field in kind.model_fields.items())
    return [*here, *(found for each in below for found in each)]


def test_what_may_be_left_out_is_documented():
    """No key has a default that decides anything, but for judges and those that docs/your-model.md lists."""
    found = {key for section, kind in SECTIONS.items() if section != "judge" for key in optional(kind, section)}
    judge = optional(SECTIONS["judge"], "judge")
    table = (ROOT / "docs/your-model.md").read_text().split("These may be left out:")[1].split("\n\nThe ")[0]
    listed = set(re.findall(r"`([\w.]+)`", table))

    assert found == {
        "corpus.sources", "evaluate.gates.relative_to_base", "attack.sizes.gates.attack", "attack.sizes.seconds",
        "attack.second_judge", "probe.second_judge",
    }  # fmt: skip
    assert {key.rpartition(".")[2] if key != "corpus.sources" else key for key in found} <= listed
    assert {key.rpartition(".")[2] for key in judge if key.count(".") == 2} <= listed
    assert {name: SECTIONS["judge"].model_fields[name].default for name in ("sensitivity", "specificity", "worn", "disagreement")} == {
        name: float(value) for name, value in re.findall(r"`(\w+)` (?:is )?(0\.\d+)", table)
    }  # fmt: skip


def test_a_section_is_read_alone(tmp_path):
    """Nonsense in another section does not touch the one that is read."""
    path = params_with(tmp_path, lambda c: c["guidance"].update(rank="many"))

    assert read_section("sae", SaeParams, path) == read_section("sae", SaeParams, ROOT / PARAMS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["sae"].update(widht=3), "unknown key 'sae.widht'; remove it or mend its spelling"),
        (lambda c: c["sae"].update(k=0), "sae.k is 0"),
        (lambda c: c["sae"].update(k=99999), "sae.k=99999 must be smaller than sae.d_sae"),
        (lambda c: c["evaluate"].update(size="huge"), "evaluate.size='huge' is not among"),
        (lambda c: c["guidance"].update(hold="tight"), "guidance.hold is 'tight'"),
        (lambda c: c["guidance"].update(parameters="xattn"), "unknown key 'guidance.parameters'"),
        (lambda c: c["features"].update(positions=["bos"]), "features.positions.0 is 'bos'"),
        (lambda c: c["ledger"].update(withdrawal_hours=1e300), "ledger.withdrawal_hours is 1e+300"),
        (lambda c: c["base"].update(solver_steps=1001), "base.solver_steps is 1001"),
        (lambda c: c["ledger"].pop("four_eyes"), "lacks the key 'ledger.four_eyes'; add it"),
        (lambda c: c["promote"].pop("margin"), "lacks the key 'promote.margin'"),
        (lambda c: c["corpus"]["benign"].pop("real"), "lacks the key 'corpus.benign.real'"),
        (lambda c: c.pop("sae"), "has no section 'sae'; add it"),
    ],
)
def test_bad_value_is_one_sentence(tmp_path, change, said):
    """A value out of range, a misspelt key and a missing section are refused by name."""
    with pytest.raises(UserError) as caught:
        read_params(params_with(tmp_path, change))

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_params_are_frozen():
    """Nothing can change the parameters of a running stage."""
    with pytest.raises(ValidationError):
        read_section("sae", SaeParams, ROOT / PARAMS).k = 3


def test_missing_file_is_one_sentence(tmp_path):
    """Outside of the project the message says where to run."""
    with pytest.raises(UserError, match="does not exist; run from the root of the project"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("k: 16", "k: true", "sae.k is True: input should be a valid integer"),
        ("k: 16", 'k: "16"', "sae.k is '16': input should be a valid integer"),
        ("k: 16", "k: 16.0", "sae.k is 16.0"),
        ("lr: 0.0007", "lr: '0.1'", "sae.lr is '0.1': input should be a valid number"),
        ("lr: 0.0007", "lr: .nan", "sae.lr is nan; use a finite number"),
        ("gradient_checkpointing: false", "gradient_checkpointing: 0", "guidance.gradient_checkpointing is 0"),
        ("hookpoint: encoder.layers.0", "hookpoint: 3", "base.hookpoint is 3: input should be a valid string"),
        ("sources: []", "sources: prompts.csv", "corpus.sources is 'prompts.csv': input should be a valid array"),
        ("world: openmoji", "world: [openmoji]", "world is ['openmoji']: input should be a valid string"),
        ("  k: 16\n", "  k: 16\n  k: 17\n", "has the key 'k' twice"),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path, old, new, said):
    """Truth values and quoted digits are no numbers, a text is no list, and of two equal keys none wins."""
    text = (ROOT / PARAMS).read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))

    with pytest.raises(UserError) as caught:
        read_params(tmp_path / "params.yaml")

    assert said in str(caught.value).replace("; input", ": input")


def test_a_whole_number_is_a_float(tmp_path):
    """Where a number is wanted, 3 is as good as 3.0, and a list stands for a tuple."""
    path = params_with(tmp_path, lambda c: c["base"].update(guidance_scale=3))

    assert read_params(path)["base"]["guidance_scale"] == 3.0
    assert read_params(path)["evaluate"]["gates"][0]["metric"] == "ua"
