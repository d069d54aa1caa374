import pytest
import torch
from safetensors.torch import load_file

from components.common.errors import ArtifactError
from components.common.files import read_sidecar
from components.diffusion.folder import part_digests
from components.guidance.adapters import (
    FORMAT,
    LAYERS,
    MADE_FOR,
    WEIGHTS,
    adapted_layers,
    attach,
    check_adapters,
    empty_directions,
    has_adapter,
    load_adapters,
    parameters_of,
    parametrize_in_axes,
    use_adapters,
    write_adapter,
    write_no_adapter,
)
from tests.states import encode


@pytest.fixture
def draw(tiny_pipe):
    """What the U-Net says of one state and prompt, as it is."""
    states = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat"])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def out():
        return tiny_pipe.unet(x, 400, states).sample

    return out


def randomize(unet, name="default", rank=4):
    """An adapter that changes something; its parameters."""
    rng = torch.Generator().manual_seed(1)
    parameters = attach(unet, name, rank=rank)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=rng) / 5
    return parameters


def write(folder, unet, /, **inputs):
    write_adapter(folder, unet, "default", params={}, inputs=inputs, facts={})


def test_adapter_is_of_keys_and_values_alone(tiny_pipe):
    """Every cross-attention gets a LoRA on its keys and its values, and no other layer gets one."""
    attach(tiny_pipe.unet, "r", rank=2)
    paths = [path for path, module in tiny_pipe.unet.named_modules() if "r" in getattr(module, "lora_A", {})]
    blocks = {path.rsplit(".", 1)[0] for path, _ in tiny_pipe.unet.named_modules() if path.endswith("attn2.to_q")}

    assert sorted(paths) == sorted(f"{block}.{layer.split('.')[1]}" for block in blocks for layer in LAYERS)


def test_adapter_round_trip(tiny_pipe, renew, draw, tmp_path):
    """The written file gives the adapter's outputs, loaded by us or by `load_lora_weights` alone; switched off, the base's."""
    base = draw()
    randomize(tiny_pipe.unet)
    expected = draw()
    write(tmp_path / "r", tiny_pipe.unet)
    renew()
    load_adapters(tiny_pipe, {"r": tmp_path / "r"})
    off = draw()
    with use_adapters(tiny_pipe, ["r"]):
        on = draw()
    renew()
    tiny_pipe.load_lora_weights(str(tmp_path / "r"))

    assert not torch.allclose(base, expected)
    assert torch.equal(off, base)
    torch.testing.assert_close(on, expected)
    torch.testing.assert_close(draw(), expected)


def test_adapter_in_axes_is_written_as_what_it_reads(tiny_pipe, renew, draw, tmp_path):
    """The file has A = Ã Q of every layer, and draws the same in a U-Net without axes; another adapter stays as it is."""
    unet, size = tiny_pipe.unet, tiny_pipe.unet.config.cross_attention_dim
    axes = torch.linalg.qr(torch.randn(size, size - 2, generator=torch.Generator().manual_seed(0)))[0].T
    for name in ("other", "default"):
        before = [p.clone() for p in randomize(unet, name)]
        parametrize_in_axes(unet, name, axes)
    unet.set_adapter("default")
    downs = [layer.lora_A["default"] for layer in adapted_layers(unet, "default")]
    wanted = [down.weight.detach().clone() for down in downs]
    drawn = draw()
    write(tmp_path / "a", unet)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    other = [layer.lora_A["other"] for layer in adapted_layers(unet, "other")]
    renew()
    load_adapters(tiny_pipe, {"a": tmp_path / "a"})
    with use_adapters(tiny_pipe, ["a"]):
        again = draw()

    for old, found in zip((p for p in before if p.shape[1] == size), wanted, strict=True):
        torch.testing.assert_close(found, old @ axes.T @ axes)
    written = {t.numpy().tobytes() for key, t in tensors.items() if ".down." in key}
    assert written == {w.numpy().tobytes() for w in wanted}
    assert len(tensors) == 2 * len(wanted)
    assert read_sidecar(tmp_path / "a", FORMAT)["facts"]["parameters"] == sum(t.numel() for t in tensors.values())
    assert all(hasattr(down, "parametrizations") for down in other)
    torch.testing.assert_close(again, drawn, rtol=1e-4, atol=1e-5)


def test_empty_directions_leave_faint_ones_out():
    """A direction with a thousandth of the empty prompt's largest does not count; the rows are orthonormal."""
    uncond = torch.zeros(1, 4, 8)
    uncond[0, 0, 0], uncond[0, 1, 1], uncond[0, 2, 2] = 10.0, 1.0, 0.01
    found = empty_directions(uncond)

    torch.testing.assert_close(found.abs(), torch.eye(8)[:2])


def test_adapter_altered_is_refused(tiny_pipe, tmp_path):
    """A truncated adapter is refused before it touches the model."""
    randomize(tiny_pipe.unet)
    write(tmp_path / "r", tiny_pipe.unet)
    path = tmp_path / "r" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(ArtifactError, match="altered or cut short"):
        load_adapters(tiny_pipe, {"again": tmp_path / "r"})
    assert not parameters_of(tiny_pipe.unet, "again")


def test_adapter_of_another_base_is_refused(tiny_pipe, tmp_path):
    """An adapter fits the model that it was trained on, and no other, part by part; a missing one names the remedy."""
    base = tmp_path / "base"
    tiny_pipe.save_pretrained(base)
    randomize(tiny_pipe.unet)
    write(tmp_path / "r", tiny_pipe.unet, **part_digests(base, MADE_FOR))
    check_adapters({"r": tmp_path / "r"}, base)
    for part in ("unet", "text_encoder", "scheduler"):
        path = next(path for path in sorted((base / part).iterdir()) if "config" in path.name)
        text = path.read_text()
        path.write_text(f"{text} ")
        with pytest.raises(ArtifactError, match=f"the adapter r was made for another {part} than the one of"):
            check_adapters({"r": tmp_path / "r"}, base)
        path.write_text(text)

    with pytest.raises(ArtifactError, match=r"holds no artifact\.json; run the stage that writes it: dvc repro"):
        check_adapters({"s": tmp_path / "s"}, base)


def test_request_without_an_adapter_is_known_and_refused(tiny_pipe, tmp_path):
    """Its folder is told from an adapter's, and whoever wants to load it gets one sentence."""
    randomize(tiny_pipe.unet)
    write(tmp_path / "r", tiny_pipe.unet)
    write_no_adapter(tmp_path / "s")

    assert (has_adapter(tmp_path / "r"), has_adapter(tmp_path / "s")) == (True, False)
    sentence = "s has no adapter, for its request has no channel guidance; add the channel, or leave the request out"
    for ask in (load_adapters, check_adapters):
        with pytest.raises(ArtifactError) as refused:
            ask(tiny_pipe if ask is load_adapters else {"s": tmp_path / "s"},
                {"s": tmp_path / "s"} if ask is load_adapters else tmp_path)  # fmt: skip
        assert str(refused.value) == sentence
