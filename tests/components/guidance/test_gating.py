import pytest
import torch
from peft.tuners.lora import LoraLayer

from components.common.errors import UserError
from components.diffusion.encode import encode
from components.evaluate.images import Picture, Studio
from components.evaluate.params import EvaluateParams, SizeParams
from components.filter.encoder import FilteredTextEncoder
from components.filter.install import install
from components.guidance.adapters import attach, use_adapters, write_adapter
from components.guidance.gating import gate_adapters, gate_by_detection

HOOKPOINT = "encoder.layers.0"
WIDTH = 32


def loaded(pipe, *names):
    """`pipe` with adapters of those names that change something, all switched off."""
    for seed, name in enumerate(names):
        attach(pipe.unet, name, parameters="xattn", rank=2, seed=seed)
        rng = torch.Generator().manual_seed(seed)
        for key, value in pipe.unet.named_parameters():
            if f".lora_B.{name}." in key:
                value.data = torch.randn(value.shape, generator=rng)
    pipe.unet.requires_grad_(False).disable_adapters()
    return pipe


@torch.no_grad()
def run(pipe, prompts):
    states = encode(pipe.text_encoder, pipe.tokenizer, prompts)
    x = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return pipe.unet(x, torch.full((len(prompts),), 400), states).sample


def test_gated_rows_are_those_of_their_own_adapters(tiny_pipe):
    """In one batch each row comes out as with the adapters that are gated to it, alone; a row of none is the base's, to the bit."""
    pipe = loaded(tiny_pipe, "r", "s")
    prompts = ["a cat", "a dog", "a car", ""]
    alone = {}
    for names in ((), ("r",), ("s",), ("r", "s")):
        with use_adapters(pipe, names):
            alone[names] = run(pipe, prompts)
    rows = {"r": torch.tensor([True, False, True, False]), "s": torch.tensor([False, True, True, False])}
    with gate_adapters(pipe, rows):
        mixed = run(pipe, prompts)

    for row, names in enumerate((("r",), ("s",), ("r", "s"))):
        torch.testing.assert_close(mixed[row], alone[names][row])
        assert not torch.allclose(mixed[row], alone[()][row])
    assert torch.equal(mixed[3], alone[()][3])


def test_gate_leaves_scales_as_they_were(tiny_pipe):
    """After the block, and after an error in it, adapters act on all rows again."""
    pipe = loaded(tiny_pipe, "r")

    def scales():
        return [dict(m.scaling) for m in pipe.unet.modules() if isinstance(m, LoraLayer)]

    before = scales()
    rows = {"r": torch.tensor([True, False])}
    with gate_adapters(pipe, rows):
        inside = scales()
    after = scales()
    with pytest.raises(TypeError), gate_adapters(pipe, rows):
        pipe.unet()

    assert all(each["r"].flatten().tolist() == [1, 0] for each in inside)
    assert before == after == scales()


def draw(pipe, **asked):
    """Arrays of what `pipe` draws of two prompts, two images each."""
    rng = [torch.Generator().manual_seed(i) for i in range(4)]
    return pipe(
        ["a cat", "a dog"], num_images_per_prompt=2, num_inference_steps=2, generator=rng, output_type="np", **asked
    ).images


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_pipeline_applies_adapters_to_flagged_prompts_alone(tiny_pipe, spelt_filter, scale):
    """A stock pipeline's call, with guidance or without: images of the unflagged prompt keep their bits, the others change."""
    pipe = loaded(tiny_pipe, "r")
    base = draw(pipe, guidance_scale=scale)
    encoder = FilteredTextEncoder(pipe.text_encoder, {"r": spelt_filter("cat", WIDTH)}, HOOKPOINT)
    restore = install(pipe, encoder)
    undo = gate_by_detection(pipe, encoder)
    gated = draw(pipe, guidance_scale=scale)
    undo()
    restore()
    again = draw(pipe, guidance_scale=scale)

    assert (gated[2:] == base[2:]).all()
    assert (gated[:2] != base[:2]).any()
    assert (again == base).all()


