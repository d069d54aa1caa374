import copy
import json
import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from components.guidance import recipe, train
from components.guidance.adapters import adapted_layers, attach, empty_directions, load_adapters, write_adapter
from components.guidance.closed_form import moments, steer
from components.guidance.losses import relative_drift
from components.guidance.params import GuidanceParams
from components.guidance.plot import TERMS
from components.guidance.start import NAME, InitialAdapter, start_adapter
from components.guidance.train import train_adapter, train_guidance
from tests.states import encode

GOLDEN = Path(__file__).parents[2] / "golden" / "guidance.json"


def run(pipe, table, data, params, **options):
    """(values before training, the adapter after it, its steps), from the start that ships."""
    adapter = start_adapter(pipe, table, params)
    before = [p.detach().clone() for p in adapter.parameters]
    return before, adapter.parameters, list(train_guidance(pipe.unet, adapter, data, params, **options))


@torch.no_grad()
def drift(pipe, data):
    """How far the unconditional output is from the frozen model's, at most, at the states of training."""
    at = data.erase
    out = pipe.unet(at.latents, at.timesteps, data.uncond.states.expand(len(at.latents), -1, -1)).sample
    return relative_drift(out, at.uncond).max().item()


def test_train_moves_the_adapter_alone(tiny_pipe, table, data, params, renew):
    """Every matrix of the adapter differs from where it started, and the base weights are bit by bit what they were."""
    frozen = renew()
    before, after, _ = run(tiny_pipe, table(), data, params)
    base = {k.replace(".base_layer", ""): v for k, v in tiny_pipe.unet.state_dict().items() if "lora" not in k}

    assert before
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert base.keys() == frozen.keys()
    assert all(torch.equal(base[k], v) for k, v in frozen.items())


def test_train_same_seed_same_bytes(tiny_pipe, table, data, params, renew):
    """One seed, one result; another seed, another."""
    found = []
    for seed in (0, 0, 1):
        renew()
        found.append(run(tiny_pipe, table(), data, params.model_copy(update={"seed": seed}))[1])

    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


@pytest.mark.parametrize("hold", ["null-space", "penalty"])
def test_train_killed_and_resumed_ends_in_the_same_bytes(tiny_pipe, table, data, params, renew, tmp_path, hold):
    """Abandoned after a checkpoint and started again, training ends as if it had never stopped, and tells of every step."""
    params, at = params.model_copy(update={"hold": hold}), tmp_path / "c.safetensors"
    _, whole, expected = run(tiny_pipe, table(), data, params)
    renew()
    loop = train_guidance(
        tiny_pipe.unet, start_adapter(tiny_pipe, table(), params), data, params, checkpoint=at, every=4
    )
    for _ in range(6):
        next(loop)
    renew()
    _, resumed, steps = run(tiny_pipe, table(), data, params, checkpoint=at)

    assert steps == expected
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_train_resumes_in_the_axes_of_the_checkpoint(tiny_pipe, table, data, params, renew, tmp_path):
    """Axes that another machine computes otherwise do not change what the checkpoint's parameters mean."""
    _, _, expected = run(tiny_pipe, table(), data, params, checkpoint=tmp_path / "c.safetensors", every=4)
    renew()
    adapter = start_adapter(tiny_pipe, table(), params)
    adapter.axes.rows.neg_()
    steps = list(train_guidance(tiny_pipe.unet, adapter, data, params, checkpoint=tmp_path / "c.safetensors"))

    assert steps == expected


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_adapter_that_changes_nothing_has_no_drift(tiny_pipe, record, table, params, precision):
    """At its first step both drift terms are 0 in either precision: caches and training share one, and one attention."""
    params = params.model_copy(update={"precision": precision, "steps": 1, "hold": "penalty"})
    data = train.prepare(tiny_pipe, record, table(), params, guidance_scale=3.0)
    adapter = InitialAdapter(
        attach(tiny_pipe.unet, NAME, rank=4),
        torch.nn.Identity(),
        False,
        lambda: torch.zeros(()),
    )
    (step,) = train_guidance(tiny_pipe.unet, adapter, data, params)

    assert step.target_loss > 1e-6
    assert step.uncond_loss < 1e-6
    assert step.retain_loss < 1e-6


