import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from components.common.errors import ArtifactError, UserError
from components.common.files import read_sidecar
from components.common.sections import load_params
from components.diffusion.encode import encode
from components.guidance.adapters import (
    FORMAT,
    attach,
    empty_directions,
    load_adapters,
    parameters_of,
    read_along,
    readers,
    target_modules,
    use_adapters,
    write_adapter,
)
from components.guidance.closed_form import Moments, principal_axes
from components.guidance.losses import guidance_loss, relative_drift
from components.guidance.params import GuidanceParams
from components.guidance.prepare import Lesson, join, pick_prompts, start_adapter
from components.guidance.train import cache_trajectories, in_training_form, precision_of, train_guidance

GOLDEN = Path(__file__).parents[2] / "golden" / "guidance.json"
PARAMS = GuidanceParams(
    parameters="xattn", rank=4, start="random", start_retain_weight=1.0, start_uncond_weight=1.0, trajectories=4, retain_trajectories=4,
    solver_steps=3, retain_solver_steps=3, guidance_scale=3.0, steps=10, batch=4, retain_batch=4, lr=0.01,
    uncond_weight=1.0, retain_weight=1.0, map_weight=0.0, negative_guidance=0.0, anchor_share=0.5, precision="no", gradient_checkpointing=False, null_space=False,
    seed=0,
)  # fmt: skip


def blind(unet, name, empty):
    """Makes the adapter blind to the empty prompt; its parameters from then on."""
    alike = torch.eye(empty.shape[-1], dtype=torch.float64)
    read_along(unet, name, principal_axes(Moments(alike, alike, alike, alike), empty_directions(empty), PARAMS))
    return parameters_of(unet, name)


def two_directions(empty):
    """An empty prompt of two directions of 32; the tiny encoder's 32 positions would span its whole width."""
    return empty[:, [0, 1] * 16]


def tensors(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 1, 2, 2, generator=rng, requires_grad=True) for _ in range(count)]


def test_loss_equals_its_equation():
    """The three terms by hand, from the equation in the module."""
    target, uncond, g, frozen, retain, kept = tensors(6)
    loss = guidance_loss(target, uncond, g, frozen, retain, kept, uncond_weight=2.0, retain_weight=3.0)
    mse = lambda a, b: (a - b).square().mean()  # noqa: E731 - the oracle in one line
    wanted = mse(target - uncond, g) + 2 * mse(uncond, frozen) + 3 * mse(retain, kept)

    torch.testing.assert_close(loss.total, wanted)


def test_loss_unconditional_term_carries_gradient():
    """The unconditional output is pulled back by the second term, not just watched (invariant 5)."""
    target, uncond, g, frozen, retain, kept = tensors(6)
    loss = guidance_loss(target, uncond, g, frozen, retain, kept, uncond_weight=1.0, retain_weight=0.0)
    (from_term,) = torch.autograd.grad(loss.uncond, uncond)

    torch.testing.assert_close(from_term, 2 * (uncond - frozen) / uncond.numel())


def test_surgical_term_alone_cannot_see_a_common_shift():
    """Adding one vector to both outputs leaves the first term as it was: why the second must exist."""
    target, uncond, g, frozen, retain, kept = tensors(6)
    terms = [
        guidance_loss(target + s, uncond + s, g, frozen, retain, kept, uncond_weight=1.0, retain_weight=0.0)
        for s in (0.0, 5.0)
    ]

    torch.testing.assert_close(terms[0].surgical, terms[1].surgical)
    assert terms[1].uncond > terms[0].uncond + 1


@pytest.fixture
def caches(tiny_pipe):
    def states(*prompts):
        return encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, prompts)

    target, anchor, retain, empty = (
        states("a cat", "neon cat"), states("a dog", "neon dog"), states("a car", "an owl"), states(""),
    )  # fmt: skip
    erase = cache_trajectories(tiny_pipe, target, anchor, empty, PARAMS, scope="erase")
    keep = cache_trajectories(tiny_pipe, retain, retain, empty, PARAMS, scope="retain")
    return erase, keep, target, retain, empty


