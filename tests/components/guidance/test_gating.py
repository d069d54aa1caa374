import pytest
import torch
from peft.tuners.lora import LoraLayer

from components.common.errors import UserError
from components.guidance.adapters import attach, use_adapters
from components.guidance.gating import gate_adapters
from tests.states import encode


def loaded(pipe, *names):
    """`pipe` with adapters of those names that change something, all switched off."""
    for seed, name in enumerate(names):
        attach(pipe.unet, name, rank=2, seed=seed)
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

    before, inside = scales(), []
    masks = {"r": torch.tensor([True, False])}
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda *_: inside.extend(scales()))
    with gate_adapters(pipe, masks):
        run(pipe, ["a cat", "a dog"])
        run(pipe, ["", "", "a cat", "a dog"])
    hook.remove()
    after = scales()
    with pytest.raises(TypeError), gate_adapters(pipe, masks):
        pipe.unet(torch.zeros(2, 4, 8, 8))

    assert {tuple(each["r"].flatten().tolist()) for each in inside} == {(1, 0), (0, 0, 1, 0)}
    assert before == after == scales()


def test_a_batch_of_another_size_is_refused(tiny_pipe):
    """Neither the prompts alone nor with as many empty ones in front: nobody knows which row is whose."""
    pipe = loaded(tiny_pipe, "r")

    with (
        pytest.raises(UserError, match=r"asked for 3 rows, and adapters are gated for 2 prompt"),
        gate_adapters(pipe, {"r": torch.tensor([True, False])}),
    ):
        run(pipe, ["a cat", "a dog", "a car"])