def test_gradient_checkpointing_changes_nothing_but_memory(tiny_pipe, table, data, params, renew):
    """Activations that are computed twice give the same adapter, and the U-Net is left as it was."""
    found = []
    for twice in (False, True):
        renew()
        processors = dict(tiny_pipe.unet.attn_processors)
        found.append(run(tiny_pipe, table(), data, params.model_copy(update={"gradient_checkpointing": twice}))[1])
        assert not tiny_pipe.unet.is_gradient_checkpointing
        assert tiny_pipe.unet.attn_processors == processors

    for stored, computed in zip(*found, strict=True):
        torch.testing.assert_close(stored, computed)


def test_train_golden_losses(tiny_pipe, table, data, params):
    """Ten steps give the terms of the loss on file: a refactoring must not move them."""
    steps = run(tiny_pipe, table(), data, params.model_copy(update={"hold": "penalty"}))[2]
    found = {name: [getattr(step, name) for step in steps] for name in TERMS}
    if os.environ.get("EXPUNGE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found) + "\n")
    golden = json.loads(GOLDEN.read_text())

    assert golden.keys() == found.keys()
    for name, values in found.items():
        assert values == pytest.approx(golden[name], rel=5e-2), name


def test_a_step_costs_the_sum_of_its_terms(tiny_pipe, table, data, params, small_recipe):
    """The loss is the target's, plus λ, μ and the closed form's weight times the other terms, and none of them is 0."""
    small_recipe(UNCOND_WEIGHT=3.0, CLOSED_FORM_WEIGHT=5.0)
    params = params.model_copy(update={"hold": "penalty", "retain_weight": 7.0})
    *_, last = run(tiny_pipe, table(), data, params)[2]
    terms = [last.target_loss, 3 * last.uncond_loss, 7 * last.retain_loss, 5 * last.closed_form_loss]

    assert all(terms)
    assert last.loss == pytest.approx(sum(terms), rel=1e-5)


def test_without_penalty_or_null_space_the_drift_grows(tiny_pipe, table, data, params, small_recipe, renew):
    """With λ = 0 outside the null space the unconditional output drifts far more than with either (invariant 5)."""
    small_recipe(CLOSED_FORM_WEIGHT=0.0)
    found = {}
    for name, hold, weight in (
        ("null-space", "null-space", 0.0),
        ("penalty", "penalty", 100.0),
        ("neither", "penalty", 0.0),
    ):
        renew()
        small_recipe(UNCOND_WEIGHT=weight)
        run(tiny_pipe, table(), data, params.model_copy(update={"hold": hold, "steps": 60, "retain_weight": 0.0}))
        found[name] = drift(tiny_pipe, data)

    assert found["neither"] > 5 * found["penalty"], found
    assert found["neither"] > 5 * found["null-space"], found


def test_the_penalty_carries_gradient(tiny_pipe, table, data, params, small_recipe, renew):
    """The first step of training differs with λ, so that the penalty moves the adapter and is not just watched."""
    moved = []
    for weight in (0.0, 100.0):
        renew()
        small_recipe(UNCOND_WEIGHT=weight)
        moved.append(run(tiny_pipe, table(), data, params.model_copy(update={"hold": "penalty", "steps": 1}))[1])

    assert not any(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_null_space_spares_only_passes_whose_outcome_is_known(tiny_pipe, record, table, params, monkeypatch):
    """Skipping the empty-prompt pass leaves every loss term unchanged."""
    monkeypatch.setattr("components.guidance.adapters._FAINT", 1e-5)  # so that the null space is exact
    tiny_pipe.text_encoder = copy.deepcopy(tiny_pipe.text_encoder)
    for path, parameter in tiny_pipe.text_encoder.named_parameters():
        if "position_embedding" in path:
            parameter.zero_()  # so that the empty prompt's states leave most directions free
    data = train.prepare(tiny_pipe, record, table(), params, guidance_scale=3.0)
    adapter = start_adapter(tiny_pipe, table(), params)
    rng = torch.Generator().manual_seed(1)
    before = [torch.randn(p.shape, generator=rng) for p in adapter.parameters]  # moves more than the start does
    found = []
    for null_space in (True, False):
        with torch.no_grad():
            for p, value in zip(adapter.parameters, before, strict=True):
                p.copy_(value)
        found.append(next(train_guidance(tiny_pipe.unet, adapter._replace(null_space=null_space), data, params)))

    assert found[0].uncond_loss == 0
    assert found[1].uncond_loss < 1e-4 * found[0].retain_loss  # which the adapter does move
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(("hold", "reads"), [("null-space", False), ("penalty", True)])
def test_initial_adapter_reads_the_empty_prompt_as_its_hold_says(tiny_pipe, table, params, hold, reads):
    """In the null space A is orthogonal to the empty prompt's directions, with a penalty it is not."""
    adapter = start_adapter(tiny_pipe, table(), params.model_copy(update={"hold": hold}))
    empty = empty_directions(encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""]))
    downs = [layer.lora_A[NAME].weight for layer in adapted_layers(tiny_pipe.unet, NAME)]

    assert adapter.null_space != reads
    assert (max(float((empty @ down.T).norm() / down.norm()) for down in downs) > 1e-5) == reads
    assert adapter.axes.rows.shape == (32 if reads else 32 - len(empty), 32)
    assert all(p.requires_grad for p in adapter.parameters)