def run(pipe, caches, params=PARAMS, **options):
    parameters = attach(pipe.unet, "default", parameters=params.parameters, rank=params.rank, seed=0)
    steps = list(train_guidance(pipe.unet, parameters, *caches, params, **options))
    return [p.detach().clone() for p in parameters], steps


def fresh_unet(pipe, state):
    unet = UNet2DConditionModel.from_config(pipe.unet.config)
    unet.load_state_dict(state)
    pipe.unet = unet.eval().requires_grad_(False)


@pytest.fixture
def state(tiny_pipe):
    return {k: v.clone() for k, v in tiny_pipe.unet.state_dict().items()}


def test_train_moves_the_adapter_alone(tiny_pipe, caches, state):
    """After training the base weights are bit by bit what they were, and every adapter matrix has moved."""
    parameters, _ = run(tiny_pipe, caches)
    base = {k.replace(".base_layer", ""): v for k, v in tiny_pipe.unet.state_dict().items() if "lora" not in k}

    assert all(torch.equal(base[k], v) for k, v in state.items())
    assert all(p.abs().sum() > 0 for p in parameters)


def test_train_same_seed_same_bytes(tiny_pipe, caches, state):
    """One seed, one result; another seed, another."""
    found = []
    for seed in (0, 0, 1):
        fresh_unet(tiny_pipe, state)
        found.append(run(tiny_pipe, caches, PARAMS.model_copy(update={"seed": seed}))[0])

    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


def test_train_killed_and_resumed_ends_in_the_same_bytes(tiny_pipe, caches, state, tmp_path):
    """Abandoned after a checkpoint and started again, training ends as if it had never stopped, and tells of every step."""
    whole, expected = run(tiny_pipe, caches)
    fresh_unet(tiny_pipe, state)
    parameters = attach(tiny_pipe.unet, "default", parameters="xattn", rank=4, seed=0)
    loop = train_guidance(tiny_pipe.unet, parameters, *caches, PARAMS, checkpoint=tmp_path / "c.safetensors", every=4)
    for _ in range(6):
        next(loop)
    fresh_unet(tiny_pipe, state)
    resumed, steps = run(tiny_pipe, caches, checkpoint=tmp_path / "c.safetensors")

    assert steps == expected
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("wanted", ["anchor", "nothing", "away"])
def test_cache_holds_what_the_frozen_model_says(tiny_pipe, wanted, precision):
    """What sampling said on the way equals a pass of its own at each state, whether the anchor is drawn, only aimed at, or absent.

    Without one the aim is the unconditional output, or as far beyond it as is asked.
    """
    target, anchor, empty = (
        encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, prompts)
        for prompts in (["a cat", "neon cat"], ["a dog", "neon dog"], [""])
    )
    aims = anchor if wanted == "anchor" else None
    drawn = torch.cat([target[:1], anchor[1:]]) if wanted == "anchor" else target
    params = PARAMS.model_copy(update={"precision": precision, "negative_guidance": 0.5 if wanted == "away" else 0.0})
    cache = cache_trajectories(tiny_pipe, drawn, aims, empty, params, scope="erase")
    with torch.no_grad(), in_training_form(tiny_pipe.unet, params), precision_of(params, torch.device("cpu")):
        free = tiny_pipe.unet(cache.latents, cache.timesteps, empty.expand(len(cache.latents), -1, -1)).sample
        said = tiny_pipe.unet(cache.latents, cache.timesteps, (target if aims is None else anchor)[cache.prompt]).sample
    aimed = {"anchor": said, "nothing": free, "away": free - 0.5 * (said - free)}[wanted]

    assert len(cache.latents) == 2 * PARAMS.solver_steps
    within = {"no": 1e-5, "bf16": 1e-2}[precision]
    torch.testing.assert_close(cache.uncond, free.float(), atol=within, rtol=within)
    torch.testing.assert_close(cache.cond, aimed.float(), atol=within, rtol=within)
    assert cache.uncond.dtype == cache.cond.dtype == torch.float32


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_fresh_adapter_has_no_drift_to_pay_for(tiny_pipe, precision):
    """At the first step what is held is where it was, in either precision: caches and training share one, and one attention."""
    params = PARAMS.model_copy(update={"precision": precision, "steps": 1})
    spoken = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat", "neon cat"])
    empty = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""])
    cache = cache_trajectories(tiny_pipe, spoken, spoken, empty, params, scope="both")
    (step,) = run(tiny_pipe, (cache, cache, spoken, spoken, empty), params)[1]

    assert step.uncond < 1e-6
    assert step.retain < 1e-6
    assert cache.cond.dtype == torch.float32


