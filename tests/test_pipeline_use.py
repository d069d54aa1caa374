"""What users do with pipelines: each row of the table in docs/your-model.md is done here, and works or is refused as it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, LCMScheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from components.common.errors import UserError
from components.diffusion.load import load_pipeline
from components.eraser import Eraser
from components.guidance.adapters import attach, write_adapter

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (.+?) \| (works|refused)(?:, | )?(.*?) ?\|$", re.MULTILINE)
HOOKPOINTS: dict[str, Any] = {"sd15": "encoder.layers.1", "sdxl": ["encoder.layers.1", "encoder.layers.2"]}
CPU = torch.device("cpu")
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def rows() -> dict[str, str]:
    """What the page says of each use, works or refused."""
    text = (ROOT / "docs" / "your-model.md").read_text(encoding="utf-8")
    table = text.partition("## 6.")[2].partition("\n## ")[0]
    return {use: end for use, end, _ in ROW.findall(table)}


class Subject(NamedTuple):
    """A user's pipeline, and how its eraser is opened: a cat is erased by a filter and an adapter."""

    pipe: Any
    open: Callable[[], Eraser]
    load: Callable[[], Eraser]
    """Another one, on a pipeline of its own."""


@pytest.fixture(scope="session", params=["sdxl", pytest.param("sd15", marks=pytest.mark.slow)])
def parts(request, standin, spelt_filter, tmp_path_factory):
    """(kind, filter, adapter's folder), which every use of that kind shares."""
    kind, folder = request.param, tmp_path_factory.mktemp("adapter") / "r"
    pipe = load_pipeline(standin(kind))
    width, rng = pipe.unet.config.cross_attention_dim, torch.Generator().manual_seed(0)
    item = spelt_filter("cat", width, pipe.tokenizer)._replace(directions=torch.randn(4, width, generator=rng))
    for parameter in attach(pipe.unet, "r", rank=2):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng)
    write_adapter(folder, pipe.unet, "r", params={}, inputs={}, facts={})
    return kind, item, folder


@pytest.fixture
def subject(parts, standin):
    """A pipeline of its own for every use."""
    kind, item, folder = parts
    pipe = load_pipeline(standin(kind))
    how: dict[str, Any] = {"guidance_scale": 2.0, "solver_steps": 2}

    def opened(pipe: Any) -> Eraser:
        return Eraser(pipe, {"r": item}, HOOKPOINTS[kind], {"r": folder}, **how)

    return Subject(pipe, lambda: opened(pipe), lambda: opened(load_pipeline(standin(kind))))


def drawn(eraser: Eraser, prompt: str = "a cat", **how: Any) -> np.ndarray:
    """The eraser's own image."""
    return np.asarray(eraser.draw(prompt, seed=1, **how).image).astype(int)


def called(eraser: Eraser, pipe: Any, count: int = 1, **how: Any) -> np.ndarray:
    """Images of a cat by a call of a pipeline inside `acting`, which must not be the base's."""
    found = []
    for variant in ("base", "gated"):
        erased = eraser.read(["a cat"], variant=variant)
        rng = [torch.Generator().manual_seed(i) for i in range(count)]
        with eraser.acting(erased, images_per_prompt=count):
            given = erased.for_pipeline() | {"num_inference_steps": 2, "generator": rng, "output_type": "np"} | how
            found.append(pipe(**given).images)
    assert np.isfinite(found[1]).all()
    assert (found[0] != found[1]).any(axis=(1, 2, 3)).all()
    return found[1]


def other_pipelines(subject: Subject) -> None:
    eraser = subject.open()
    for kind in (AutoPipelineForImage2Image, AutoPipelineForInpainting):
        pipe = kind.from_pipe(subject.pipe)
        pipe.set_progress_bar_config(disable=True)
        mask = {"mask_image": PHOTO.convert("L")} if kind is AutoPipelineForInpainting else {}
        called(eraser, pipe, image=PHOTO, strength=0.9, **mask)


def several_images(subject: Subject) -> None:
    assert len(called(subject.open(), subject.pipe, 3, num_images_per_prompt=3)) == 3


def negative_prompt(subject: Subject) -> None:
    eraser = subject.open()
    stock, erased = (eraser.read(["a dog"], variant=v, negative="a cat") for v in ("base", "gated"))
    assert torch.equal(stock.uncond.states, erased.uncond.states)
    assert (drawn(eraser, negative="a dog") != drawn(eraser)).any()


def in_words(subject: Subject) -> None:
    subject.open()
    subject.pipe("a cat", num_inference_steps=1)


def own_embeddings(subject: Subject) -> None:
    eraser = subject.open()
    erased, stock = (eraser.read(["a cat"], variant=v) for v in ("gated", "base"))
    weighted = stock.for_pipeline() | {"prompt_embeds": 1.1 * stock.cond.states}  # as compel weighs a word
    with pytest.raises(UserError, match="no prompt was read for this call"):
        subject.pipe(**weighted, num_inference_steps=1)
    with eraser.acting(erased):
        subject.pipe(**weighted, num_inference_steps=1)