def test_pipeline_gates_adapters_that_were_switched_on(tiny_pipe, spelt_filter):
    """What diffusers loads is on at once; gated, it is off wherever nothing is flagged, though it was loaded after the gate."""
    base = draw(tiny_pipe)
    encoder = FilteredTextEncoder(tiny_pipe.text_encoder, {"r": spelt_filter("cat", WIDTH)}, HOOKPOINT)
    install(tiny_pipe, encoder)
    gate_by_detection(tiny_pipe, encoder)
    pipe = loaded(tiny_pipe, "r")
    pipe.unet.set_adapter(["r"])
    pipe.unet.enable_adapters()
    gated = draw(pipe)

    assert (gated[2:] == base[2:]).all()
    assert (gated[:2] != base[:2]).any()


def test_pipeline_applies_an_adapter_without_a_filter_to_every_prompt(tiny_pipe, spelt_filter):
    """A request that has guidance alone is erased whatever the filters of the others say."""
    pipe = loaded(tiny_pipe, "other")
    base = draw(pipe)
    encoder = FilteredTextEncoder(pipe.text_encoder, {"r": spelt_filter("cat", WIDTH)}, HOOKPOINT)
    install(pipe, encoder)
    gate_by_detection(pipe, encoder)
    gated = draw(pipe)

    assert all((gated[i] != base[i]).any() for i in range(4))


def test_pipeline_gated_twice_follows_the_later_filter(tiny_pipe, spelt_filter):
    """A second gate takes the first one's place, and undoing it gives back the U-Net's own forward."""
    pipe = loaded(tiny_pipe, "r")
    base, stock = draw(pipe), pipe.text_encoder
    for name in ("cat", "dog"):
        encoder = FilteredTextEncoder(stock, {"r": spelt_filter(name, WIDTH)}, HOOKPOINT)
        install(pipe, encoder)
        undo = gate_by_detection(pipe, encoder)
    gated = draw(pipe)
    undo()

    assert (gated[:2] == base[:2]).all()
    assert (gated[2:] != base[2:]).any()
    assert (draw(pipe) == base).all()


def test_pipeline_without_the_filter_is_refused(tiny_pipe, spelt_filter):
    """Set as the text encoder and nothing more, a filter last sees the negative prompts, and would gate by those."""
    pipe = loaded(tiny_pipe, "r")
    encoder = FilteredTextEncoder(pipe.text_encoder, {"r": spelt_filter("cat", WIDTH)}, HOOKPOINT)
    pipe.text_encoder = encoder

    with pytest.raises(
        UserError, match=r"filter is not installed in this pipeline; call install\(pipe, encoder\) first"
    ):
        gate_by_detection(pipe, encoder)


def test_pipeline_with_embeddings_is_refused(tiny_pipe, spelt_filter):
    """What the filter has not seen cannot be gated; with what an earlier call saw it would be gated wrongly."""
    pipe = loaded(tiny_pipe, "r")
    states = encode(pipe.text_encoder, pipe.tokenizer, ["a cat"])
    encoder = FilteredTextEncoder(pipe.text_encoder, {"r": spelt_filter("cat", WIDTH)}, HOOKPOINT)
    install(pipe, encoder)
    gate_by_detection(pipe, encoder)
    draw(pipe)

    with pytest.raises(UserError, match=r"has not seen the 1 prompt\(s\) .* pass prompts"):
        pipe(prompt_embeds=states, negative_prompt_embeds=states, num_inference_steps=1)


def test_studio_gated_draws_the_base_where_nothing_is_flagged(tiny_pipe, spelt_filter, tmp_path):
    """A gated picture of an unflagged prompt is the base's very image and is not drawn again; a flagged one is another."""
    pipe = loaded(tiny_pipe, "r")
    write_adapter(tmp_path / "r", pipe.unet, "r", params={}, inputs={}, facts={})
    pipe.unet.delete_adapters("r")
    params = EvaluateParams(
        size="quick", sizes={"quick": SizeParams(templates=1, seeds=1, retain=1)}, solver_steps=2, guidance_scale=3.0,
        batch=4, seed=0, gates=(),
    )  # fmt: skip
    studio = Studio(pipe, {"r": spelt_filter("cat", WIDTH)}, HOOKPOINT, {"r": tmp_path / "r"}, params)
    pictures = [Picture("a dog", 1), Picture("a cat", 1)]
    base, summed = studio.draw(pictures), studio.draw(pictures, adapters=["r"])
    count = len(studio._drawn)
    gated = studio.draw(pictures, adapters=["r"], gated=True)

    assert len(studio._drawn) == count + 1
    assert (gated[0] == base[0]).all()
    assert (gated[1] != base[1]).any()
    assert (summed[0] != base[0]).any()