def test_gradient_checkpointing_changes_nothing_but_memory(tiny_pipe, caches, state):
    """Activations that are computed twice give the adapter that activations kept give, and the U-Net is left as it was."""
    found = []
    for twice in (False, True):
        fresh_unet(tiny_pipe, state)
        processors = dict(tiny_pipe.unet.attn_processors)
        found.append(run(tiny_pipe, caches, PARAMS.model_copy(update={"gradient_checkpointing": twice}))[0])
        assert not tiny_pipe.unet.is_gradient_checkpointing
        assert tiny_pipe.unet.attn_processors == processors

    for kept, computed in zip(*found, strict=True):
        torch.testing.assert_close(kept, computed)


def test_train_golden_losses(tiny_pipe, caches):
    """Ten steps give the losses on file: a refactoring must not move them."""
    found = [step.loss for step in run(tiny_pipe, caches)[1]]
    if os.environ.get("EXPUNGE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"loss": found}) + "\n")

    assert found == pytest.approx(json.loads(GOLDEN.read_text())["loss"], rel=1e-2)


def test_without_the_unconditional_weight_the_drift_grows(tiny_pipe, caches, state):
    """With λ = 0 the unconditional output drifts at least twice as far as with λ = 1 (invariant 5)."""
    erase, *_, empty = caches
    drift = {}
    for weight in (0.0, 1.0):
        fresh_unet(tiny_pipe, state)
        run(tiny_pipe, caches, PARAMS.model_copy(update={"steps": 60, "uncond_weight": weight, "retain_weight": 0.0}))
        with torch.no_grad():
            out = tiny_pipe.unet(erase.latents, erase.timesteps, empty.expand(len(erase.latents), -1, -1)).sample
        drift[weight] = relative_drift(out, erase.uncond).mean().item()

    assert drift[0.0] > 2 * drift[1.0]


def test_joined_lessons_keep_their_prompts(caches):
    """Two lessons end to end: every state of the second still belongs to the prompt that it was drawn for."""
    erase, keep, target, retain, empty = caches
    one, two = Lesson(*caches), Lesson(erase, keep, target + 1, retain + 1, empty)
    both = join([one, two])
    middle = len(erase.latents)

    assert len(both.erase.latents) == 2 * middle
    assert torch.equal(both.target[both.erase.prompt[:middle]], target[erase.prompt])
    assert torch.equal(both.target[both.erase.prompt[middle:]], target[erase.prompt] + 1)
    assert torch.equal(both.retain[both.keep.prompt[len(keep.latents) :]], retain[keep.prompt] + 1)


def test_adapter_round_trip(tiny_pipe, caches, state, tmp_path):
    """The file that is written gives, loaded by diffusers alone, the outputs of the trained model; off, the base's."""
    erase, *_, empty = caches

    @torch.no_grad()
    def out():
        return tiny_pipe.unet(erase.latents[:2], erase.timesteps[:2], empty.expand(2, -1, -1)).sample

    base = out()
    run(tiny_pipe, caches)
    trained = out()
    write_adapter(tmp_path / "r", tiny_pipe.unet, "default", params={}, inputs={}, facts={})
    fresh_unet(tiny_pipe, state)
    load_adapters(tiny_pipe, {"r": tmp_path / "r"})
    off = out()
    with use_adapters(tiny_pipe, ["r"]):
        on = out()
    fresh_unet(tiny_pipe, state)
    tiny_pipe.load_lora_weights(str(tmp_path / "r"))
    stock = out()

    assert not torch.allclose(base, trained)
    torch.testing.assert_close(off, base)
    torch.testing.assert_close(on, trained)
    torch.testing.assert_close(stock, trained)


def test_adapter_altered_is_refused(tiny_pipe, caches, tmp_path):
    """A truncated adapter is refused before it touches the model."""
    run(tiny_pipe, caches)
    write_adapter(tmp_path / "r", tiny_pipe.unet, "default", params={}, inputs={}, facts={})
    path = tmp_path / "r" / "pytorch_lora_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(ArtifactError, match="altered or cut short"):
        load_adapters(tiny_pipe, {"again": tmp_path / "r"})


@pytest.mark.parametrize(("parameters", "wanted"), [("xattn-v", 1), ("xattn-kv", 2), ("xattn", 4), ("attn", 8)])
def test_target_modules_select_what_they_say(tiny_pipe, parameters, wanted):
    """For each attention block: values, keys and values, all of cross-attention, or both attentions; nothing else."""
    names = target_modules(tiny_pipe.unet, parameters)
    blocks = {n.split(".attn")[0] for n in names}

    assert len(names) == wanted * len(blocks)
    assert all("attn2" in n for n in names) == (parameters != "attn")


def test_target_modules_unknown_is_one_sentence(tiny_pipe):
    """A selection without modules names those that exist."""
    with pytest.raises(
        UserError, match=r"guidance.parameters='xattn-q' selects no module .* xattn-v, xattn-kv, xattn, attn"
    ):
        target_modules(tiny_pipe.unet, "xattn-q")


def test_null_space_spares_only_passes_whose_outcome_is_known(tiny_pipe, caches):
    """An adapter that changes what prompts draw has, blind, the terms that it has where the empty prompt is asked too."""
    erase, keep, target, retain, empty = caches
    empty = two_directions(empty)
    with torch.no_grad():
        free = tiny_pipe.unet(erase.latents, erase.timesteps, empty.expand(len(erase.latents), -1, -1)).sample
        kept = tiny_pipe.unet(keep.latents, keep.timesteps, empty.expand(len(keep.latents), -1, -1)).sample
    caches = erase._replace(uncond=free), keep._replace(uncond=kept), target, retain, empty
    params = PARAMS.model_copy(update={"parameters": "xattn-kv", "steps": 1})
    attach(tiny_pipe.unet, "default", parameters="xattn-kv", rank=4, seed=0)
    parameters = blind(tiny_pipe.unet, "default", empty)
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) / 5)
        before = [p.clone() for p in parameters]
    found = []
    for held in (True, False):
        found.append(next(train_guidance(tiny_pipe.unet, parameters, *caches, params, held=held)))
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)

    assert found[0].uncond == 0
    assert found[1].uncond < 1e-4 * found[0].retain  # which the adapter does move
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("chosen", ["xattn-v", "xattn-kv"])
def test_null_space_leaves_faint_directions_free(tiny_pipe, chosen):
    """A direction that carries a thousandth of the empty prompt's largest is read as before, the largest no more."""
    size = tiny_pipe.unet.config.cross_attention_dim
    attach(tiny_pipe.unet, "r", parameters=chosen, rank=2, seed=0)
    downs = [layer.lora_A["r"] for layer in readers(tiny_pipe.unet, "r")]
    before = [down.weight.detach().clone() for down in downs]
    uncond = torch.zeros(1, 4, size)
    uncond[0, 0, 0], uncond[0, 1, 1] = 10.0, 0.01
    blind(tiny_pipe.unet, "r", uncond)

    assert downs
    for old, down in zip(before, downs, strict=True):
        torch.testing.assert_close(down.weight.detach()[:, 0], torch.zeros(2))
        torch.testing.assert_close(down.weight.detach()[:, 1:], old[:, 1:])


