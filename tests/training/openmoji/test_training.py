import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from components.common.closure import closure
from components.common.errors import ArtifactError
from components.diffusion.load import load_pipeline
from components.worlds.openmoji.judge import Judge
from components.worlds.openmoji.scenes import scenes
from tests.states import encode
from training.openmoji import stage
from training.openmoji.captions import misspell
from training.openmoji.params import read_params
from training.openmoji.report import main
from training.openmoji.unet import build_scheduler, build_unet, draw_timesteps, train_unet
from training.openmoji.vae import build_vae, vae_loss

ROOT = Path(__file__).parents[3]
BASE = ROOT / "assets" / "openmoji"
LISTED = scenes(singles=1, pairs=40, seed=0)
SINGLES = len(LISTED) - 40


def train(tiny_pipe, path, *, take=4):
    """Two-level U-Net on random latents, four steps of four; returns (its moving average, the losses)."""
    unet = copy.deepcopy(tiny_pipe.unet).requires_grad_(True)
    ema = copy.deepcopy(unet).requires_grad_(False)
    latents = np.random.default_rng(0).normal(size=(len(LISTED), 4, 8, 8)).astype(np.float16)
    loop = train_unet(
        unet, ema, tiny_pipe.text_encoder, tiny_pipe.tokenizer, latents, LISTED,
        scaling=1.0, singles=SINGLES, steps=4, batch=4, cooldown=2, checkpoint=path, every=2,
    )  # fmt: skip
    losses = [step.loss for _, step in zip(range(take), loop, strict=False)]
    return ema, losses


def test_unet_killed_and_resumed_ends_in_the_same_weights(tiny_pipe, tmp_path):
    """A training that is abandoned after its checkpoint and started again equals one that was not."""
    whole, losses = train(tiny_pipe, tmp_path / "whole.safetensors")
    train(tiny_pipe, tmp_path / "cut.safetensors", take=3)
    resumed, rest = train(tiny_pipe, tmp_path / "cut.safetensors")

    assert rest == pytest.approx(losses[2:], rel=1e-5)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_scheduler_ends_in_pure_noise():
    """Of the last timestep's signal nothing is left, and of the first one's nearly all."""
    alphas = build_scheduler().alphas_cumprod

    assert alphas[-1].item() == pytest.approx(0.0, abs=1e-6)
    assert alphas[0].item() > 0.99


def test_draw_timesteps_covers_all_noise_levels():
    """Of 25 timesteps exactly one falls into each fortieth part of the schedule, in random order."""
    found = draw_timesteps(25, torch.Generator().manual_seed(0))

    assert sorted((found // 40).tolist()) == list(range(25))
    assert found.tolist() != sorted(found.tolist())


def test_vae_loss_by_hand():
    """Constant images one apart: |1| + 2 · 1² and no gradient term, plus β KL; the gradient term at one edge of height 1."""
    black, white = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    edge = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])

    assert vae_loss(white, black, torch.tensor(5.0), 0.1).item() == pytest.approx(1 + 2 + 0.5)
    assert vae_loss(edge, black, torch.tensor(0.0), 0.1).item() == pytest.approx(0.5 + 2 * 0.5 + 0.5 * 1)


def test_restore_goes_on_from_the_weights_that_ship(tmp_path, monkeypatch):
    """Without training state every part is read from the packed base, which then draws as the pipeline does; with neither it is refused."""
    monkeypatch.setattr(stage, "WORK", tmp_path)
    pipe = load_pipeline(BASE)
    tokenizer, encoder = stage.open_text()
    x, states = torch.randn(1, 4, 16, 16), encode(pipe.text_encoder, pipe.tokenizer, ["a cat"])
    unet = stage.restore(build_unet(), "unet", "ema")

    assert torch.equal(encode(encoder, tokenizer, ["a cat"]), states)
    assert torch.equal(unet(x, 500, states).sample, pipe.unet(x, 500, states).sample)
    assert stage.restore(build_vae(), "vae", "vae").config.latent_channels == 4
    assert torch.equal(stage.open_judge().rest.weight, Judge.load(BASE / "judge").net.rest.weight)
    bare = stage.read_params().model_copy(update={"base": tmp_path})
    monkeypatch.setattr(stage, "read_params", lambda: bare)
    with pytest.raises(
        ArtifactError, match=r"vae.safetensors is missing; train it: python -m training.openmoji.stage vae"
    ):
        stage.restore(build_vae(), "vae", "vae")


def test_misspell_touches_one_word():
    """One word of at least three letters is changed, and it keeps its first letter; a prompt without one stays."""
    rng = np.random.default_rng(0)
    changed = [misspell("a kitten", rng) for _ in range(50)]

    assert {"a k i t t e n", "a kiten", "a ktiten"} <= set(changed)
    assert all(text.startswith("a k") for text in changed)
    assert misspell("a ox", rng) == "a ox"


def test_settings_are_those_that_the_base_was_packed_with():
    """params.yaml of the training says what the sidecar of the base that ships records, places aside."""
    settings = read_params()
    recorded = json.loads((BASE / "artifact.json").read_text())["params"]

    assert settings.model_dump(exclude={"base", "clip"}) == recorded
    assert (settings.base, settings.judge, settings.clip) == (
        Path("assets/openmoji"), Path("assets/openmoji/judge"), Path("assets/clip"),
    )  # fmt: skip


def test_training_is_frozen_and_depends_on_its_own_code():
    """Its dvc.yaml names every file that its code reaches and every file of the world, and `dvc repro` leaves it alone."""
    stage_ = yaml.safe_load((ROOT / "training" / "openmoji" / "dvc.yaml").read_text())["stages"]["openmoji"]
    data = {f"components/worlds/openmoji/{name}.yaml" for name in ("drawings", "templates", "world")}

    assert set(stage_["deps"]) == {path.as_posix() for path in closure("training.openmoji.stage")} | data
    assert stage_["frozen"]


def test_product_never_writes_the_base():
    """The product's dvc.yaml has no stage of the base, and none of its outputs is in assets."""
    text = (ROOT / "dvc.yaml").read_text()

    assert "openmoji" not in yaml.safe_load(text)["stages"]
    assert "persist" not in text


def test_report_refuses_too_few_images(capsys, monkeypatch):
    """`python -m training.openmoji.report` names what it would measure, and refuses fewer images than its grids show."""
    monkeypatch.setattr(sys, "argv", ["report", "--dry-run", "--seeds", "2"])
    main()
    assert capsys.readouterr().out == "would measure assets/openmoji with 2 seeds, 400 pairs, 10 steps\n"
    monkeypatch.setattr(sys, "argv", ["report", "--pairs", "31"])

    with pytest.raises(SystemExit):
        main()
    assert "--pairs is 31; give at least 32" in capsys.readouterr().err
