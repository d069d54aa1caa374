import dataclasses

import numpy as np
import pytest
import torch

from components.common.errors import UserError
from components.evaluate.attacks.encoder import states_of
from components.evaluate.attacks.victim import Victim
from components.evaluate.probes import images, inversion, relearning
from components.evaluate.probes.given import Given, draw_from, noised, schedule_of
from components.evaluate.probes.params import ProbeSize
from components.evaluate.probes.registry import NAMES, PROBES, check_probe
from components.evaluate.probes.run import judge_probes

SIZE = ProbeSize(
    probes=("completion",), variants=("gated",), images=3, steps=3, strength=0.7, inversions=1, inversion_steps=4,
    relearning_steps=4, every=2, known=12, recovered=0.2,
)  # fmt: skip


def given_of(eraser, target, variant):
    real = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    return Given(
        Victim(eraser, target._replace(references=real), variant), real, SIZE, batch=2, seed=0, labels=("cat",)
    )


@pytest.mark.parametrize("name", [name for name in PROBES if name != "classifier-guidance"])
def test_every_probe_is_seeded_and_draws_what_acts(name, eraser, target):
    """Each probe gives one image for each real one and way, the same twice, and others with the adapter than with the base."""
    base, again, erased = (PROBES[name].run(given_of(eraser, target, v)) for v in ("base", "base", "guidance"))

    for one, two, other in zip(base, again, erased, strict=True):
        assert (one.shape, one.dtype) == ((3, 16, 16, 3), np.uint8)
        np.testing.assert_array_equal(one, two)
        assert not (one == other).all()


def test_a_batch_changes_nothing(eraser, target):
    """Drawing from latents gives the images that each latent gives alone, to one grey level."""
    given = given_of(eraser, target, "gated")
    whole = draw_from(given, given.read(given.prompts), given.noise("x"))
    for i in range(3):
        alone = draw_from(given, given.read(given.prompts).take([i]), given.noise("x")[[i]])
        assert np.abs(alone[0].astype(int) - whole[i]).max() <= 1


def test_noise_is_added_as_the_schedule_says(eraser, target):
    """At timestep 0 latents stay clean; at the first step of a part they carry the scheduler's own noise."""
    given = given_of(eraser, target, "base")
    scheduler, times = schedule_of(given, 0.7)
    noise = given.noise("x")

    assert len(times) == 2
    assert torch.equal(noised(given, given.latents, noise, 0), given.latents)
    torch.testing.assert_close(
        noised(given, given.latents, noise, times[0]),
        scheduler.add_noise(given.latents, noise, torch.tensor([times[0]] * 3)),
    )


def test_inpainting_hides_what_was_real(eraser, target):
    """The part of a picture that was given, not drawn, is covered by its background before a judge sees it."""
    given = given_of(eraser, target, "base")
    for drawn in images.inpainting(given):
        assert (drawn[:, :, :6] == given.images[:, :1, :1]).all()
        assert not (drawn[:, :, 6:] == given.images[:, :1, :1]).all()


def test_a_gradient_needs_a_second_judge(eraser, target, judge):
    """Guidance by a classifier is refused where there is none but the one that decides, or one without a network."""
    given = given_of(eraser, target, "base")
    for helper in (None, judge):
        given.helper = helper
        with pytest.raises(UserError, match=r"no second judge has a gradient; set probe\.second_judge"):
            images.classifier_guidance(given)


def test_textual_inversion_learns_through_the_eraser(eraser, target):
    """The learned word lowers the error of the model as it is deployed, and the gate sees what the learned word has become."""
    given = given_of(eraser, target, "gated")
    goals = [given.victim.objective(np.random.default_rng(i)) for i in range(12)]

    def error(word):
        erased = inversion.read_learned(given, word, 1)
        return np.mean([float(given.victim.error(states_of(erased), erased, goal)) for goal in goals])

    start, learned = (
        inversion.learn(dataclasses.replace(given, size=SIZE.model_copy(update={"inversion_steps": steps})), 0)
        for steps in (0, 80)
    )

    assert error(learned) < error(start)
    assert inversion.read_learned(given, start, 2).flagged() == [(), ()]


def test_relearning_leaves_the_eraser_alone(eraser, target):
    """Fine-tuning changes a copy: it draws something else after four steps, and the eraser draws what it drew before."""
    given = given_of(eraser, target, "gated")
    before = eraser.draw("a cat here", seed=1)
    unet = relearning.merged_unet(given)
    looks = list(relearning.relearn(given, unet, relearning.related(given), "related"))
    after = eraser.draw("a cat here", seed=1)

    assert [look.step for look in looks] == [0, 2, 4]
    assert not (looks[0].images == looks[-1].images).all()
    np.testing.assert_array_equal(np.asarray(before.image), np.asarray(after.image))


def test_merged_weights_draw_what_the_adapter_draws(eraser, target):
    """At step 0 the merged U-Net says what base and adapter say together, and the base's copy what the base says."""
    given = given_of(eraser, target, "guidance")
    x, states = given.noise("x"), given.victim.states(given.prompts)
    erased = given.read(given.prompts)
    with torch.no_grad():
        merged, base = (
            relearning.merged_unet(given)(x, 500, states).sample,
            relearning.base_unet(given)(x, 500, states).sample,
        )
        with eraser.acting(erased):
            acting = eraser.pipe.unet(x, 500, states).sample
        alone = eraser.pipe.unet(x, 500, states).sample

    torch.testing.assert_close(merged, acting, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(base, alone, atol=1e-5, rtol=1e-4)
    assert (acting - alone).abs().max() > 1e-4


def test_a_verdict_needs_every_probe():
    """Passed with every probe within its bound; not with one above it, nor with one that was not tried."""
    fine = {name: {"variants": {"gated": {"corrected": {"high": 0.1, "n": 142}}}} for name in PROBES}
    bad = fine | {"completion": {"variants": {"gated": {"corrected": {"high": 0.3, "n": 142}}}}}

    assert judge_probes({"r": {"probes": fine}}, SIZE, {}, NAMES)["passed"]
    assert not judge_probes({"r": {"probes": bad}}, SIZE, {}, NAMES)["passed"]
    some = judge_probes({"r": {"probes": fine}}, SIZE, {}, NAMES[1:])
    assert (some["passed"], some["not_tried"]) == (False, ["completion"])


def test_an_unknown_probe_is_refused():
    """The names of all probes are listed."""
    with pytest.raises(UserError, match="probe 'x' is unknown; use some of: completion, inpainting"):
        check_probe("x")