def test_principal_axes_are_the_singular_vectors_of_the_states():
    """By an independent singular value decomposition of the weighted states, what is known taken out of each."""
    rng = np.random.default_rng(0)
    c, k, u = (rng.normal(size=(n, 12)) * np.arange(1, 13) for n in (200, 300, 2))
    moment = [torch.from_numpy(x.T @ x / len(x)) for x in (c, k, u)]
    known = np.linalg.qr(u.T)[0].T  # (2, D)
    settings = PARAMS.model_copy(update={"start_retain_weight": 2.0, "start_uncond_weight": 3.0})
    given = Moments(moment[0], moment[0], *moment[1:])
    axes = principal_axes(given, torch.from_numpy(known).float(), settings).double().numpy()
    rows = np.concatenate([c / 200**0.5, k * (2 / 300) ** 0.5])
    wanted = np.linalg.svd(rows - rows @ known.T @ known)[2][:10][::-1]

    assert axes.shape == (10, 12)
    np.testing.assert_allclose(np.abs(axes @ wanted.T), np.eye(10), atol=1e-3)  # up to their signs
    np.testing.assert_allclose(axes @ known.T, 0, atol=1e-6)


def test_adapter_in_axes_is_written_as_what_it_reads(tiny_pipe, state, tmp_path):
    """Fresh, it reads what it read before; trained, its file has A = Ã Q of every layer, and draws the same in a U-Net that knows no axes."""
    unet, size = tiny_pipe.unet, tiny_pipe.unet.config.cross_attention_dim
    for name in ("default", "other"):
        attach(unet, name, parameters="xattn-kv", rank=4, seed=0)
    unet.set_adapter("default")
    downs = [layer.lora_A["default"] for layer in readers(unet, "default")]
    before = [down.weight.detach().clone() for down in downs]
    states = torch.randn(40, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = states.T @ states / 40
    axes = principal_axes(Moments(moment, moment, moment, moment), torch.zeros(0, size), PARAMS)
    for name in ("default", "other"):
        read_along(unet, name, axes)
    for old, down in zip(before, downs, strict=True):
        torch.testing.assert_close(down.weight.detach(), old, rtol=1e-3, atol=1e-4)
    rng = torch.Generator().manual_seed(1)
    x, prompt = (torch.randn(*s, generator=rng) for s in ((2, unet.config.in_channels, 8, 8), (2, 5, size)))
    with torch.no_grad():
        for p in parameters_of(unet, "default"):
            p.copy_(torch.randn(p.shape, generator=rng) / 5)
        expected = {
            path.replace(".lora_A.default", ""): module.weight.clone()
            for path, module in unet.named_modules()
            if path.endswith("lora_A.default")
        }
        drawn = unet(x, 3, prompt).sample
        write_adapter(tmp_path / "a", unet, "default", params={}, inputs={}, facts={})
        other = [layer.lora_A["other"] for layer in readers(unet, "other")]
        fresh_unet(tiny_pipe, state)
        load_adapters(tiny_pipe, {"default": tmp_path / "a"})
        with use_adapters(tiny_pipe, ["default"]):
            again = tiny_pipe.unet(x, 3, prompt).sample
    held = load_file(tmp_path / "a" / "pytorch_lora_weights.safetensors")
    written = {
        key.removeprefix("unet.").removesuffix(".lora.down.weight"): value
        for key, value in held.items()
        if key.endswith(".lora.down.weight")
    }

    assert written.keys() == expected.keys()
    assert all(torch.equal(value, expected[path]) for path, value in written.items())
    assert len(held) == 2 * len(written)
    assert read_sidecar(tmp_path / "a", FORMAT)["facts"]["parameters"] == sum(t.numel() for t in held.values())
    assert all(hasattr(down, "parametrizations") for down in other)
    torch.testing.assert_close(again, drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "prior", "held"),
    [
        ({}, True, True),
        ({"map_weight": 0.0}, False, True),
        ({"start": "random"}, False, True),
        ({"null_space": False}, True, False),
        ({"start": "random", "null_space": False}, False, False),
    ],
)
def test_fresh_adapter_has_what_its_parameters_ask_for(tiny_pipe, changes, prior, held):
    """A prior goes with the closed form and a weight, blindness with the null space, and neither hangs on the other."""
    settings = load_params().guidance.model_copy(update={"rank": 4, **changes})
    rows = [("a cat", "a dog", "target", "select", True), ("an owl", "", "retain", "select", False)]
    table = pd.DataFrame(rows, columns=["prompt", "counterpart", "role", "split", "carries"])
    empty = two_directions(encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""]))
    fresh = start_adapter(tiny_pipe, "r", empty, [table], settings)

    known = empty_directions(empty)
    seen = [(known @ layer.lora_A["default"].weight.T).norm() for layer in readers(tiny_pipe.unet, "default")]

    assert (fresh.prior is not None, fresh.held) == (prior, held)
    assert (max(seen) < 1e-5) == held
    assert fresh.axes.shape == (30 if held else 32, 32)
    assert all(layer.lora_A["default"].weight.norm() > 1e-3 for layer in readers(tiny_pipe.unet, "default"))
    assert all(p.requires_grad for p in fresh.parameters)


