import pytest
import torch

from components.collect.concepts import build_prompts, known_targets
from components.common.sections import load_params
from components.guidance.losses import guidance_loss
from components.requests.requests import Request
from research.guidance import training
from research.guidance.training import of_several, tables_of, train_one


def test_one_adapter_for_several_has_all_their_surgical_terms():
    """N times the loss of a batch with a prompt of each request is the sum of their surgical terms, and what is held once."""
    rng = torch.Generator().manual_seed(0)
    target, uncond, anchor, frozen, retain, kept = torch.randn(6, 4, 2, 3, 3, generator=rng)
    alone = load_params().guidance
    joint = of_several(alone, 4, most=256)

    def loss(rows, settings):
        return guidance_loss(
            *(part[rows] for part in (target, uncond, anchor, frozen)), retain, kept,
            uncond_weight=settings.uncond_weight, retain_weight=settings.retain_weight,
        )  # fmt: skip

    whole = loss(slice(None), joint)
    surgical = sum(loss([row], alone).surgical for row in range(4))
    expected = surgical + alone.uncond_weight * whole.uncond + alone.retain_weight * whole.retain

    assert (4 * whole.total).item() == pytest.approx(expected.item(), rel=1e-5)


def test_steps_and_ranks_of_several_add_up():
    """Up to the rank that the hidden states have; one request alone is as it was."""
    alone = load_params().guidance

    assert (of_several(alone, 4, most=256).steps, of_several(alone, 4, most=256).rank) == (
        4 * alone.steps,
        4 * alone.rank,
    )
    assert of_several(alone, 40, most=256).rank == 256
    assert of_several(alone, 1, most=256) == alone


def test_one_adapter_for_several_never_keeps_what_it_erases():
    """A request's rows that show another's target are left out of joint training, by any name; alone it has all its rows."""
    requests = {
        "w": Request(target="weapon", kind="category", anchor="umbrella"),
        "n": Request(target="neon", kind="style", anchor="line art"),
    }
    table = build_prompts(requests, per_name=2, retain=80, mixed=8, seed=0)
    shown = table["concepts"].str.split("|").map(set)
    weapons = shown.map(lambda concepts: bool(concepts & set(known_targets(requests["w"]))))
    neon = table["style"] == "neon"
    joint = tables_of(table, requests)

    assert (weapons & (table["request"] == "n")).any()
    assert (neon & (table["request"] == "w")).any()
    assert not weapons[joint["n"].index].any()
    assert not neon[joint["w"].index].any()
    assert weapons[joint["w"].index].sum() > 0.5 * (weapons & (table["request"] == "w")).sum()
    assert len(tables_of(table, {"n": requests["n"]})["n"]) == (table["request"] == "n").sum()


def test_adapter_that_is_there_is_not_trained_again(tiny_pipe, tmp_path, monkeypatch):
    """What was trained from the same things is taken as it is, seconds too; another seed is another adapter."""
    tiny_pipe.save_pretrained(tmp_path / "base")
    found = load_params()
    settings = found.guidance.model_copy(
        update={"rank": 2, "steps": 1, "batch": 2, "trajectories": 2, "retain_trajectories": 4, "solver_steps": 2,
                "retain_solver_steps": 2, "start": "random", "precision": "no"}
    )  # fmt: skip
    params = found.model_copy(update={"base": found.base.model_copy(update={"path": tmp_path / "base"})})
    requests = {"r": Request(target="cat", kind="object", anchor="dog")}
    table = build_prompts(requests, per_name=2, retain=8, mixed=2, seed=0)
    trained = train_one(params, requests, table, tmp_path / "room", settings)

    def refuse(path, device):
        raise AssertionError(path, device)

    monkeypatch.setattr(training, "load_pipeline", refuse)
    assert train_one(params, requests, table, tmp_path / "room", settings) == trained
    assert trained.seconds > 0
    with pytest.raises(AssertionError):
        train_one(params, requests, table, tmp_path / "room", settings.model_copy(update={"seed": 1}))
