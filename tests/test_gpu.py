"""What a GPU must not change; skipped where there is none."""

import copy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.diffusion.device import accelerator_device
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.diffusion.sampling import sample
from components.diffusion.text import towers_of
from components.eraser import Eraser
from components.evaluate.drift import measure_drift
from components.evaluate.select import pick_retain
from components.guidance import recipe
from components.guidance.adapters import attach, parameters_of, parametrize_in_axes, write_adapter
from components.guidance.params import GuidanceParams
from components.guidance.start import NAME, InitialAdapter
from components.guidance.train import train_guidance
from components.guidance.training_set import TrainingSet
from components.guidance.trajectories import TrajectoryCache, cache_trajectories
from components.purify.purify import psnr, purify
from components.requests.requests import Request
from components.worlds.openmoji.judge import Judge
from components.worlds.openmoji.world import WORLD
from research.guidance.training import train_one

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
FOLDER = Path(__file__).parents[1] / "assets" / "openmoji"
BASE = BaseParams(path=FOLDER, hookpoint="encoder.layers.0", guidance_scale=3.0, solver_steps=10)
PARAMS = GuidanceParams(
    rank=16, steps=40, retain_weight=80.0, hold="null-space", precision="bf16", gradient_checkpointing=False, seed=0
)
CAT = Request(target="cat", kind="object", anchor="dog", neighbours=("fox",))
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
    return load_pipeline(FOLDER), load_pipeline(FOLDER, accelerator_device())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(request's record, table of prompts, folder of an adapter that was trained for 40 steps on the GPU)."""
    record = make_record("cat", CAT, WORLD)
    table = build_prompts({"cat": CAT}, WORLD, ConceptsParams(per_name=8, retain=200, mixed=8, seed=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "TRAJECTORIES", 32)
        patch.setattr(recipe, "RETAIN_TRAJECTORIES", 64)
        adapter = train_one(record, table, BASE, PARAMS, tmp_path_factory.mktemp("workspace"))
    return record, table, adapter.folder


def erasers(pipes, folder):
    """On either device the base with the adapter, which acts on every prompt."""
    return [
        Eraser(pipe, {}, BASE.hookpoint, {"cat": folder}, guidance_scale=3.0, solver_steps=10, guard=False)
        for pipe in pipes
    ]


def paint(eraser, prompts, seeds, variant):
    """The images of some prompts."""
    ((_, images),) = eraser.paint(eraser.read(prompts, variant=variant), seeds)
    return images


def far(images, others):
    """The mean difference of two stacks of images, in levels of 255."""
    return np.abs(images.astype(float) - others).mean()


def test_images_are_those_of_the_cpu(pipes):
    """The same seeds draw the same images on either device, to half a level of 255 on average."""
    images = []
    for pipe in pipes:
        states, empty = (towers_of(pipe).encode(texts) for texts in (PROMPTS, [""]))
        images.append(sample(pipe, states, empty, [0, 1, 2, 3], steps=10, guidance_scale=3.0))

    assert far(*images) < 0.5


def test_trajectories_stay_in_the_hosts_memory(pipes):
    """What training reads was computed on the GPU and lies on the CPU, and says what the CPU says."""
    params = PARAMS.model_copy(update={"precision": "no"})
    caches = []
    for pipe in pipes:
        states, empty = (towers_of(pipe).encode(texts) for texts in (PROMPTS, [""]))
        caches.append(
            cache_trajectories(
                pipe,
                states,
                states.map(lambda part: part.roll(1, 0)),
                empty,
                params,
                scope="erase",
                solver_steps=5,
                guidance_scale=3.0,
            )
        )

    for mine, theirs in zip(*caches, strict=True):
        assert theirs.device.type == "cpu"
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02)


def test_adapter_trained_on_the_gpu_erases_on_either_device(pipes, trained):
    """An adapter of the GPU draws on the CPU what it draws there, a dog for a cat, and leaves the empty prompt alone."""
    record, table, folder = trained
    retain = pick_retain(table[table["split"] == "evaluate"], {"cat": record}, 16, 0)["prompt"].tolist()
    judge = Judge.load(FOLDER / "judge")
    drawn, drift = [], []
    for eraser in erasers(pipes, folder):
        assert judge(paint(eraser, ["a cat"], [0], "base")).top() == ["cat"]
        drawn.append(paint(eraser, ["a cat", "a car"], [0, 1], "guidance"))
        assert judge(drawn[-1]).top() == ["dog", "car"]
        (found,) = measure_drift(eraser, retain, [["cat"]], seed=0)
        drift.append(max(bucket["value"] for bucket in found.values()))

    assert far(*drawn) < 0.5
    assert drift[1] == pytest.approx(drift[0], rel=0.1)
    assert drift[1] < 0.01


@pytest.mark.parametrize("late", [False, True])
def test_stock_pipeline_on_the_gpu_is_filtered_and_gated(tiny_pipe, make_tiny_unet, spelt_filter, tmp_path, late):
    """A pipeline that is moved to the GPU, before or after, flags there, and applies an adapter to what is flagged alone."""
    tiny_pipe.text_encoder = copy.deepcopy(tiny_pipe.text_encoder)  # other tests share it
    unet, rng = make_tiny_unet(), torch.Generator().manual_seed(0)
    for parameter in attach(unet, "r", rank=2):
        parameter.data = torch.randn(parameter.shape, generator=rng)
    write_adapter(tmp_path / "r", unet, "r", params={}, inputs={}, facts={})
    pipe = tiny_pipe if late else tiny_pipe.to("cuda")
    eraser = Eraser(pipe, {"r": spelt_filter("cat", 32)}, BASE.hookpoint, {"r": tmp_path / "r"})
    pipe.to("cuda")

    def two(variant):
        rng = [torch.Generator().manual_seed(i) for i in range(2)]
        erased = eraser.read(["a cat", "a dog"], variant=variant)
        with eraser.acting(erased):
            return pipe(**erased.for_pipeline(), num_inference_steps=2, generator=rng, output_type="np").images

    base, gated = two("base"), two("gated")

    assert (gated[1] == base[1]).all()
    assert (gated[0] != base[0]).any()


def test_purified_image_is_that_of_the_cpu(pipes, trained):
    """Inversion and resampling give the same picture on either device, to 35 dB."""
    both = erasers(pipes, trained[2])
    (image,) = paint(both[0], ["a cat"], [0], "base")
    found = [purify(eraser, image, eraser.read(["a cat"], variant="guidance")) for eraser in both]

    assert psnr(found[0].reconstruction, found[1].reconstruction) > 35
    assert psnr(found[0].image, found[1].image) > 35


def test_stable_diffusion_takes_a_step_on_the_gpu_within_24_gib():
    """The U-Net of Stable Diffusion 1.5, random weights, takes a step of the shipped batch in 24 GiB of a GPU's memory."""
    params = PARAMS.model_copy(update={"steps": 3, "gradient_checkpointing": True})
    torch.manual_seed(0)
    unet = UNet2DConditionModel(  # runwayml/stable-diffusion-v1-5's unet/config.json
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
        layers_per_block=2,
    ).eval().requires_grad_(False)  # fmt: skip
    attach(unet, NAME, rank=params.rank)
    axes = parametrize_in_axes(unet, NAME, torch.eye(768)[4:])
    adapter = InitialAdapter(parameters_of(unet, NAME), axes, null_space=True, closed_form_loss=lambda: torch.zeros(()))
    state, states = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    cache = TrajectoryCache(
        state, torch.tensor([500]), torch.tensor([0]), torch.zeros_like(state), torch.ones_like(state)
    )
    data = TrainingSet(cache, cache, states, states, torch.randn(1, 77, 768))
    torch.cuda.reset_peak_memory_stats()
    steps = train_guidance(unet, adapter, data, params)
    taken = [(step.loss, time.perf_counter()) for step in steps]
    peak = torch.cuda.max_memory_allocated() / 2**30
    sys.stdout.write(f"peak {peak:.1f} GiB, {taken[-1][1] - taken[-2][1]:.2f} s a step\n")

    assert taken[-1][0] > 0
    assert peak < 24
