import pytest
import torch

from components.common.config import EvaluateParams, SizeParams
from components.common.errors import UserError
from components.diffusion import encode, spelling_patterns, word_ends
from components.evaluate import Picture, Studio
from components.features import RequestFilter
from components.filter import FilteredTextEncoder, install
from components.guidance import attach, gate_adapters, gate_by_detection, use_adapters, write_adapter

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


def filter_for(tokenizer, name):
    """A filter that flags the prompts in which `name` stands, and edits nothing."""
    return RequestFilter(
        features=torch.tensor([0]), own=torch.ones(1), w_enc=torch.zeros(WIDTH, 1), b_enc=torch.zeros(1),
        jump=torch.ones(1), w_dec=torch.zeros(1, WIDTH), b_dec=torch.zeros(WIDTH), weights=torch.zeros(1, 1),
        bias=torch.zeros(1), threshold=torch.tensor(1.0), directions=torch.zeros(4, WIDTH),
        spellings=spelling_patterns(tokenizer, [name]), word_ends=word_ends(tokenizer),
    )  # fmt: skip


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
    with use_adapters(pipe, ["r"]):
        before = run(pipe, ["a cat", "a dog"])
    with pytest.raises(RuntimeError), gate_adapters(pipe, {"r": torch.tensor([True, False])}):
        raise RuntimeError
    with use_adapters(pipe, ["r"]):
        after = run(pipe, ["a cat", "a dog"])

    assert torch.equal(before, after)


def draw(pipe, **asked):
    """Arrays of what `pipe` draws of two prompts, two images each."""
    rng = [torch.Generator().manual_seed(i) for i in range(4)]
    return pipe(
        ["a cat", "a dog"], num_images_per_prompt=2, num_inference_steps=2, generator=rng, output_type="np", **asked
    ).images


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_pipeline_applies_adapters_to_flagged_prompts_alone(tiny_pipe, tokenizer, scale):
    """A stock pipeline's call, with guidance or without: images of the unflagged prompt keep their bits, the others change."""
    pipe = loaded(tiny_pipe, "r", "other")
    base = draw(pipe, guidance_scale=scale)
    encoder = FilteredTextEncoder(pipe.text_encoder, {"r": filter_for(tokenizer, "cat")}, HOOKPOINT)
    restore = install(pipe, encoder)
    undo = gate_by_detection(pipe, encoder)
    gated = draw(pipe, guidance_scale=scale)
    undo()
    restore()
    again = draw(pipe, guidance_scale=scale)

    assert (gated[2:] == base[2:]).all()
    assert (gated[:2] != base[:2]).any()
    assert (again == base).all()


def test_pipeline_with_embeddings_is_refused(tiny_pipe, tokenizer):
    """What the filter has not seen cannot be gated; with what an earlier call saw it would be gated wrongly."""
    pipe = loaded(tiny_pipe, "r")
    states = encode(pipe.text_encoder, tokenizer, ["a cat"])
    encoder = FilteredTextEncoder(pipe.text_encoder, {"r": filter_for(tokenizer, "cat")}, HOOKPOINT)
    install(pipe, encoder)
    gate_by_detection(pipe, encoder)
    draw(pipe)

    with pytest.raises(UserError, match=r"has not seen the 1 prompt\(s\) .* pass prompts"):
        pipe(prompt_embeds=states, negative_prompt_embeds=states, num_inference_steps=1)


def test_studio_gated_draws_the_base_where_nothing_is_flagged(tiny_pipe, tokenizer, tmp_path):
    """A gated picture of an unflagged prompt is the base's very image and is not drawn again; a flagged one is another."""
    pipe = loaded(tiny_pipe, "r")
    write_adapter(tmp_path / "r", pipe.unet, "r", params={}, inputs={}, facts={})
    pipe.unet.delete_adapters("r")
    params = EvaluateParams(
        size="quick", sizes={"quick": SizeParams(templates=1, seeds=1, retain=1)}, solver_steps=2, guidance_scale=3.0,
        batch=4, seed=0, gates=(),
    )  # fmt: skip
    studio = Studio(pipe, {"r": filter_for(tokenizer, "cat")}, HOOKPOINT, {"r": tmp_path / "r"}, params)
    pictures = [Picture("a dog", 1), Picture("a cat", 1)]
    base, summed = studio.draw(pictures), studio.draw(pictures, adapters=["r"])
    count = len(studio._drawn)
    gated = studio.draw(pictures, adapters=["r"], gated=True)

    assert len(studio._drawn) == count + 1
    assert (gated[0] == base[0]).all()
    assert (gated[1] != base[1]).any()
    assert (summed[0] != base[0]).any()
