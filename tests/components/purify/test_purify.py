import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from components.common.errors import UserError
from components.diffusion.geometry import read_geometry
from components.diffusion.load import load_pipeline
from components.diffusion.sampling import decode_latents
from components.diffusion.text import towers_of
from components.eraser import Eraser
from components.guidance.adapters import attach, write_adapter
from components.purify.image import read_photo
from components.purify.purify import (
    coefficients,
    ddim_steps,
    default_prompt,
    encode_image,
    guided,
    invert,
    psnr,
    purify,
    resample,
)
from components.requests.requests import Request
from components.worlds.openmoji.render import render
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS
from training.openmoji.unet import build_scheduler

ROOT = Path(__file__).parents[3]
BASE = ROOT / "assets" / "openmoji"
EPSILON = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1,
)  # fmt: skip


def fabricate(pipe, folder):
    """An adapter with random weights that changes what the U-Net says, written to `folder`."""
    rng = torch.Generator().manual_seed(0)
    for parameter in attach(pipe.unet, "made", rank=4):
        parameter.data = torch.randn(parameter.shape, generator=rng)
    write_adapter(folder, pipe.unet, "made", params={}, inputs={}, facts={})
    pipe.unet.delete_adapters("made")


@pytest.mark.parametrize("scheduler", [build_scheduler(), EPSILON], ids=["v at zero SNR", "epsilon"])
def test_steps_are_the_ddim_steps_of_diffusers(scheduler):
    """Every step from noise to image equals DDIMScheduler.step at η = 0, the one at zero SNR included."""
    rng = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(10)
    steps = ddim_steps(scheduler.config, steps=10, strength=1.0)

    assert [step.timestep for step in steps] == scheduler.timesteps.tolist()
    for step in steps:
        x, out = torch.randn(2, 2, 4, 8, 8, generator=rng)
        wanted = scheduler.step(out, step.timestep, x).prev_sample
        torch.testing.assert_close(step.state_factor * x + step.out_factor * out, wanted, rtol=1e-4, atol=1e-4)


def test_coefficients_by_hand():
    """ᾱ_t = 0.36, ᾱ_s = 0.64: a turn by acos 0.6 - acos 0.8, whose cosine is 0.96 and whose sine is 0.28."""
    assert coefficients(0.36, 0.64, "v_prediction") == pytest.approx((0.96, -0.28))
    assert coefficients(0.36, 0.64, "epsilon") == pytest.approx((4 / 3, 0.6 - 0.8 * 4 / 3))
    assert coefficients(0.0, 1.0, "v_prediction") == pytest.approx((0.0, -1.0))


@pytest.mark.parametrize(("alpha", "prediction", "said"), [
    (0.0, "epsilon", "an epsilon model cannot be asked at zero SNR; use a model of v_prediction"),
    (0.5, "sample", "prediction type 'sample' is not supported; use a model of epsilon or v_prediction"),
])  # fmt: skip
def test_coefficients_refuse_what_has_none(alpha, prediction, said):
    """Neither ε where nothing is left of the image, nor an unknown prediction type."""
    with pytest.raises(UserError, match=said):
        coefficients(alpha, 0.9, prediction)


def test_ddim_steps_take_the_last_part():
    """Strength is the part of the steps that is taken, counted from the image: at least one unless it is 0."""
    whole = ddim_steps(EPSILON.config, steps=10, strength=1)

    assert len(whole) == 10
    assert ddim_steps(EPSILON.config, steps=10, strength=0.3) == whole[-3:]
    assert ddim_steps(EPSILON.config, steps=10, strength=0.01) == whole[-1:]
    assert ddim_steps(EPSILON.config, steps=10, strength=0) == []


@pytest.mark.parametrize(("steps", "strength", "said"), [
    (0, 1.0, "0 steps cannot be taken; use 1 to 1000"),
    (1001, 1.0, "1001 steps cannot be taken; use 1 to 1000"),
    (10, 1.5, "strength 1.5 is out of range; use 0 to 1"),
    (10, math.nan, "strength nan is out of range; use 0 to 1"),
])  # fmt: skip
def test_ddim_steps_out_of_range_is_one_sentence(steps, strength, said):
    """Steps and strength out of range are refused."""
    with pytest.raises(UserError, match=said):
        ddim_steps(EPSILON.config, steps=steps, strength=strength)


