from pathlib import Path

import numpy as np
import pytest
import torch

import components
from components.common.errors import UserError
from components.diffusion.encode import spelling_patterns, tokenize, word_ends
from components.export.graph import ExportedFilter, export_graph, feed_of
from components.export.parity import measure_parity, open_session
from components.filter.artifact import RequestFilter
from components.filter.encoder import FilteredTextEncoder


@pytest.fixture(scope="module")
def exported(tiny_towers, tokenizer, tmp_path_factory):
    """Three requests, exported once: one with random features, two that know their names alone."""
    rng = torch.Generator().manual_seed(0)
    item = RequestFilter(
        features=torch.arange(3),
        own=torch.ones(3),
        w_enc=torch.randn(32, 3, generator=rng),
        b_enc=torch.zeros(3),
        latent_threshold=torch.full((3,), 0.1),
        w_dec=torch.randn(3, 32, generator=rng),
        b_dec=torch.zeros(32),
        weights=torch.randn(2, 3, generator=rng),
        bias=torch.zeros(2),
        decision_threshold=torch.tensor(0.5),
        directions=torch.randn(4, 32, generator=rng),
    )
    path = tmp_path_factory.mktemp("onnx") / "filter.onnx"
    ids = tokenize(tokenizer, [f"{a} next to {b}" for a in ("cat", "dog", "owl") for b in ("car", "key", "bee")])
    probe = FilteredTextEncoder(tiny_towers, {"r": item})
    item = item._replace(decision_threshold=probe.encode(ids)[1].scores.median() + 1e-3)  # flags a half of them
    deaf = {
        name: item._replace(
            decision_threshold=torch.tensor(1e6),
            spellings=spelling_patterns(tokenizer, names, ["ke y"]),
            word_ends=word_ends(tokenizer),
        )
        for name, names in {"o": ["owl", "key"], "d": ["dog next", "bee"]}.items()
    }
    encoder = FilteredTextEncoder(tiny_towers, {"r": item, **deaf})
    export_graph(encoder, ids.rows(slice(2)), path, opset=18)
    return encoder, path, ids


def test_export_agrees_with_torch(exported):
    """Hidden states within 1e-4, scores too, decisions identical, both kinds of decision occurring."""
    encoder, path, ids = exported
    parity = measure_parity(open_session(path), ExportedFilter(encoder), ids)

    assert parity.max_abs_hidden < 1e-4
    assert parity.max_abs_score < 1e-3
    assert parity.decisions_agree
    assert 0 < parity.flagged < parity.prompts


def test_export_finds_each_requests_names(exported):
    """Two requests whose score never reaches the threshold: each flags the prompts that hold its names, in torch and in the graph."""
    encoder, path, ids = exported
    flagged = open_session(path).run(["flagged"], feed_of(ids, 3))[0]
    pairs = [(a, b) for a in ("cat", "dog", "owl") for b in ("car", "key", "bee")]

    assert flagged[:, 1].tolist() == [a == "owl" or b == "key" for a, b in pairs]
    assert flagged[:, 2].tolist() == [a == "dog" or b == "bee" for a, b in pairs]
    assert encoder.encode(ids)[1].flagged.tolist() == flagged.tolist()


def test_export_takes_names_that_text_has_found(exported):
    """Where text says so a token is a name or is none, whatever is listed; it flags as torch does, told the same."""
    encoder, path, ids = exported
    named = torch.zeros(9, ids.input_ids.shape[1], 3, dtype=torch.bool)
    named[4, 2, 1] = True
    found = open_session(path).run(["flagged"], feed_of(ids, 3, named))[0]

    assert found[:, 1].tolist() == [row == 4 for row in range(9)]
    assert encoder.encode(ids, named)[1].flagged.tolist() == found.tolist()


def test_export_takes_any_batch(exported):
    """The batch is dynamic: one prompt and nine give the same row."""
    _, path, ids = exported
    session = open_session(path)
    one, nine = (session.run(["concept_scores"], feed_of(ids.rows(slice(n)), 3))[0] for n in (1, 9))

    np.testing.assert_allclose(one[0], nine[0], atol=1e-4)


def test_export_absent_provider_is_refused(exported):
    """Asking for hardware that is not there is an error, not a silent fallback."""
    with pytest.raises(UserError, match="onnxruntime has no TensorrtMadeUpProvider here; use one of"):
        open_session(exported[1], ["TensorrtMadeUpProvider"])


def test_export_names_no_folder(exported):
    """The graph's bytes hold no path of the checkout that made it, so two checkouts write the same."""
    _, path, _ = exported

    assert str(Path(components.__file__).parent).encode() not in path.read_bytes()
    assert b"stack_trace" not in path.read_bytes()