def test_instant_mode_is_the_closed_form_in_the_null_space(tiny_pipe, record, table, params, monkeypatch):
    """With `steps: 0` nothing is sampled or trained, and every layer has W U Uᵀ M N, N the projection onto the null space."""
    monkeypatch.setattr(train, "prepare", None)  # to call it would fail
    params = params.model_copy(update={"steps": 0})
    steps = list(train_adapter(tiny_pipe, record, table(), params, guidance_scale=3.0))
    given = moments(tiny_pipe, table())
    weights = {"retain_weight": recipe.START_RETAIN_WEIGHT, "uncond_weight": recipe.START_UNCOND_WEIGHT}
    up, down = steer(given, rank=4, **weights)
    empty = empty_directions(encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""])).double()

    assert steps == []
    for layer in adapted_layers(tiny_pipe.unet, NAME):
        found = layer.lora_B[NAME].weight.double() @ layer.lora_A[NAME].weight.double()
        wanted = layer.base_layer.weight.double() @ up @ (down - down @ empty.T @ empty)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_train_adapter_trains_what_load_lora_weights_reads(tiny_pipe, record, table, params, renew, tmp_path):
    """From a record and its prompts to a file that changes what the target's prompt draws, with a step for each of `steps`."""
    steps = list(train_adapter(tiny_pipe, record, table(), params, guidance_scale=3.0))
    write_adapter(tmp_path / "r", tiny_pipe.unet, NAME, params={}, inputs={}, facts={})
    renew()
    states = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat"])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = tiny_pipe.unet(x, 400, states).sample
        tiny_pipe.load_lora_weights(str(tmp_path / "r"))
        erased = tiny_pipe.unet(x, 400, states).sample
    load_adapters(tiny_pipe, {"again": tmp_path / "r"})

    assert [step.step for step in steps] == list(range(1, params.steps + 1))
    assert not torch.allclose(base, erased)


def test_penalty_without_steps_is_refused(params):
    """The instant mode trains nothing, so that a penalty would have no effect."""
    with pytest.raises(ValidationError, match="acts in training alone, and steps is 0; use hold: null-space"):
        GuidanceParams(**{**params.model_dump(), "hold": "penalty", "steps": 0})
