"""What a GPU must not change; skipped where there is none."""

import copy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from components.filter.install import install
from diffusers import UNet2DConditionModel

from components.collect.concepts import build_prompts
from components.common.sections import load_params
from components.diffusion.encode import encode
from components.diffusion.load import accelerator_device, load_pipeline
from components.diffusion.sampling import sample
from components.evaluate.images import Picture, Studio
from components.evaluate.stage import measure_drift, pick_retain
from components.filter.encoder import FilteredTextEncoder
from components.guidance.adapters import attach, load_adapters
from components.guidance.gating import gate_by_detection
from components.guidance.train import Cache, cache_trajectories, train_guidance
from components.purify.purify import psnr, purify
from components.requests.requests import Request
from components.worlds.openmoji.judge import Judge
from research.guidance.training import train_one

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
BASE = Path(__file__).parents[1] / "assets" / "openmoji"
CAT = {"cat": Request(target="cat", kind="object", anchor="dog", neighbours=("fox",))}
PROMPTS = ["a cat", "a car in neon style", "a lion beside a tree", "an umbrella"]


@pytest.fixture(autouse=True, scope="module")
def _gpu():
    """Lets accelerate have the GPU, which the suite denies it, and computes in whole float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACCELERATE_USE_CPU")
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def pipes():
    """The base on the CPU, and with U-Net and VAE on the GPU."""
    assert accelerator_device().type == "cuda"
    return load_pipeline(BASE), load_pipeline(BASE, accelerator_device())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(table of prompts, folder of an adapter that was trained for a few steps on the GPU)."""
    table = build_prompts(CAT, per_name=8, retain=200, mixed=8, seed=0)
    params = load_params()
    short = params.guidance.model_copy(update={"steps": 40, "trajectories": 32, "retain_trajectories": 64})
    return table, train_one(params, CAT, table, tmp_path_factory.mktemp("room"), short).folder


def far(images, others):
    """The mean difference of two stacks of images, in levels of 255."""
    return np.abs(images.astype(float) - others).mean()


def test_images_are_those_of_the_cpu(pipes):
    """The same seeds draw the same images on either device, to half a level of 255 on average."""
    images = []
    for pipe in pipes:
        states, empty = (encode(pipe.text_encoder, pipe.tokenizer, texts) for texts in (PROMPTS, [""]))
        images.append(sample(pipe, states, empty, [0, 1, 2, 3], steps=10, guidance_scale=3.0))

    assert far(*images) < 0.5


def test_trajectories_stay_in_the_hosts_memory(pipes):
    """What training reads was computed on the GPU and lies on the CPU, and says what the CPU says."""
    params = load_params().guidance.model_copy(update={"precision": "no"})
    caches = []
    for pipe in pipes:
        states, empty = (encode(pipe.text_encoder, pipe.tokenizer, texts) for texts in (PROMPTS, [""]))
        caches.append(cache_trajectories(pipe, states, states.roll(1, 0), empty, params, scope="erase"))

    for mine, theirs in zip(*caches, strict=True):
        assert theirs.device.type == "cpu"
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02)


def test_adapter_trained_on_the_gpu_erases_on_either_device(pipes, trained):
    """An adapter of the GPU draws on the CPU what it draws there, a dog for a cat, and leaves the empty prompt alone."""
    table, folder = trained
    held = table[table["split"] == "evaluate"]
    params, judge = load_params(), Judge.load(BASE / "judge")
    drawn, drift = [], []
    for pipe in pipes:
        studio = Studio(pipe, {}, params.base.hookpoint, {"cat": folder}, params.evaluate)
        assert judge(studio.draw([Picture("a cat", 0)])).top() == ["cat"]
        drawn.append(studio.draw([Picture("a cat", 0), Picture("a car", 1)], adapters=["cat"]))
        assert judge(drawn[-1]).top() == ["dog", "car"]
        drift.append(
            max(b["value"] for b in measure_drift(studio, ["cat"], pick_retain(held, CAT, 16, 0), params).values())
        )

    assert far(*drawn) < 0.5
    assert drift[1] == pytest.approx(drift[0], rel=0.1)
    assert drift[1] < 0.01


@pytest.mark.parametrize("late", [False, True])
def test_stock_pipeline_on_the_gpu_is_filtered_and_gated(tiny_pipe, spelt_filter, late):
    """A pipeline that is moved to the GPU, before or after, flags there, and applies an adapter to what is flagged alone."""
    tiny_pipe.text_encoder = copy.deepcopy(tiny_pipe.text_encoder)  # other tests share it
    rng = torch.Generator().manual_seed(0)
    for parameter in attach(tiny_pipe.unet, "r", parameters="xattn", rank=2, seed=0):
        parameter.data = torch.randn(parameter.shape, generator=rng)
    tiny_pipe.unet.requires_grad_(False).disable_adapters()
    pipe = tiny_pipe if late else tiny_pipe.to("cuda")

    def two():
        rng = [torch.Generator().manual_seed(i) for i in range(2)]
        return pipe(["a cat", "a dog"], num_inference_steps=2, generator=rng, output_type="np").images

    base = None if late else two()
    encoder = FilteredTextEncoder(pipe.text_encoder, {"r": spelt_filter("cat", 32)}, "encoder.layers.0")
    install(pipe, encoder)
    undo = gate_by_detection(pipe, encoder)
    pipe.to("cuda")
    gated = two()
    undo()
    pipe.unet.disable_adapters()
    base = two() if late else base

    assert (gated[1] == base[1]).all()
    assert (gated[0] != base[0]).any()


def test_purified_image_is_that_of_the_cpu(pipes, trained):
    """Inversion and resampling give the same picture on either device, to 35 dB."""
    pipe = pipes[0]
    states, empty = (encode(pipe.text_encoder, pipe.tokenizer, texts) for texts in (["a cat"], [""]))
    (image,) = sample(pipe, states, empty, [0], steps=10, guidance_scale=3.0)
    found = []
    for pipe in pipes:
        load_adapters(pipe, {"cat": trained[1]})
        found.append(purify(pipe, image, ["cat"], prompt="a cat", guidance_scale=3.0))

    assert psnr(found[0].reconstruction, found[1].reconstruction) > 35
    assert psnr(found[0].image, found[1].image) > 35


def test_stable_diffusion_takes_a_step_on_the_gpu_within_24_gib():
    """The U-Net of Stable Diffusion 1.5, random weights, takes a step of the shipped batch in 24 GiB of a GPU's memory."""
    settings = load_params().guidance.model_copy(update={"steps": 3, "gradient_checkpointing": True})
    torch.manual_seed(0)
    unet = UNet2DConditionModel(  # runwayml/stable-diffusion-v1-5's unet/config.json
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
        layers_per_block=2,
    ).eval().requires_grad_(False)  # fmt: skip
    parameters = attach(unet, "default", parameters=settings.parameters, rank=settings.rank, seed=0)
    state, spoken = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    cache = Cache(state, torch.tensor([500]), torch.tensor([0]), torch.zeros_like(state), torch.ones_like(state))
    torch.cuda.reset_peak_memory_stats()
    steps = train_guidance(unet, parameters, cache, cache, spoken, spoken, torch.randn(1, 77, 768), settings)
    taken = [(step.loss, time.perf_counter()) for step in steps]
    peak = torch.cuda.max_memory_allocated() / 2**30
    sys.stdout.write(f"peak {peak:.1f} GiB, {taken[-1][1] - taken[-2][1]:.2f} s a step\n")

    assert taken[-1][0] > 0
    assert peak < 24
