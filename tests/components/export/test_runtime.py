from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from components.common.errors import ArtifactError, UserError
from components.diffusion.encode import Encoded
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.text import load_towers
from components.export.graph import ExportedFilter, data_of, export_graph
from components.export.parity import measure_parity, open_session, write_report
from components.export.report import REPORT, read_sealed, write_no_graph, write_sealed
from components.export.runtime import OnnxTextEncoder
from components.filter.artifact import RequestFilter
from components.filter.encoder import FilteredTextEncoder

BASE = Path(__file__).parents[3] / "assets" / "openmoji"
HOOKPOINT = "encoder.layers.0"
PROMPTS = ["a cat in neon style", "a house in neon style"]


@pytest.fixture(scope="module")
def text():
    """The shipped tokenizer and encoder."""
    return load_towers(BASE, [HOOKPOINT])


@pytest.fixture(scope="module")
def filtered(text):
    """The shipped encoder with a filter that separates "a cat" from "a dog" and from "a house", and draws a dog instead."""
    cat, dog, house = text.stream(text.tokenize(["a cat", "a dog", "a house"]))[:, 2]
    rows = torch.stack([cat - dog, cat - house])
    rows = rows / rows.norm(dim=1, keepdim=True)
    codes = torch.stack([cat, dog, house]) @ rows.T  # (3, 2)
    own, others = codes[0].sum(), codes[1:].sum(1).amax()
    item = RequestFilter(
        features=torch.tensor([3, 8]),
        own=torch.ones(2),
        w_enc=rows.T.contiguous(),
        b_enc=torch.zeros(2),
        latent_threshold=torch.full((2,), -1e6),
        w_dec=rows,
        b_dec=torch.zeros(len(cat)),
        weights=torch.ones(1, 2),
        bias=torch.zeros(1),
        decision_threshold=(own * 0.6 + others * 0.4).reshape(()),
        directions=torch.stack([dog - cat, 0.1 * (dog - cat), 0.2 * (dog - cat), 0.3 * (dog - cat)]),
    )
    return FilteredTextEncoder(text, {"r-cat": item})


@pytest.fixture(scope="module")
def ids(text):
    return text.tokenize(PROMPTS)


@pytest.fixture(scope="module")
def graph(filtered, ids, tmp_path_factory):
    """The same, exported with its report."""
    path = tmp_path_factory.mktemp("onnx") / "filter.onnx"
    export_graph(filtered, ids, path, opset=18)
    session = open_session(path)
    parity = measure_parity(session, ExportedFilter(filtered), ids)
    assert parity.decisions_agree
    write_report(path, parity, filtered, providers=session.get_providers(), inputs=part_digests(BASE, TEXT_PARTS))
    return path


def test_runtime_encodes_as_torch_does(filtered, graph, ids):
    """States within 1e-4, the same decision and requests; one prompt is flagged and edited, the other is the stock encoder's."""
    (states, *_), decision = OnnxTextEncoder(graph).encode(ids)
    (wanted, *_), ours = filtered.encode(ids)
    stock = filtered.towers.run(ids).states

    torch.testing.assert_close(states, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decision.scores, ours.scores, atol=1e-3, rtol=1e-3)
    assert decision.flagged.tolist() == ours.flagged.tolist() == [[True], [False]]
    assert decision.requests == ours.requests == ("r-cat",)
    torch.testing.assert_close(states[1], stock[1], atol=1e-4, rtol=1e-4)
    assert (states[0] - stock[0]).abs().max() > 0.01


def test_runtime_is_safe_under_threads(graph, ids):
    """Four threads on one session each get the decision about their own prompts."""
    onnx = OnnxTextEncoder(graph)
    jobs = [ids.rows(torch.tensor(rows)) for rows in ([0, 1], [0], [1, 0], [1])] * 6
    with ThreadPoolExecutor(4) as pool:
        found = [decision.flagged[:, 0].tolist() for _, decision in pool.map(onnx.encode, jobs)]

    assert found == [[True, False], [True], [False, True], [False]] * 6


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
    write_sealed(path, read_sealed(path) | change)

    with pytest.raises(ArtifactError, match=said):
        OnnxTextEncoder(copy)


def test_runtime_report_with_an_altered_byte_is_refused(copy):
    """Whichever byte of parity.json it is: requests, parity and inputs are believed as they were measured, or not at all."""
    path = copy.with_name(REPORT)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ArtifactError, match=r"parity.json (was altered|is not JSON); restore both files"):
            OnnxTextEncoder(copy)


def test_runtime_without_a_graph_says_why(tmp_path):
    """Where no request has a filter the stage writes a report alone."""
    write_no_graph(tmp_path / REPORT, {"filter": "x"})

    with pytest.raises(ArtifactError, match="holds no graph, for no request has a filter; erase by the adapters"):
        OnnxTextEncoder(tmp_path / "filter.onnx")


def test_runtime_refuses_what_the_graph_cannot_do(graph):
    """Prompts of another length, absent hardware: one sentence each."""
    with pytest.raises(
        UserError, match=r"the graph takes 32 tokens a prompt from 1 tokenizer\(s\), not 77 from 1; use the base"
    ):
        OnnxTextEncoder(graph).encode(Encoded(torch.zeros(1, 77, dtype=torch.int64), torch.ones(1, 77).bool()))
    with pytest.raises(UserError, match="onnxruntime has no MadeUpProvider here; use one of"):
        OnnxTextEncoder(graph, provider="MadeUpProvider")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_graph_over_the_limit_has_its_weights_beside_it(kind, standin, spelt_filter, tmp_path):
    """With a limit that the encoders pass, as bigG's 2.8 GB do ONNX's 2 GiB: a small graph, its weights in a file, the same decisions; either file altered or gone is refused."""
    folder = standin(kind)
    hookpoints = ["encoder.layers.1"] if kind == "sd15" else ["encoder.layers.1", "encoder.layers.2"]
    towers = load_towers(folder, hookpoints)
    width = sum(tower.encoder.config.hidden_size for tower in towers.all)
    item = spelt_filter("cat", width, towers.first.tokenizer)._replace(
        directions=torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    )
    encoder = FilteredTextEncoder(towers, {"r": item})
    weights = sum(part.numel() * part.element_size() for part in encoder.parameters())
    encoded = towers.tokenize(["a cat", "a dog", "#! a cat", "", "two cats and a dog"])
    path = tmp_path / "filter.onnx"
    export_graph(encoder, encoded.rows(slice(2)), path, opset=18, inline=2**20)
    assert weights > 2**20 > path.stat().st_size
    assert 0.9 * weights < data_of(path).stat().st_size < 1.1 * weights
    session = open_session(path)
    parity = measure_parity(session, ExportedFilter(encoder), encoded)
    assert (parity.decisions_agree, parity.flagged) == (True, 3)
    assert parity.max_abs_hidden < 1e-4
    write_report(path, parity, encoder, providers=session.get_providers(), inputs=part_digests(folder, TEXT_PARTS))
    assert OnnxTextEncoder(path).encode(encoded)[1].flagged.flatten().tolist() == [True, False, True, False, True]

    whole = data_of(path).read_bytes()
    data_of(path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"filter.onnx.data has sha256 .* as parity.json says; restore"):
        OnnxTextEncoder(path)
    data_of(path).unlink()
    with pytest.raises(ArtifactError, match=r"filter\.onnx\.data is missing; restore"):
        OnnxTextEncoder(path)