def clip_skip(subject: Subject) -> None:
    eraser = subject.open()
    assert (called(eraser, subject.pipe, clip_skip=1) == called(eraser, subject.pipe)).all()  # no effect
    encoder = subject.pipe.text_encoder
    object.__setattr__(encoder, "text_model", encoder)  # where diffusers looks for it, as in transformers 4
    with eraser.acting(eraser.read(["a cat"])):
        subject.pipe("a cat", clip_skip=1, num_inference_steps=1)


def learn_word(pipe: Any) -> None:
    """Loads a learned word of two vectors into the first text encoder."""
    rng = torch.Generator().manual_seed(0)
    width = pipe.text_encoder.config.hidden_size
    how = {"text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
    pipe.load_textual_inversion(torch.randn(2, width, generator=rng), "<my-cat>", **how)


def learned_word(subject: Subject) -> None:
    before = subject.open()
    wanted = drawn(before)
    learn_word(subject.pipe)
    with pytest.raises(UserError, match="the tokenizer has learned the token '<my-cat>"):
        before.read(["a <my-cat>"])
    with pytest.raises(UserError, match="the tokenizer has learned the token '<my-cat>"):
        subject.open().read(["a cat"])
    subject.pipe.unload_textual_inversion(tokenizer=subject.pipe.tokenizer, text_encoder=subject.pipe.text_encoder)
    assert (drawn(subject.open()) == wanted).all()
    learn_word(subject.pipe)
    subject.open().read(["a cat"])


def few_steps(subject: Subject) -> None:
    subject.pipe.scheduler = LCMScheduler.from_config(subject.pipe.scheduler.config)
    eraser = subject.open()
    for scale in (0.0, 1.0):
        called(eraser, subject.pipe, guidance_scale=scale)


def weights_of_a_lora(subject: Subject, part: str = "unet") -> dict[str, torch.Tensor]:
    """A user's LoRA on keys and queries, as its file has it."""
    model = load_pipeline(Path(subject.pipe.config._name_or_path)).components[part]
    targets = ["attn2.to_k", "attn2.to_q"] if part == "unet" else ["q_proj"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), adapter_name="mine")
    return {f"{part}.{name}": value for name, value in get_peft_model_state_dict(model, adapter_name="mine").items()}


def own_lora(subject: Subject) -> None:
    pipe, mine = subject.pipe, weights_of_a_lora(subject)
    eraser = subject.open()
    without = drawn(eraser, "a dog")
    pipe.load_lora_weights(mine, adapter_name="mine")
    after = [drawn(eraser), drawn(eraser, "a dog")]
    again = subject.open()
    before = [drawn(again), drawn(again, "a dog")]
    stock = drawn(again, "a dog", variant="base")
    assert (after[1] != without).any()
    assert (after[1] == stock).all()
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
    assert (before[0] != drawn(again, variant="filter")).any()  # our adapter acts beside it
    pipe.set_adapters(["mine"], [0.5])
    half = drawn(again, "a dog")
    assert (half != stock).any()
    assert (half != without).any()
    assert (drawn(again) != drawn(again, variant="filter")).any()
    assert pipe.unet.active_adapters() == ["mine"]


def lora_in_the_encoder(subject: Subject) -> None:
    eraser = subject.open()
    subject.pipe.load_lora_weights(weights_of_a_lora(subject, "text_encoder"), adapter_name="mine")
    eraser.read(["a cat"])


def fused_lora(subject: Subject) -> None:
    pipe, eraser = subject.pipe, subject.open()
    pipe.load_lora_weights(weights_of_a_lora(subject, "text_encoder"), adapter_name="text")
    pipe.fuse_lora(adapter_names=["text"], components=["text_encoder"])
    pipe.unload_lora_weights()
    with pytest.raises(UserError, match="the weights of a text encoder are not what they were"):
        eraser.read(["a cat"])
    eraser = subject.open()
    pipe.load_lora_weights(weights_of_a_lora(subject), adapter_name="mine")
    pipe.set_adapters(["mine"])
    pipe.fuse_lora(adapter_names=["mine"], components=["unet"])
    drawn(eraser)


def weight_of_ours(subject: Subject) -> None:
    eraser = subject.open()
    subject.pipe.set_adapters(["r"], [0.0])
    drawn(eraser)


def scale_of_a_call(subject: Subject) -> None:
    eraser = subject.open()
    called(eraser, subject.pipe, cross_attention_kwargs={"scale": 0.0})


def unloaded(subject: Subject) -> None:
    eraser = subject.open()
    subject.pipe.unload_lora_weights()
    drawn(eraser)


def half_precision(subject: Subject) -> None:
    wanted = drawn(subject.open())
    for dtype in (torch.bfloat16, torch.float16):
        subject.pipe.to(dtype)
        eraser = subject.open()
        assert np.abs(drawn(eraser) - wanted).mean() < 0.2 * np.abs(drawn(eraser, variant="base") - wanted).mean()
        called(eraser, subject.pipe)


