import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from components.collect.record import RequestRecord
from components.common.errors import ArtifactError, UserError
from components.common.files import digest
from components.export.merged import check_target
from components.guidance.adapters import LAYERS, attach, empty_directions, write_adapter
from components.guidance.fuse import (
    FusionMoments,
    check_fusible,
    choose_prompts,
    fit_right_maps,
    fuse,
    fused_files,
    fusion_moments,
    write_fused,
)
from components.requests.requests import Request
from tests.states import encode


def record(name, **request):
    """A record whose last alias is reserved for the evaluation."""
    made = Request(kind="object", **request)
    early = made.names[:-1] or made.names
    names = dict.fromkeys(("train", "select", "calibrate"), early) | {"evaluate": made.names}
    return RequestRecord(
        id=name, request=made, names=names, misspellings=(), labels=(made.target,), is_style=False, avoid=()
    )


RECORDS = {
    "r": record("r", target="cat", aliases=("kitten", "kitty"), anchor="dog"),
    "s": record("s", target="car", anchor="bicycle"),
}
ROWS = [
    ("r", "select", "a cat"),
    ("r", "calibrate", "a kitten on a tree"),
    ("r", "select", "a car"),  # to retain, says r
    ("r", "select", "an owl"),
    ("s", "select", "a car"),
    ("s", "select", "cars and cats"),
    ("s", "select", "a kitty"),  # a name that is reserved for the evaluation
    ("s", "select", "a car and a kitty"),
    ("s", "evaluate", "a red car"),
    ("t", "select", "a tree"),  # of a request that takes no part
]


