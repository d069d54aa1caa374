import json

import numpy as np
import pytest
import torch

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.common.errors import UserError
from components.diffusion.params import BaseParams
from components.guidance import recipe
from components.guidance.params import GuidanceParams
from components.requests.requests import Request
from components.worlds.openmoji.judge import Judge, JudgeNet
from components.worlds.openmoji.world import WORLD
from research.guidance.baselines import Racer, choose, collect, compose, race, run, summarise
from research.guidance.erasers import ablation_loss, aligned, diffuse, esd_loss, signal_and_noise, uce_weight
from research.guidance.methods import CONTENDERS, state_pair
from training.openmoji.unet import build_scheduler

CAT = Request(target="cat", kind="object", aliases=("kitty",), anchor="dog", neighbours=("lion",))
SMALL = {
    "TRAJECTORIES": 4, "RETAIN_TRAJECTORIES": 6, "SOLVER_STEPS": 2, "RETAIN_SOLVER_STEPS": 2, "BATCH": 2,
    "RETAIN_BATCH": 2,
}  # fmt: skip


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_diffusion_is_that_of_diffusers():
    """x_t and v are DDIMScheduler's, at the last timestep too, where nothing is left of the signal."""
    scheduler, time = build_scheduler(), torch.tensor([0, 500, 999])
    x0, noise = normal(3, 4, 2, 2), normal(3, 4, 2, 2, seed=1)
    found = diffuse(x0, noise, *signal_and_noise(scheduler.alphas_cumprod, time))

    torch.testing.assert_close(found.latents, scheduler.add_noise(x0, noise, time))
    torch.testing.assert_close(found.velocity, scheduler.get_velocity(x0, noise, time))
    torch.testing.assert_close(found.latents[2], noise[2])


def test_esd_has_one_minimum_in_epsilon_and_in_v():
    """ε = α v + σ x: the v that ESD asks for is, converted, the ε that its equation asks for."""
    x, uncond, cond = (normal(1, 4, 2, 2, seed=s) for s in range(3))
    alpha, sigma = 0.6, 0.8
    in_epsilon = lambda v: alpha * v + sigma * x  # noqa: E731 - the oracle in one line
    wanted = in_epsilon(uncond) - 2 * (in_epsilon(cond) - in_epsilon(uncond))
    v = (wanted - sigma * x) / alpha

    assert esd_loss(v, uncond, cond, erasure_scale=2.0).item() == pytest.approx(0, abs=1e-12)
    assert esd_loss(v + 1, uncond, cond, erasure_scale=2.0).item() == pytest.approx(1)


def test_ablation_stops_the_gradient_at_the_anchor():
    """Without the regulariser only the target's output is pulled; with it the anchor's is pulled to v."""
    target, anchor, velocity = (normal(1, 4, 2, 2, seed=s).requires_grad_() for s in range(3))
    bare = ablation_loss(target, anchor, velocity, diffusion_weight=0.0)
    whole = ablation_loss(target, anchor, velocity, diffusion_weight=1.0)

    assert not torch.autograd.grad(bare, anchor, retain_graph=True)[0].any()
    torch.testing.assert_close(torch.autograd.grad(bare, target)[0], 2 * (target - anchor) / target.numel())
    torch.testing.assert_close(torch.autograd.grad(whole, anchor)[0], 2 * (anchor - velocity) / anchor.numel())


def test_uce_solves_its_normal_equations():
    """At the solution the gradient of UCE's objective is zero; with no edit the weight is the old one."""
    weight, edited, wanted, preserved = (
        normal(*s, seed=i).double() for i, s in enumerate([(5, 8), (3, 8), (3, 8), (20, 8)])
    )
    options = {"preserve_weight": 0.3, "ridge": 0.1}
    solved = uce_weight(weight, edited, wanted, preserved, **options).requires_grad_()
    objective = (
        (edited @ solved.T - wanted @ weight.T).square().sum()
        + 0.3 * (preserved @ (solved - weight).T).square().sum()
        + 0.1 * (solved - weight).square().sum()
    )

    assert torch.autograd.grad(objective, solved)[0].abs().max() < 1e-10
    assert (solved - weight).abs().max() > 0.1
    torch.testing.assert_close(uce_weight(weight, edited, edited, preserved, **options), weight)


def test_aligned_states_start_at_the_names():
    """Names at positions 2 and 1 of six: four states each, the first of them the names' own."""
    left, right = torch.arange(6.0)[:, None], torch.arange(10.0, 16.0)[:, None]
    one, other = aligned(left, right, 2, 1)

    assert one.flatten().tolist() == [2, 3, 4, 5]
    assert other.flatten().tolist() == [11, 12, 13, 14]


@pytest.fixture
def prompts():
    """The prompts of one request, all splits."""
    return build_prompts({"r": CAT}, WORLD, ConceptsParams(per_name=3, retain=24, mixed=4, seed=0))


@pytest.fixture
def task(tiny_pipe, prompts, monkeypatch):
    """A task of a few short trajectories and three steps."""
    for name, value in SMALL.items():
        monkeypatch.setattr(recipe, name, value)
    base = BaseParams(path=".", hookpoint="encoder.layers.0", guidance_scale=3.0, solver_steps=2)
    params = GuidanceParams(
        rank=4, steps=3, retain_weight=80.0, hold="null-space", precision="no", gradient_checkpointing=False, seed=0
    )
    return collect(tiny_pipe, make_record("r", CAT, WORLD), prompts, base, params, WORLD.concept_names)


@pytest.fixture
def judge():
    """An untrained judge of the world's labels."""
    torch.manual_seed(3)
    net = JudgeNet(len(WORLD.concept_names), len(WORLD.style_names))
    return Judge(net, WORLD.concept_names, WORLD.style_names, "0")


