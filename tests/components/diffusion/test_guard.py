"""What users do with pipelines: drawn as it was read, or refused; never unfiltered without a word."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline, LCMScheduler
from peft import LoraConfig
from PIL import Image

from components.common.errors import UserError
from components.diffusion.load import load_pipeline
from components.eraser import Eraser
from tests.standins import KINDS

HOOKPOINTS = {"sd15": "encoder.layers.1", "sd21": "encoder.layers.1", "sdxl": ["encoder.layers.1", "encoder.layers.2"]}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(params=KINDS)
def eraser(request, standin, spelt_filter):
    """A cat is erased by a filter; the pipeline is the user's own."""
    pipe = load_pipeline(standin(request.param))
    width = pipe.unet.config.cross_attention_dim
    item = spelt_filter("cat", width, pipe.tokenizer)._replace(
        directions=torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    )
    return Eraser(pipe, {"r": item}, HOOKPOINTS[request.param], {}, guidance_scale=2.0, solver_steps=1)


def others(pipe):
    """Pipelines made of the parts of `pipe`, and how each is called."""
    image, inpaint = AutoPipelineForImage2Image.from_pipe(pipe), AutoPipelineForInpainting.from_pipe(pipe)
    for other in (image, inpaint):
        other.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 2, "strength": 0.9, "image": PHOTO}
    return [(pipe, {"num_inference_steps": 1}), (image, how), (inpaint, how | {"mask_image": PHOTO.convert("L")})]


def test_words_alone_are_refused_by_every_pipeline_of_these_parts(eraser):
    """Text-to-image, image-to-image and inpainting, with words or with embeddings that the eraser did not read."""
    for pipe, how in others(eraser.pipe):
        with pytest.raises(UserError, match=r"no prompt was read for this call; draw inside `with eraser\.acting"):
            pipe(prompt="a cat", **how)
        erased, other = eraser.read(["a cat"]), eraser.read(["a cat"], variant="base")
        with eraser.acting(erased), pytest.raises(UserError, match="a prompt that this eraser did not read; pass"):
            pipe(**other.for_pipeline(), **how)


def test_what_was_read_is_drawn_by_every_pipeline_of_these_parts(eraser):
    """Inside `acting` each draws the edited prompt; with a negative prompt, several images, and with no guidance."""
    base = eraser.read(["a cat"], variant="base", negative="a cat")
    erased = eraser.read(["a cat"], negative="a cat")
    assert torch.equal(base.uncond.states, erased.uncond.states)  # a negative prompt is never edited
    for pipe, how in others(eraser.pipe):
        for more in ({}, {"num_images_per_prompt": 2}, {"guidance_scale": 1.0}):
            count = more.get("num_images_per_prompt", 1)
            drawn = []
            for each in (base, erased):
                with eraser.acting(each, images_per_prompt=count):
                    rng = [torch.Generator().manual_seed(i) for i in range(count)]
                    drawn.append(pipe(**each.for_pipeline(), **how, **more, generator=rng, output_type="np").images)
            assert drawn[0].shape == drawn[1].shape == (count, 64, 64, 3)
            assert (drawn[0] != drawn[1]).any()


def test_a_scheduler_of_few_steps_draws_what_was_read(eraser):
    """LCM without guidance, as distilled models are sampled."""
    eraser.pipe.scheduler = LCMScheduler.from_config(eraser.pipe.scheduler.config)
    erased = eraser.read(["a cat"])
    with eraser.acting(erased):
        image = eraser.pipe(**erased.for_pipeline(), num_inference_steps=2, guidance_scale=0.0).images[0]

    assert image.size == (64, 64)


def test_a_second_lora_stays_as_it_was(eraser):
    """A LoRA of the user's, loaded and active, acts inside the block and after it."""
    unet = eraser.pipe.unet
    unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_q"], init_lora_weights=False), adapter_name="mine")
    erased = eraser.read(["a dog"])
    with eraser.acting(erased):
        inside = unet.active_adapters()

    assert inside == unet.active_adapters() == ["mine"]
    assert not any(getattr(m, "disable_adapters", False) for m in unet.modules() if hasattr(m, "lora_A"))


def test_a_saved_pipeline_is_the_base(eraser, tmp_path):
    """save_pretrained writes the stock parts; what it writes is not guarded, and names no eraser."""
    eraser.pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)

    assert again("a cat", num_inference_steps=1).images[0].size == (64, 64)


def test_a_second_eraser_takes_the_guard_over(eraser):
    """Two erasers on one U-Net: the later one's prompts are drawn, the earlier one's refused."""
    later = Eraser(eraser.pipe, {}, HOOKPOINTS["sd15"], {}, solver_steps=1)

    assert later.draw("a dog").flagged == ()
    with pytest.raises(UserError, match="this U-Net belongs to an eraser"):
        eraser.draw("a dog")


def test_no_thread_draws_a_target_unfiltered(eraser):
    """Two threads, one drawing with the eraser, one calling pipelines with words: the first is always filtered, the second refused."""
    wrong, stop = [], threading.Event()
    reference = {v: np.asarray(eraser.draw("a cat", seed=1, variant=v).image) for v in ("base", "gated")}
    assert (reference["base"] != reference["gated"]).any()

    def intrude():
        pipe = AutoPipelineForImage2Image.from_pipe(eraser.pipe)
        pipe.set_progress_bar_config(disable=True)
        while not stop.is_set():
            try:
                pipe(prompt="a cat", image=PHOTO, strength=0.9, num_inference_steps=2)
                wrong.append("drawn")
            except UserError:
                pass

    with ThreadPoolExecutor(1) as pool:
        intruder = pool.submit(intrude)
        try:
            drawn = [np.asarray(eraser.draw("a cat", seed=1).image) for _ in range(10)]
        finally:
            stop.set()  # else the other thread would never end
        intruder.result()

    assert wrong == []
    assert all((image == reference["gated"]).all() for image in drawn)