@pytest.mark.parametrize("scheduler", [build_scheduler(), EPSILON], ids=["v at zero SNR", "epsilon"])
def test_inversion_is_undone_by_resampling(tiny_pipe, scheduler):
    """With the same model the loop returns its latents; more iterations return them more exactly."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model = guided(tiny_pipe, towers_of(tiny_pipe).unconditional())
    steps = ddim_steps(
        scheduler.config, steps=25, strength=0.8
    )  # from pure noise an epsilon model takes more iterations
    error = [
        (resample(model, invert(model, latents, steps, iterations=i), steps) - latents).abs().max() for i in (1, 8)
    ]

    assert error[1] < 1e-3
    assert error[1] < error[0]


def test_inversion_of_the_base_returns_the_image():
    """On held-out renders the loop of the shipped base returns what the autoencoder returns, at 25 dB or more."""
    pipe = load_pipeline(BASE)
    images = np.stack([render(c, s, HELD_OUT_SEEDS) for c, s in (("owl", "sticker"), ("car", "line art"))])
    latents = encode_image(pipe, images)
    model = guided(pipe, towers_of(pipe).unconditional())
    steps = ddim_steps(pipe.scheduler.config, steps=20, strength=1.0)
    found = decode_latents(pipe, resample(model, invert(model, latents, steps, iterations=3), steps))

    assert all(psnr(a, b) >= 25 for a, b in zip(found, decode_latents(pipe, latents), strict=True))


def test_purify_uses_the_adapter_for_resampling_alone(tiny_pipe, tmp_path):
    """The reconstruction is the base's, the image is not, the same call gives the same bytes, and adapters end switched off."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    fabricate(tiny_pipe, tmp_path / "r")
    eraser = Eraser(tiny_pipe, {}, "encoder.layers.0", {"r": tmp_path / "r"}, guidance_scale=1.0)
    base, erased = (eraser.read(["a cat"], variant=variant) for variant in ("base", "guidance"))
    options = {"steps": 4, "strength": 1.0}
    stock = purify(eraser, image, base, **options)
    one, two = (purify(eraser, image, erased, **options) for _ in range(2))

    assert one.image.shape == (16, 16, 3)
    assert np.array_equal(one.reconstruction, stock.reconstruction)
    assert not np.array_equal(one.image, stock.image)
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(purify(eraser, image, base, **options).image, stock.image)


def test_purify_without_strength_is_the_autoencoder(tiny_pipe):
    """At strength 0 no step is taken."""
    image = np.zeros((16, 16, 3), np.uint8)
    eraser = Eraser(tiny_pipe, {}, "encoder.layers.0", {})
    done = purify(eraser, image, eraser.read(["a cat"]), strength=0.0)

    assert np.array_equal(done.image, done.autoencoder)
    assert np.array_equal(done.reconstruction, done.autoencoder)


def test_psnr_by_hand():
    """An error of 10 in every pixel is 20 log10 25.5 = 28.13 dB; no error is infinite."""
    image = np.full((2, 2, 3), 100, np.uint8)

    assert psnr(image, image + 10) == pytest.approx(28.131, abs=1e-3)
    assert psnr(image, image) == math.inf


def test_default_prompt_says_the_targets():
    """Objects with their article, then styles."""
    cat, apple, neon, child = (
        Request(target=t, kind=k)
        for t, k in (("cat", "object"), ("apple", "object"), ("neon", "style"), ("jane doe", "person"))
    )

    assert default_prompt([cat]) == "a cat"
    assert default_prompt([neon]) == "an image in neon style"
    assert default_prompt([neon, cat, apple]) == "a cat and an apple in neon style"
    assert default_prompt([child]) == "jane doe"


def test_geometry_is_the_pipelines():
    """The shipped base draws 64×64 with v-prediction."""
    side, scheduler = read_geometry(BASE)

    assert side == 64
    assert scheduler["prediction_type"] == "v_prediction"


def test_photo_is_resized_upright_and_on_white(tmp_path):
    """An image of another size is resized and says what size it was; transparency becomes white."""
    Image.new("RGBA", (20, 10), (255, 0, 0, 0)).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png", 16)

    assert photo.size == (20, 10)
    assert photo.pixels.shape == (16, 16, 3)
    assert (photo.pixels == 255).all()


def test_photo_of_the_right_size_is_untouched(tmp_path):
    """No resampling where none is needed."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    assert np.array_equal(read_photo(tmp_path / "a.png", 16).pixels, pixels)