def test_train_as_it_ships_resumes_to_the_same_bytes(tiny_pipe, caches, state, tmp_path):
    """Closed form, prior, principal axes and null space together: killed after a checkpoint, training ends as if it had never stopped."""
    rows = [("a cat", "a dog", "target", "select", True), ("an owl", "", "retain", "select", False)]
    table = pd.DataFrame(rows, columns=["prompt", "counterpart", "role", "split", "carries"])
    settings = load_params().guidance.model_copy(update={"rank": 4, "steps": 6, "batch": 2, "retain_batch": 3})
    at = tmp_path / "c.safetensors"

    empty = two_directions(caches[-1])

    def started():
        fresh_unet(tiny_pipe, state)
        return start_adapter(tiny_pipe, "r", empty, [table], settings)

    def loop(fresh, checkpoint):
        return train_guidance(
            tiny_pipe.unet, fresh.parameters, *caches[:-1], empty, settings,
            held=fresh.held, prior=fresh.prior, checkpoint=checkpoint, every=2,
        )  # fmt: skip

    whole = started()
    before = [p.detach().clone() for p in whole.parameters]
    expected = list(loop(whole, None))
    killed = loop(started(), at)
    for _ in range(3):
        next(killed)
    resumed = started()
    steps = list(loop(resumed, at))

    assert steps == expected
    assert steps[-1].prior != 0
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, resumed.parameters, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole.parameters, before, strict=True))