def offloaded(subject: Subject) -> None:
    pipe, eraser = subject.pipe, subject.open()
    wanted = [drawn(eraser, prompt) for prompt in ("a cat", "a dog")]
    images = called(eraser, pipe)
    models = [pipe.components[n] for n in ("text_encoder", "text_encoder_2", "unet", "vae") if n in pipe.components]
    hook = None
    for model in models:  # what enable_model_cpu_offload does, which asks for a GPU
        _, hook = accelerate.cpu_offload_with_hook(model, CPU, prev_module_hook=hook)
    assert all((drawn(eraser, p) == w).all() for p, w in zip(("a cat", "a dog"), wanted, strict=True))
    for model in models:  # and enable_sequential_cpu_offload
        accelerate.hooks.remove_hook_from_module(model, recurse=True)
        accelerate.cpu_offload(model, CPU)
    assert next(pipe.unet.parameters()).is_meta
    assert all((drawn(eraser, p) == w).all() for p, w in zip(("a cat", "a dog"), wanted, strict=True))
    assert (called(eraser, pipe) == images).all()


def slices(subject: Subject) -> None:
    subject.pipe.enable_attention_slicing()
    subject.pipe.vae.enable_slicing()
    subject.pipe.vae.enable_tiling()
    called(subject.open(), subject.pipe)


def saved(subject: Subject) -> None:
    subject.open()
    subject.pipe.unet.save_pretrained("not-written")


def in_threads(subject: Subject) -> None:
    eraser = subject.open()
    wanted, read = drawn(eraser), eraser.read(["a cat"])
    tasks = [lambda: drawn(eraser), lambda: eraser.read(["a cat"]), lambda: next(eraser.paint(read, [1]))]
    with ThreadPoolExecutor(3) as pool:
        again, found, painted = (each.result() for each in [pool.submit(task) for task in tasks])
    assert (again == wanted).all()
    assert torch.equal(found.cond.states, read.cond.states)
    assert (painted[1][0].astype(int) == wanted).all()


def opened_in_threads(subject: Subject) -> None:
    wanted = drawn(subject.open())
    with ThreadPoolExecutor(2) as pool:
        erasers = [each.result() for each in [pool.submit(subject.load) for _ in range(2)]]
    assert all((drawn(eraser) == wanted).all() for eraser in erasers)


USES: dict[str, tuple[Callable[[Subject], None], str]] = {
    "image-to-image, inpainting, `from_pipe`, AutoPipeline": (other_pipelines, ""),
    "a negative prompt": (negative_prompt, ""),
    "`num_images_per_prompt`": (several_images, ""),
    "LCM or turbo, `guidance_scale` of 1 or less": (few_steps, ""),
    "bf16, fp16": (half_precision, ""),
    "`enable_model_cpu_offload`, `enable_sequential_cpu_offload`": (offloaded, ""),
    "attention slicing, VAE slicing and tiling": (slices, ""),
    "a LoRA of your own, `set_adapters` on it": (own_lora, ""),
    "`read`, `draw` and `paint` from several threads": (in_threads, ""),
    "`Eraser.open` in several threads": (opened_in_threads, ""),
    "a prompt in words": (in_words, "no prompt was read for this call; draw inside `with eraser.acting"),
    "`prompt_embeds` of your own or of compel": (own_embeddings, "a prompt that this eraser did not read; pass"),
    "`clip_skip` with a prompt in words": (clip_skip, "a prompt that this eraser did not read; pass"),
    "a textual inversion, loaded before or after": (learned_word, "learned the token '<my-cat>'?.*unload_textual"),
    "a LoRA with a text encoder part": (lora_in_the_encoder, "a text encoder carries a LoRA.*without its text part"),
    "`fuse_lora` after the eraser was opened": (fused_lora, "a LoRA is fused into the layers of the adapter r"),
    "`set_adapters` on the eraser's adapters": (weight_of_ours, "the adapter r was given the weight 0, and it erases"),
    "`cross_attention_kwargs` with a scale": (scale_of_a_call, "has a scale, which would weigh the eraser's adapters"),
    "`unload_lora_weights`, `delete_adapters`": (unloaded, "the adapter r was taken out of the U-Net; open pipeline"),
    "`save_pretrained` with adapters": (saved, "save_pretrained would write a U-Net with adapters in a form"),
}


def test_the_page_lists_every_use():
    """The table of the page and the uses below are the same, with the same end."""
    assert rows() == {use: "refused" if said else "works" for use, (_, said) in USES.items()}


@pytest.mark.parametrize("use", list(USES))
def test_a_use_ends_as_the_page_says(use, subject):
    """It draws what was read, or ends with one sentence; never a traceback, never an unfiltered image."""
    act, said = USES[use]
    if not said:
        act(subject)
        return
    with pytest.raises(UserError, match=said) as refused:
        act(subject)
    assert "\n" not in str(refused.value)