@pytest.fixture
def table():
    return pd.DataFrame(ROWS, columns=["request", "split", "prompt"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(pipe, folder, *, seed, layers=LAYERS):
    """An adapter with random weights, which was trained on the U-Net of `folder`'s parent."""
    for i, parameter in enumerate(attach(pipe.unet, "made", rank=4, seed=seed, layers=layers)):
        parameter.data = 0.3 * normal(*parameter.shape, seed=100 * seed + i).float()
    write_adapter(folder, pipe.unet, "made", params={}, inputs={}, facts={})
    pipe.unet.delete_adapters("made")
    return folder


def test_fitted_maps_are_the_least_squares_fit_to_gated_ones():
    """An optimiser that sees the samples themselves finds no map orthogonal to V that is closer to gated adapters."""
    first, second, both, retain, empty = (normal(30, 8, seed=i) for i in range(5))
    one, other = normal(3, 8, seed=5), normal(5, 8, seed=6)[:3]
    main = torch.linalg.qr(normal(8, 2, seed=7))[0].T  # (e, D)
    own = torch.stack([first.T @ first + both.T @ both, second.T @ second + both.T @ both])
    target = first.T @ first + second.T @ second + both.T @ both
    given = FusionMoments(own, target, retain.T @ retain, empty.T @ empty)
    free = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def fitted():
        return free - (free @ main.T) @ main

    def loss():
        optimizer.zero_grad()
        parts = [(first, one), (second, other), (both, one + other)]
        value = sum((h @ (fitted() - wanted).T).square().sum() for h, wanted in parts)
        value = value + 6.0 * (retain @ fitted().T).square().sum() + (empty @ fitted().T).square().sum()
        value = value + 1e-4 * fitted().square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    left, right = fit_right_maps(given, main, retain_weight=6.0)

    torch.testing.assert_close(one @ left + other @ right, fitted().detach(), atol=1e-6, rtol=1e-6)


def test_moments_count_a_prompt_for_every_target_it_names(tiny_pipe, table):
    """A prompt counts by the names in it and not by its request; one of the evaluation, or with a reserved name, does not count."""
    found = fusion_moments(tiny_pipe, choose_prompts(table, RECORDS))

    def mean(*prompts):
        h = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, list(prompts)).double()
        return torch.einsum("pld,ple->de", h, h) / h.shape[1]

    cats, cars = ("a cat", "a kitten on a tree"), ("a car",)
    both = mean("cars and cats") * (1 / 3 + 1 / 2)
    torch.testing.assert_close(found.by_request[0], mean(*cats) / 3 + both)
    torch.testing.assert_close(found.by_request[1], mean(*cars) / 2 + both)
    torch.testing.assert_close(found.target, mean(*cats) / 3 + mean(*cars) / 2 + both)
    torch.testing.assert_close(found.retain, mean("an owl"))
    torch.testing.assert_close(found.uncond, mean(""))


def test_fused_tensors_are_each_adapters_own():
    """The A of adapters of any ranks are stacked, each times its own map, and their B stand side by side as they are."""
    down, up = "unet.x.attn2.to_v.lora.down.weight", "unet.x.attn2.to_v.lora.up.weight"
    parts = {
        name: {down: normal(rank, 8, seed=rank).float(), up: normal(5, rank, seed=rank).float()}
        for name, rank in (("r", 2), ("s", 3))
    }
    maps = {"s": normal(8, 8), "r": normal(8, 8, seed=1)}
    fused = fuse(parts, maps)

    wanted = sum(t[up].double() @ t[down].double() @ maps[name] for name, t in parts.items())
    torch.testing.assert_close(fused[up] @ fused[down], wanted.float(), atol=1e-4, rtol=1e-4)
    assert torch.equal(fused[up], torch.cat([parts["r"][up], parts["s"][up]], dim=1))
    assert fused[down].shape == (5, 8)


def test_fused_adapter_is_one_that_diffusers_opens(tiny_pipe, table, tmp_path):
    """`load_lora_weights` opens what was written; it acts, but not on the empty prompt; same inputs, same bytes."""
    tiny_pipe.save_pretrained(tmp_path / "base")
    folders = {name: make(tiny_pipe, tmp_path / name, seed=i) for i, name in enumerate(RECORDS)}
    before = {name: digest(folder) for name, folder in folders.items()}
    written = [tmp_path / "one", tmp_path / "again"]
    for folder in written:
        write_fused(folder, tmp_path / "base", folders, RECORDS, table)
    tensors = load_file(written[0] / "pytorch_lora_weights.safetensors")
    main = empty_directions(encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""]))
    states = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat"])
    x, time = normal(1, 4, 8, 8).float(), torch.tensor([400])
    with torch.no_grad():
        base = tiny_pipe.unet(x, time, states).sample
        tiny_pipe.load_lora_weights(str(tmp_path / "one"))
        acting = tiny_pipe.unet(x, time, states).sample

    assert not torch.allclose(base, acting)
    assert max(float((t @ main.T).norm() / t.norm()) for key, t in tensors.items() if ".down." in key) < 1e-5
    assert {name: digest(folder) for name, folder in folders.items()} == before
    assert digest(written[0]) == digest(written[1])


def test_a_trained_adapter_is_no_export(tiny_pipe, table, tmp_path):
    """A fused adapter may be written over, a trained one may not, though both are adapters."""
    tiny_pipe.save_pretrained(tmp_path / "base")
    folders = {name: make(tiny_pipe, tmp_path / name, seed=i) for i, name in enumerate(RECORDS)}
    write_fused(tmp_path / "one", tmp_path / "base", folders, RECORDS, table)

    check_target(tmp_path / "one", tmp_path / "base", fused_files)
    with pytest.raises(UserError, match="is not empty and is no previous export"):
        check_target(folders["r"], tmp_path / "base", fused_files)
    with pytest.raises(ArtifactError, match="holds an adapter that was trained; name another folder"):
        fused_files(folders["r"])


def test_fuse_refuses_what_it_cannot_fuse(tiny_pipe, table, tmp_path):
    """An adapter of other layers, a single one, and a request whose target no prompt names are refused in one sentence."""
    wide = make(tiny_pipe, tmp_path / "wide", seed=0, layers=("attn2.to_q", *LAYERS))
    with pytest.raises(UserError, match="does not change the keys and values of cross-attention alone; train it again"):
        check_fusible({"r": wide, "s": wide})
    with pytest.raises(UserError, match=r"r alone is nothing to fuse; load .*wide as it is"):
        check_fusible({"r": wide})
    with pytest.raises(UserError, match="no prompt names the target of q; write them again: dvc repro concepts"):
        choose_prompts(table.assign(request="q"), {"q": record("q", target="ghost", anchor="dog")})