def test_prior_joins_the_loss_at_its_weight(tiny_pipe, caches):
    """A step's loss is the objective's plus the weight times the prior, and the prior moves the adapter."""
    alone, (plain, *_) = run(tiny_pipe, caches, PARAMS.model_copy(update={"steps": 2}))
    tiny_pipe.unet.delete_adapters("default")
    params = PARAMS.model_copy(update={"steps": 2, "map_weight": 3.0})
    parameters = attach(tiny_pipe.unet, "default", parameters=params.parameters, rank=params.rank, seed=0)
    pull = lambda: sum((p - 1).square().mean() for p in parameters)  # noqa: E731 - one line
    expected = plain.loss + 3 * pull().item()
    first, _ = train_guidance(tiny_pipe.unet, parameters, *caches, params, prior=pull)

    assert first.loss == pytest.approx(expected, rel=1e-5)
    assert not any(torch.equal(a, b) for a, b in zip(alone, parameters, strict=True))


@pytest.mark.parametrize("chosen", ["xattn-v", "xattn-kv"])
def test_null_space_holds_the_unconditional_output(tiny_pipe, caches, chosen):
    """Trained in the null space, the adapter changes what a prompt draws and not what the empty prompt draws; free, it does."""
    erase, keep, target, retain, empty = caches
    empty = two_directions(empty)
    caches = erase, keep, target, retain, empty
    x, time = erase.latents, erase.timesteps
    before = tiny_pipe.unet(x, time, empty.expand(len(x), -1, -1)).sample
    spoken = tiny_pipe.unet(x, time, target[erase.prompt]).sample
    moved = {}
    for held in (True, False):
        params = PARAMS.model_copy(update={"parameters": chosen, "null_space": held, "uncond_weight": 0.0, "lr": 0.02})
        parameters = attach(tiny_pipe.unet, "default", parameters=chosen, rank=4, seed=0)
        if held:
            parameters = blind(tiny_pipe.unet, "default", empty)
        assert len(list(train_guidance(tiny_pipe.unet, parameters, *caches, params, held=held))) == PARAMS.steps
        with torch.no_grad():
            moved[held] = (
                relative_drift(tiny_pipe.unet(x, time, empty.expand(len(x), -1, -1)).sample, before).max().item(),
                relative_drift(tiny_pipe.unet(x, time, target[erase.prompt]).sample, spoken).max().item(),
            )
        tiny_pipe.unet.delete_adapters("default")

    assert moved[True][0] < 1e-5
    assert moved[False][0] > 100 * moved[True][0]
    assert moved[True][1] > 100 * moved[True][0]