def test_training_prompts_are_not_the_held_out_ones(task, prompts):
    """No prompt that is drawn for the score was trained on; what is preserved by name is not the target."""
    album = compose(prompts, task.record, 4, 0)

    assert len(album.targets) == len(album.retain) == 4
    assert not {s.prompt for s in (*album.targets, *album.retain)} & {
        *task.prompts, *task.counterparts, *task.retain_prompts
    }  # fmt: skip
    assert sorted({*WORLD.concept_names} - {*task.other_concepts}) == ["cat"]


def test_state_pairs_start_at_the_names(tiny_pipe):
    """The states before two names of one length agree and are left out; a prompt without the name has no pair."""
    pair = state_pair(tiny_pipe, "cat", "one cat here", "one dog here", "dog")

    assert pair is not None
    assert [len(side) for side in pair] == 2 * [tiny_pipe.tokenizer.model_max_length - 2]  # BOS and "one" come before
    assert state_pair(tiny_pipe, "car", "a cat", "a dog", "dog") is None


def test_race_edits_what_each_method_may_edit(tiny_pipe, task, prompts, judge):
    """UCE moves keys and values of cross-attention alone, and less if it preserves more; the others leave every base weight as it was, and learn."""
    before = {k: v.clone() for k, v in tiny_pipe.unet.state_dict().items()}
    album = compose(prompts, task.record, 2, 0)
    _, racers = race(tiny_pipe, task, album, judge, list(CONTENDERS), [0.4], share=0.2)
    assert all(racer.scores for racer in racers if racer.prepared)
    for racer in racers:
        while not racer.steps and not racer.done:  # on a busy machine the budget is too small for some
            racer.advance(racer.seconds + 0.1, 99)
    moved = {}
    for racer in racers:
        after = {k.replace(".base_layer", ""): v for k, v in racer.pipe.unet.state_dict().items()}
        moved[racer.name] = {k for k, v in before.items() if not torch.equal(after[k], v)}
        assert racer.name.startswith("uce") or any(v.any() for k, v in after.items() if "lora_B" in k)

    of_prompts = {k for k in before if "attn2.to_k" in k or "attn2.to_v" in k}
    assert all(keys == (of_prompts if name.startswith("uce") else set()) for name, keys in moved.items())
    assert all(torch.equal(v, tiny_pipe.unet.state_dict()[k]) for k, v in before.items())
    far = {
        r.name: sum((r.pipe.unet.state_dict()[k] - before[k]).norm() for k in of_prompts)
        for r in racers
        if r.name.startswith("uce")
    }
    assert far["uce, preserving more"] < far["uce"]


def test_quick_run_scores_every_contender(tiny_pipe, task, prompts, judge, tmp_path):
    """A race of a fifth of a second: base and each contender have a row, and the base's n is the images asked for."""
    album = compose(prompts, task.record, 2, 0)
    record = run(tiny_pipe, task, album, judge, list(CONTENDERS), [0.2], share=0.1, out=tmp_path)
    written = json.loads((tmp_path / "guidance_baselines-cat.json").read_text())

    assert [r["contender"] for r in written["quality"]] == ["base", *CONTENDERS]
    assert all(r["ua"]["n"] == 2 for r in record["quality"])
    assert (written["quality"][0]["drift"]["value"], written["quality"][0]["ssim_unrelated"]["value"]) == (
        pytest.approx(0, abs=1e-6),
        pytest.approx(1),
    )
    assert next(r for r in written["quality"] if r["contender"] == "uce")["drift"]["value"] > 0
    assert next(r for r in written["speed"] if r["contender"] == "uce")["steps_per_second"] is None
    assert np.isfinite([r["prepared_seconds"] for r in written["speed"]]).all()


def test_an_adapter_in_closed_form_is_prepared_without_a_step(tiny_pipe, task):
    """With `steps: 0` ours yields nothing: it is done and prepared, counts no step, and its U-Net has changed."""
    racer = Racer("expunge", tiny_pipe, task._replace(params=task.params.model_copy(update={"steps": 0})))
    racer.advance(60.0, 0)

    assert racer.done
    assert 0 < racer.prepared == racer.seconds
    assert (racer.steps, racer.rates, racer.changed) == (0, {}, True)
    assert any(v.any() for k, v in racer.pipe.unet.state_dict().items() if "lora_B" in k)


def test_time_to_erase_waits_for_a_model_that_still_draws(tiny_pipe, task):
    """A UA that is reached while unrelated images are spoilt does not count; the first that is reached without does."""
    racer = Racer("uce", tiny_pipe, task)
    row = lambda ua, ira, seconds: {  # noqa: E731 - a record in one line
        "contender": "uce", "ua": {"value": ua}, "ira": {"value": ira}, "seconds": seconds,
    }  # fmt: skip
    base = row(0.0, 0.9, 0.0) | {"contender": "base"}

    def reached(*rows):
        return summarise([base, *rows], [racer])[0]["seconds_to_ua"]

    assert reached(row(1.0, 0.5, 10.0), row(1.0, 0.86, 20.0), row(1.0, 0.9, 30.0)) == 20.0
    assert reached(row(1.0, 0.5, 10.0), row(0.9, 0.9, 20.0)) is None


def test_choose_refuses_a_target_without_an_anchor():
    """A target that nobody erases, or for which nothing is drawn instead, is named in the error with those that fit."""
    requests = {"r": CAT, "s": Request(target="owl", kind="object")}

    assert choose(requests, "cat") == ("r", CAT)
    with pytest.raises(UserError, match="no request erases 'owl' with an anchor; use one of: cat"):
        choose(requests, "owl")
