"""What is counted on the stand-ins: who decides what, what leaks, what is drawn unfiltered, which weight files an export has.

The filter of each stand-in knows the name "cat" and has a score of its own, the direction from other animals to it, so that
prompts are flagged both by their words and by their states.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image
from tqdm import tqdm

from components.common.errors import UserError
from components.common.files import digest
from components.common.variants import Variant
from components.diffusion.conditioning import denoise
from components.diffusion.encode import spelling_patterns, word_ends
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.load import load_pipeline
from components.diffusion.text import load_towers
from components.diffusion.towers import Towers
from components.eraser import Eraser
from components.export.graph import ExportedFilter, export_graph
from components.export.merged import write_merged
from components.export.parity import measure_parity, open_session, write_report
from components.export.runtime import OnnxTextEncoder
from components.filter.artifact import RequestFilter
from components.filter.encoder import FilteredTextEncoder
from components.filter.explain import explain_prompt
from components.guidance.adapters import MADE_FOR, attach, write_adapter
from components.guidance.losses import relative_drift
from components.guidance.params import GuidanceParams
from components.guidance.start import start_adapter
from components.worlds.load import load_world
from research.reliability.show import Row, largest, share
from tests.standins import KINDS, build_standin

HOOKPOINTS = {
    "sd15": ("encoder.layers.1",),
    "sd21": ("encoder.layers.1",),
    "sdxl": ("encoder.layers.1", "encoder.layers.2"),
}
INSTANT = GuidanceParams(
    rank=4, steps=0, retain_weight=1.0, hold="null-space", precision="no", gradient_checkpointing=False, seed=0
)
OTHERS = ("dog", "owl", "car", "house", "ghost", "lion")
SIGNS = "!#?.,;:'\"()[]{}<>|/\\@$%^&*-_=+~`"


class Standin(NamedTuple):
    """A stand-in and the filter of one request."""

    kind: str
    folder: Path
    item: RequestFilter


@contextmanager
def standins() -> Iterator[list[Standin]]:
    """The three stand-ins, in a folder that is removed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for kind in KINDS:
            path = build_standin(kind, Path(folder) / kind)
            found.append(Standin(kind, path, cat_filter(load_towers(path, HOOKPOINTS[kind]))))
        yield found


def cat_filter(towers: Towers) -> RequestFilter:
    """Flags "cat" by name and by score, and draws a dog instead."""
    encoded = towers.tokenize(["a cat", *(f"a {name}" for name in OTHERS)])
    cat, *others = towers.stream(encoded)[:, 2]
    direction = cat - torch.stack(others).mean(0)
    direction = direction / direction.norm()
    level = torch.stack([cat, *others]) @ direction
    return RequestFilter(
        features=torch.tensor([0]), own=torch.ones(1), w_enc=direction[:, None], b_enc=torch.zeros(1),
        latent_threshold=torch.full((1,), -1e6), w_dec=direction[None], b_dec=torch.zeros(len(direction)),
        weights=torch.ones(1, 1), bias=torch.zeros(1), decision_threshold=(level[0] + 2 * level[1:].amax()) / 3,
        directions=(others[0] - cat).repeat(4, 1), word_ends=word_ends(towers.first.tokenizer),
        spellings=spelling_patterns(towers.first.tokenizer, ["cat"]),
    )  # fmt: skip


def prompts(count: int) -> list[str]:
    """Every run of up to two signs before, behind and within a phrase with the name or another, then everyday English."""
    runs = [*SIGNS, *("".join(pair) for pair in itertools.product(SIGNS, repeat=2))]
    listed = ["#! a cat", "", "<|endoftext|> cat", "cat " * 40]
    listed += [
        text for run in runs for text in (f"{run} a cat", f"a{run}cat", f"a dog{run}", f"the {run}cat{run} sits")
    ]
    return [*listed, *load_world("openmoji").benign(max(1, count - len(listed)), split="evaluate", seed=0)][:count]