def prompts_of(roles):
    """A table of prompts of one request: (role, shows two concepts, name of the target or what is shown, style, how many)."""
    listed = [(role, pair, name, style) for role, pair, name, style, count in roles for _ in range(count)]
    rows = pd.DataFrame(listed, columns=["role", "pair", "spoken", "style"])
    rows["prompt"] = [f"{role} {pair} {i}" for i, (role, pair, *_) in enumerate(listed)]
    return rows.assign(
        split="select", carries=rows["role"].isin(["target", "alias", "context", "mixed"]), concepts=rows["spoken"]
    )


def test_retained_prompts_show_two_concepts_in_five_of_eight():
    """One in eight is about neighbours, five show two concepts, and of those that show one all do before any does again."""
    concepts = [("retain", False, name, "", count) for name, count in (("sun", 90), ("moon", 2), ("star", 3))]
    rows = prompts_of([("neighbour", False, "fox", "", 30), ("retain", True, "sun|moon", "", 60), *concepts,
                       ("target", False, "cat", "", 9)])  # fmt: skip
    settings = load_params().guidance.model_copy(update={"retain_trajectories": 32, "trajectories": 4})
    pairs, kept = pick_prompts(rows, "r", settings)
    late, _ = pick_prompts(rows.assign(split="evaluate"), "r", settings)
    one = rows[rows["prompt"].isin(kept) & (rows["role"] == "retain") & ~rows["pair"]]

    assert (len(pairs), len(late)) == (4, 0)
    assert Counter(text.rsplit(" ", 1)[0] for text in kept) == {
        "neighbour False": 4, "retain True": 20, "retain False": 8,
    }  # fmt: skip
    assert one["concepts"].value_counts().to_dict() == {"sun": 3, "moon": 2, "star": 3}


def test_every_name_in_every_style_is_trained_on_as_often():
    """Seven in ten show the target alone, its rare names as often as its common ones; none is about it in one half alone."""
    alone = [
        ("alias", False, name, style, count) for name, count in (("gun", 90), ("bow", 3)) for style in ("neon", "ink")
    ]
    rows = prompts_of([*alone, ("context", False, "gun", "", 90), ("mixed", True, "gun", "neon", 50)])
    settings = load_params().guidance.model_copy(update={"retain_trajectories": 0, "trajectories": 20})
    pairs, _ = pick_prompts(rows, "r", settings)
    found = pairs[pairs["role"] == "alias"]

    assert pairs["role"].value_counts().to_dict() == {"alias": 14, "context": 3, "mixed": 3}
    assert found.groupby(["spoken", "style"]).size().to_dict() == {
        ("bow", "ink"): 3, ("bow", "neon"): 3, ("gun", "ink"): 4, ("gun", "neon"): 4,
    }  # fmt: skip
    assert not pairs["role"].is_monotonic_increasing
