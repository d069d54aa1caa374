"""What the documents show is run as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.common.sections import load_params
from components.diffusion.load import load_pipeline
from components.filter.artifact import write_filters
from components.guidance.adapters import attach, write_adapter

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_pipeline_example_runs_as_it_is_written(tmp_path, monkeypatch, capsys, spelt_filter):
    """docs/pipeline.md's code draws with the shipped base and says what was flagged; without its gate the flagged image is another."""
    base = ROOT / load_params(ROOT / "params.yaml").base.path
    pipe = load_pipeline(base)
    item = spelt_filter("cat", pipe.text_encoder.config.hidden_size)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    write_filters(tmp_path / "models/filter", {"r": item}, hookpoint="encoder.layers.0", params={}, inputs={}, facts={})
    attach(pipe.unet, "r", parameters="xattn", rank=2, seed=0)
    for key, value in pipe.unet.named_parameters():
        if ".lora_B.r." in key:
            value.data = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    write_adapter(tmp_path / "models/guidance/r", pipe.unet, "r", params={}, inputs={}, facts={})
    monkeypatch.chdir(tmp_path)
    (code,) = BLOCK.findall((ROOT / "docs/pipeline.md").read_text(encoding="utf-8"))
    code = code.replace("num_inference_steps=25", "num_inference_steps=4")
    drawn = {}
    for name, text in {"gated": code, "filtered": re.sub(r"(?m)^gate_by_detection.*$", "", code)}.items():
        torch.manual_seed(0)
        space: dict[str, Any] = {}
        exec(text, space)  # noqa: S102 - the document's own code is what is tested
        drawn[name] = [np.asarray(image) for image in space["images"]]
        assert "{'r': [True, False]}" in capsys.readouterr().out

    assert (drawn["gated"][0] != drawn["filtered"][0]).any()
    assert (drawn["gated"][1] == drawn["filtered"][1]).all()
