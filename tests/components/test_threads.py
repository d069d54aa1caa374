"""What erasers share with other threads of their process: the loading of models, hooks, the default float type, the autoencoder."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.hooks import RemovableHandle

from components.common.variants import VARIANTS
from components.diffusion.hooks import rewrite_hookpoint
from components.diffusion.load import load_pipeline
from components.diffusion.text import load_towers
from components.eraser import Eraser
from components.guidance.adapters import attach, load_adapters, write_adapter
from components.purify import purify as module

HOOKPOINT = "encoder.layers.0"


def at_once(*tasks):
    """Runs every task in a thread of its own, all begun together, and returns what they return."""
    barrier = threading.Barrier(len(tasks))

    def begin(task):
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [each.result() for each in [pool.submit(begin, task) for task in tasks]]


@pytest.fixture
def intact(monkeypatch):
    """Puts back what a loading that is not alone would leave replaced in torch, and lets threads switch often."""
    monkeypatch.setattr(torch.nn.Module, "register_parameter", torch.nn.Module.register_parameter)
    for name in ("normal_", "uniform_", "xavier_uniform_", "kaiming_uniform_", "zeros_", "ones_"):
        monkeypatch.setattr(torch.nn.init, name, getattr(torch.nn.init, name))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("intact")
def test_models_are_opened_one_after_the_other(standin, tmp_path):
    """Pipelines, towers and adapters that three threads open at once have their values, and modules made afterwards too."""
    folder = standin("sd15", "plain")
    pipe = load_pipeline(folder)
    attach(pipe.unet, "r", rank=2)
    write_adapter(tmp_path / "r", pipe.unet, "r", params={}, inputs={}, facts={})

    def adapted():
        found = load_pipeline(folder)
        load_adapters(found, {"r": tmp_path / "r"})
        return [found.unet, found.vae, found.text_encoder]

    def read():
        return [tower.encoder for _ in range(3) for tower in load_towers(folder).all]

    opened = [part for parts in at_once(adapted, adapted, read) for part in parts]
    assert len(opened) == 9
    assert not any(weight.is_meta for part in opened for weight in part.parameters())
    made = torch.nn.Linear(64, 64).weight
    assert made.device.type == "cpu"
    assert float(made.std()) > 0


def test_two_threads_never_lose_a_hook(tiny_encoder):
    """Threads that hook one module at the same moment each see their own pass, though torch counts hooks without a lock.

    Under a trace function, as a debugger's, a thread may stop anywhere: here between reading and raising the counter.
    """
    ids = torch.tensor([[1, 5, 2]])

    def slow(frame, _event, _argument):
        if frame.f_code is not RemovableHandle.__init__.__code__:
            return None
        time.sleep(0.02)
        return slow

    def seen():
        found = []
        sys.settrace(slow)
        try:
            hook = rewrite_hookpoint(tiny_encoder, HOOKPOINT, found.append)
            hook.__enter__()
        finally:
            sys.settrace(None)
        tiny_encoder(ids)
        hook.__exit__(None, None, None)
        return len(found)

    assert at_once(seen, seen, seen) == [1, 1, 1]


def test_another_float_type_changes_no_image(tiny_pipe, spelt_filter):
    """While another thread opens a model in half precision, torch's default type is that of the whole process: images stay the same."""
    eraser = Eraser(tiny_pipe, {"r": spelt_filter("cat", 32)}, HOOKPOINT, {}, guidance_scale=2.0, solver_steps=2)
    draw = lambda: [np.asarray(eraser.draw("a cat", seed=1, variant=variant).image) for variant in VARIANTS]  # noqa: E731
    wanted = draw()
    try:
        torch.set_default_dtype(torch.float16)
        found = draw()
    finally:
        torch.set_default_dtype(torch.float32)

    np.testing.assert_array_equal(found, wanted)


def test_purifying_never_uses_the_autoencoder_beside_a_drawing(tiny_pipe, monkeypatch):
    """An autoencoder in half precision is converted and back while it decodes: purifying holds the turn for that as drawing does."""
    eraser, alone = Eraser(tiny_pipe, {}, HOOKPOINT, {}, guidance_scale=2.0), []
    for name in ("encode_image", "decode_latents"):
        before = getattr(module, name)

        def watched(*args, before=before):
            alone.append(eraser._drawing.locked())
            return before(*args)

        monkeypatch.setattr(module, name, watched)
    module.purify(eraser, np.zeros((16, 16, 3), np.uint8), eraser.read(["a cat"]), steps=2)

    assert alone == [True, True]
