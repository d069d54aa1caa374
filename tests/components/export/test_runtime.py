import json
from pathlib import Path

import numpy as np
import pytest
import torch
from components.filter.install import install
from diffusers import StableDiffusionPipeline

from components.common.errors import ArtifactError, UserError
from components.diffusion.encode import tokenize
from components.diffusion.hooks import read_hookpoint
from components.diffusion.load import load_pipeline
from components.export.graph import ExportedFilter, export_graph
from components.export.parity import REPORT, measure_parity, open_session, write_report
from components.export.runtime import OnnxTextEncoder
from components.filter.artifact import RequestFilter
from components.filter.encoder import FilteredTextEncoder

BASE = Path(__file__).parents[3] / "assets" / "openmoji"
HOOKPOINT = "encoder.layers.0"
PROMPTS = ["a cat in neon style", "a house in neon style"]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(BASE)


@pytest.fixture(scope="module")
def filtered(pipe):
    """The shipped encoder with a filter that tells "a cat" from "a dog" and from "a house", and draws a dog instead."""
    ids = tokenize(pipe.tokenizer, ["a cat", "a dog", "a house"]).input_ids
    cat, dog, house = read_hookpoint(pipe.text_encoder, HOOKPOINT, ids)[:, 2]
    rows = torch.stack([cat - dog, cat - house])
    rows = rows / rows.norm(dim=1, keepdim=True)
    codes = torch.stack([cat, dog, house]) @ rows.T  # (3, 2)
    weights = torch.ones(1, 2)
    own, others = codes[0].sum(), codes[1:].sum(1).amax()
    item = RequestFilter(
        features=torch.tensor([3, 8]),
        own=torch.ones(2),
        w_enc=rows.T.contiguous(),
        b_enc=torch.zeros(2),
        jump=torch.full((2,), -1e6),
        w_dec=rows,
        b_dec=torch.zeros(len(cat)),
        weights=weights,
        bias=torch.zeros(1),
        threshold=(own * 0.6 + others * 0.4).reshape(()),
        directions=torch.stack([dog - cat, 0.1 * (dog - cat), 0.2 * (dog - cat), 0.3 * (dog - cat)]),
        gain=torch.tensor(0.0),
        classes=torch.ones(4),
    )
    return FilteredTextEncoder(pipe.text_encoder, {"r-cat": item}, HOOKPOINT)


@pytest.fixture(scope="module")
def graph(pipe, filtered, tmp_path_factory):
    """The same, exported with its report."""
    path = tmp_path_factory.mktemp("onnx") / "filter.onnx"
    ids = tokenize(pipe.tokenizer, PROMPTS).input_ids
    export_graph(filtered, ids, path, opset=18)
    session = open_session(path)
    parity = measure_parity(session, ExportedFilter(filtered), ids)
    assert parity.decisions_agree
    write_report(path, parity, requests=filtered.requests, max_length=ids.shape[1], providers=session.get_providers())
    return path


def draw(pipe, prompt=PROMPTS, **given):
    """Images through the stock call, uint8."""
    seeds = [torch.Generator().manual_seed(s) for s in range(len(prompt))]
    images = pipe(prompt, generator=seeds, num_inference_steps=3, output_type="np", **given).images
    return np.round(images * 255).astype(int)


@pytest.fixture
def installed(pipe):
    """Installs encoders for one test and takes them out afterwards."""
    undo = []
    yield lambda encoder: undo.append(install(pipe, encoder))
    for step in reversed(undo):
        step()
    assert type(pipe.text_encoder).__name__ == "CLIPTextModel"


def test_runtime_draws_what_torch_draws(pipe, filtered, graph, installed):
    """The stock call with either encoder: images within one grey level, decisions the same, one of each kind."""
    before = draw(pipe)
    installed(filtered)
    ours = draw(pipe)
    onnx = OnnxTextEncoder(graph)
    installed(onnx)
    theirs = draw(pipe)

    assert np.abs(ours - theirs).max() <= 1
    assert filtered.detection.flagged.tolist() == onnx.detection.flagged.tolist() == [[True], [False]]
    assert onnx.requests == filtered.requests
    assert onnx.calls == 1
    assert np.array_equal(before[1], ours[1])
    assert not np.array_equal(before[0], ours[0])


def test_runtime_answers_as_clip_does(pipe, graph):
    """Indexable, with .last_hidden_state, in the asked dtype, and with what diffusers reads of a text encoder."""
    onnx = OnnxTextEncoder(graph).to(torch.float16)
    ids = tokenize(pipe.tokenizer, PROMPTS).input_ids
    out = onnx(ids, attention_mask=None)

    assert out[0] is out.last_hidden_state
    assert out[0].dtype == onnx.dtype == torch.float16
    assert onnx.device == torch.device("cpu")
    assert not onnx.config.use_attention_mask
    assert onnx.config.hidden_size == out[0].shape[-1] == pipe.text_encoder.config.hidden_size
    torch.testing.assert_close(out[0][1].float(), pipe.text_encoder(ids)[0][1], atol=5e-3, rtol=5e-3)