def measure_agreement(count: int, command: str) -> list[Row]:
    """Prompts on which explain, encoder, ONNX and gate do not all decide alike."""
    rows = []
    with standins() as found, tempfile.TemporaryDirectory() as work:
        for kind, folder, item in found:
            towers = load_towers(folder, HOOKPOINTS[kind])
            texts = list(dict.fromkeys(prompts(count)))
            encoder, encoded = FilteredTextEncoder(towers, {"r": item}), towers.tokenize(texts)
            graph = Path(work) / kind / "filter.onnx"
            graph.parent.mkdir()
            export_graph(encoder, encoded.rows(slice(2)), graph, opset=18)
            session = open_session(graph)
            parity = measure_parity(session, ExportedFilter(encoder), encoded.rows(slice(64)))
            inputs = part_digests(folder, TEXT_PARTS)
            write_report(graph, parity, encoder, providers=session.get_providers(), inputs=inputs)
            onnx, eraser = OnnxTextEncoder(graph), Eraser(load_pipeline(folder), {"r": item}, HOOKPOINTS[kind], {})
            parts = [slice(start, start + 128) for start in range(0, len(texts), 128)]
            decided = {
                "encoder": torch.cat([encoder.encode(encoded.rows(p))[1].flagged[:, 0] for p in parts]),
                "onnx": torch.cat([onnx.encode(encoded.rows(p))[1].flagged[:, 0] for p in parts]),
                "gate": eraser.read(texts).decision.flagged[:, 0],
                "explain": torch.tensor(
                    [explain_prompt(text, towers, {"r": item}, {})["r"].flagged for text in tqdm(texts, desc=kind)]
                ),
            }
            wanted = decided.pop("encoder")
            wrong = torch.stack([other != wanted for other in decided.values()]).any(0)
            tqdm.write(
                f"{kind}: {int(wanted.sum())} of {len(texts)} flagged; {[texts[i] for i in wrong.nonzero()][:5]}"
            )
            what = f"{kind}: prompts on which explain, encoder, ONNX and gate disagree"
            rows.append(share(what, int(wrong.sum()), len(texts), command))
    return rows


def measure_leak(count: int, command: str) -> list[Row]:
    """What an edit of SDXL moves in prompts that are not flagged, and how far an adapter moves the unconditional output."""
    with standins() as found:
        kind, folder, item = found[-1]
        pipe = load_pipeline(folder)
        eraser = Eraser(pipe, {"r": item}, HOOKPOINTS[kind], {}, guard=False)
        texts = prompts(count)
        stock, edited = eraser.read(texts, variant="base"), eraser.read(texts)
        flagged = edited.decision.flagged[:, 0]
        pairs = zip(stock.cond[:2], edited.cond[:2], strict=True)
        states, pooled = ((one != other).flatten(1).any(1) for one, other in pairs)
        leaked = int((states | pooled)[~flagged].sum())
        early = torch.tensor(["<|endoftext|>" in text for text in texts])  # pooled is read at the first EOS
        kept = int((~states | ~(pooled | early))[flagged].sum())
        drift = drift_of(pipe, eraser.towers)
    return [
        share("sdxl: unflagged prompts whose states or pooled output change", leaked, int((~flagged).sum()), command),
        share("sdxl: flagged prompts whose states or pooled output do not", kept, int(flagged.sum()), command),
        largest("sdxl: drift of the unconditional output at zero embeddings", drift[0], 8, 0.0, command),
        largest("sdxl: drift of the unconditional output at the empty prompt", drift[1], 8, 0.01, command),
    ]


def drift_of(pipe: Any, towers: Towers) -> tuple[float, float]:  # noqa: ANN401 - a pipeline
    """(at zeros, at "") the largest relative change of the U-Net's output by an instant adapter of "cat", over 8 noises."""
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = [towers.unconditional().expand(8), towers.unconditional("").expand(8)]
    with torch.no_grad():
        before = [denoise(pipe.unet, x, 500, cond) for cond in both]
    rows = [(f"a {a} beside a {b}", a, b) for a, b in itertools.permutations(("cat", *OTHERS), 2)]
    table = pd.DataFrame(rows, columns=["prompt", "a", "b"]).assign(split="select")
    table["names_target"] = (table["a"] == "cat") | (table["b"] == "cat")
    table["counterpart"] = table["prompt"].str.replace("cat", "fox").where(table["names_target"], "")
    table["name_used"] = np.where(table["names_target"], "cat", "")
    start_adapter(pipe, table, INSTANT)
    with torch.no_grad():
        after = [denoise(pipe.unet, x, 500, cond) for cond in both]
    zero, blank = (float(relative_drift(a, b).max()) for a, b in zip(after, before, strict=True))
    return zero, blank


