import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GIB = 2**30
LIMIT = 24

ONE_STEP = """
import json, resource, time
import torch
from diffusers import UNet2DConditionModel
from components.common.sections import read_section
from components.guidance import recipe
from components.guidance.adapters import attach, parameters_of, parametrize_in_axes
from components.guidance.params import GuidanceParams
from components.guidance.start import NAME, InitialAdapter
from components.guidance.train import train_guidance
from components.guidance.training_set import TrainingSet
from components.guidance.trajectories import TrajectoryCache

recipe.BATCH = recipe.RETAIN_BATCH = 1
params = read_section("guidance", GuidanceParams).model_copy(update={"steps": 1, "gradient_checkpointing": True})
torch.manual_seed(0)
unet = UNet2DConditionModel(  # runwayml/stable-diffusion-v1-5's unet/config.json
    sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
    layers_per_block=2,
).eval().requires_grad_(False)
weights = sum(p.numel() for p in unet.parameters())
attach(unet, NAME, rank=params.rank)
axes = parametrize_in_axes(unet, NAME, torch.eye(768)[4:])
adapter = InitialAdapter(parameters_of(unet, NAME), axes, True, lambda: torch.zeros(()))
state = torch.randn(1, 4, 64, 64)
cache = TrajectoryCache(state, torch.tensor([500]), torch.tensor([0]), torch.zeros_like(state), torch.ones_like(state))
prompt = torch.randn(1, 77, 768)
begun = time.perf_counter()
(step,) = train_guidance(unet, adapter, TrainingSet(cache, cache, prompt, prompt, torch.randn(1, 77, 768)), params)
print(json.dumps({
    "weights": weights, "loss": step.loss, "seconds": time.perf_counter() - begun,
    "moved": sum(float(p.detach().abs().sum()) for n, p in unet.named_parameters() if "lora_B" in n),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


@pytest.mark.slow
def test_stable_diffusion_takes_a_step_within_24_gib():
    """The U-Net of Stable Diffusion 1.5, random weights, takes a whole training step on this host within 24 GiB."""
    done = subprocess.run([sys.executable, "-c", ONE_STEP], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])

    assert 855e6 < found["weights"] < 865e6
    assert found["loss"] > 0
    assert found["moved"] > 0
    assert found["peak"] < LIMIT * GIB, found