def test_runtime_opens_with_a_pipeline(graph):
    """`from_pretrained(…, text_encoder=…)` takes it, and the pipeline draws; `pipe.to` moves it."""
    onnx = OnnxTextEncoder(graph)
    pipe = StableDiffusionPipeline.from_pretrained(
        BASE, text_encoder=onnx, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)

    assert pipe.text_encoder is onnx
    assert draw(pipe).shape == (2, 64, 64, 3)
    assert pipe.to(torch.float16).text_encoder.dtype == torch.float16


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_install_keeps_negative_prompts_stock(pipe, filtered, graph, installed, kind):
    """A negative prompt that names the target, and the empty one, come out as the stock encoder gives them."""
    stock = pipe.text_encoder
    wanted = [stock(tokenize(pipe.tokenizer, [p]).input_ids)[0] for p in ("a cat", "")]
    encoder = filtered if kind == "torch" else OnnxTextEncoder(graph)
    installed(encoder)
    states, negative = pipe.encode_prompt("a house", "cpu", 2, True, negative_prompt="a cat")
    _, empty = pipe.encode_prompt("a cat", "cpu", 1, True)

    assert torch.equal(negative, wanted[0].expand(2, -1, -1))
    assert torch.equal(empty, wanted[1])
    assert states.shape == negative.shape
    assert encoder.detection.flagged.tolist() == [[True]]  # of the prompt "a cat", not of the empty one after it
    assert pipe.text_encoder is encoder


def test_a_filter_set_without_install_edits_negative_prompts(pipe, filtered, installed):
    """Why `install` is there: the stock pipeline sends the negative prompt through the same encoder."""
    installed(filtered)
    whole = StableDiffusionPipeline.encode_prompt
    _, negative = whole(pipe, "a house", "cpu", 1, True, negative_prompt="a cat")

    assert not torch.equal(negative, filtered.stock(tokenize(pipe.tokenizer, ["a cat"]).input_ids)[0])


def test_install_passes_embeddings_through(pipe, filtered, installed):
    """Prompts encoded beforehand are taken as they are, as the stock call takes them."""
    states, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    wanted = draw(pipe)
    installed(filtered)
    seeds = [torch.Generator().manual_seed(s) for s in range(2)]
    found = pipe(
        prompt_embeds=states, negative_prompt_embeds=negative, generator=seeds, num_inference_steps=3, output_type="np"
    ).images

    assert np.array_equal(np.round(found * 255).astype(int), wanted)
    assert filtered.detection is None


def test_install_without_a_stock_encoder_refuses_to_edit_a_negative_prompt(graph):
    """With the graph alone a negative prompt that names the target is an error, any other passes."""
    onnx = OnnxTextEncoder(graph)
    pipe = StableDiffusionPipeline.from_pretrained(
        BASE, text_encoder=onnx, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    install(pipe, onnx)
    pipe.encode_prompt("a cat", "cpu", 1, True, negative_prompt=PROMPTS[1])

    assert onnx.detection.flagged.all()
    with pytest.raises(UserError, match="the negative prompt 'a cat' is flagged by r-cat; install the filter on"):
        pipe.encode_prompt("a house", "cpu", 1, True, negative_prompt="a cat")


@pytest.fixture
def copy(graph, tmp_path):
    """A graph and its report that a test may spoil."""
    for name in (graph.name, REPORT):
        (tmp_path / name).write_bytes((graph.parent / name).read_bytes())
    return tmp_path / graph.name


def test_runtime_altered_graph_is_refused(copy):
    """One byte more, and the digest in the report is not the graph's."""
    copy.write_bytes(copy.read_bytes() + b"\0")

    with pytest.raises(ArtifactError, match=r"has sha256 .* as parity.json says; restore both files"):
        OnnxTextEncoder(copy)


def test_runtime_without_its_report_is_refused(copy):
    """A graph without its report could be any graph."""
    copy.with_name(REPORT).unlink()

    with pytest.raises(ArtifactError, match=r"parity\.json is missing; restore both files"):
        OnnxTextEncoder(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_length": 77}, r"takes \(length, requests\) \[32, 1\], not \[77, 1\]"),
        ({"requests": ["a", "b"]}, r"takes \(length, requests\) \[32, 1\], not \[32, 2\]"),
    ],
)
def test_runtime_graph_of_another_shape_is_refused(copy, change, said):
    """A report that speaks of another length or of other requests."""
    path = copy.with_name(REPORT)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(ArtifactError, match=said):
        OnnxTextEncoder(copy)


def test_runtime_refuses_what_the_graph_cannot_do(graph):
    """Another length, a mask, other layers' states, absent hardware: one sentence each."""
    onnx, ids = OnnxTextEncoder(graph), torch.zeros(1, 32, dtype=torch.int64)

    with pytest.raises(UserError, match="the graph takes 32 tokens a prompt, not 77; use the base model's tokenizer"):
        onnx(torch.zeros(1, 77, dtype=torch.int64))
    with pytest.raises(UserError, match="the graph has no attention mask; leave out clip_skip"):
        onnx(ids, attention_mask=torch.ones_like(ids))
    with pytest.raises(UserError, match="the graph has no hidden states of other layers; leave out clip_skip"):
        onnx(ids, output_hidden_states=True)
    with pytest.raises(UserError, match="onnxruntime has no MadeUpProvider here; use one of"):
        OnnxTextEncoder(graph, provider="MadeUpProvider")