class Caller:
    """One stand-in's eraser, and an image-to-image pipeline of the same parts; it counts what is drawn unfiltered."""

    def __init__(self, standin: Standin) -> None:
        pipe = load_pipeline(standin.folder)
        self.eraser = Eraser(pipe, {"r": standin.item}, HOOKPOINTS[standin.kind], {}, solver_steps=1)
        self.other: Any = AutoPipelineForImage2Image.from_pipe(pipe)
        self.other.set_progress_bar_config(disable=True)
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        self.how: dict[str, Any] = {"image": photo, "strength": 0.9, "num_inference_steps": 2, "output_type": "np"}
        self.drawn, self.painted, self.wrong = self.draw(), self.paint("gated"), 0
        assert not np.array_equal(self.painted, self.paint("base"))

    def draw(self) -> np.ndarray:
        """The target by the eraser itself."""
        return np.asarray(self.eraser.draw("a cat", seed=1).image)

    def paint(self, variant: Variant) -> np.ndarray:
        """The target by the other pipeline, from an image, as it was read."""
        erased = self.eraser.read(["a cat"], variant=variant)
        with self.eraser.acting(erased):
            given = erased.for_pipeline() | self.how
            return self.other(**given, generator=torch.Generator().manual_seed(0)).images[0]

    def refused(self) -> bool:
        """Whether the other pipeline refuses the target in words."""
        try:
            self.other(prompt="a cat", **self.how)
        except UserError:
            return True
        return False

    def calls(self, count: int) -> None:
        """`count` calls of the three kinds in turn."""
        for call in range(count):
            right = (
                self.refused()
                if call % 3 == 2
                else np.array_equal(self.paint("gated"), self.painted)
                if call % 3
                else np.array_equal(self.draw(), self.drawn)
            )
            self.wrong += not right


def measure_calls(count: int, command: str) -> list[Row]:
    """Images of the target that are not the filtered one, or drawn by a call with words: two threads, `from_pipe`, from an image."""
    rows, each = [], -(-count // (2 * len(KINDS)))
    with standins() as found:
        for standin in found:
            caller = Caller(standin)
            threads = [threading.Thread(target=caller.calls, args=(each,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            what = f"{standin.kind}: calls under 2 threads that draw the target unfiltered"
            rows.append(share(what, caller.wrong, 2 * each, command))
    return rows


def measure_export(count: int, command: str) -> list[Row]:
    """Weight files of an export whose U-Net equals the base's, or that loading does not read."""
    left = total = 0
    with standins() as found, tempfile.TemporaryDirectory() as work:
        for kind, folder, _ in found[:count]:
            pipe = load_pipeline(folder)
            rng = torch.Generator().manual_seed(0)
            for parameter in attach(pipe.unet, "r", rank=4):
                parameter.data = torch.randn(parameter.shape, generator=rng)
            adapter, out = Path(work) / f"{kind}-r", Path(work) / f"{kind}-out"
            write_adapter(adapter, pipe.unet, "r", params={}, inputs=part_digests(folder, MADE_FOR), facts={})
            changed = write_merged(out, folder, {"r": adapter})
            weights = [p for p in out.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".ckpt")]
            loaded = load_pipeline(out)
            assert all(
                not torch.equal(loaded.unet.state_dict()[n], pipe.unet.state_dict().get(n, torch.zeros(())))
                for n in changed
            )
            unet = [p for p in weights if p.parent.name == "unet"]
            same = {digest(p) for p in (folder / "unet").iterdir()}
            left += sum(p.suffix != ".safetensors" for p in weights)
            left += digest_all(unet) <= same
            total += len(weights)
    return [
        share("weight files in an export that are the base's unedited U-Net or are never read", left, total, command)
    ]


def digest_all(paths: list[Path]) -> set[str]:
    """Their SHA-256."""
    return {digest(path) for path in paths}
