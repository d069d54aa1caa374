"""What a filter costs: latency, file size and memory of the text encoder's graph with and without it, on onnxruntime.

    python -m research.filter latency

The encoder has CLIP ViT-L's sizes and random weights. Contenders take turns, so that whatever else the machine does meets
all of them; a ratio is taken within a turn. Interpret-then-Deactivate's
dense form (arXiv 2503.09446) is the encoder's graph and then, at all L positions, a graph of its own with the whole
autoencoder, TopK and decoder; onnxruntime runs it too.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from tqdm import tqdm

from components.diffusion.encode import Encoded
from components.export.graph import export_graph
from components.export.parity import open_session
from components.filter.encoder import FilteredTextEncoder
from research.filter.graphs import (
    CONTEXT,
    OPSET,
    OWN,
    DenseSae,
    K,
    Shape,
    StockStates,
    build_encoder,
    build_filters,
    build_towers,
    export_module,
    prompts,
)
from research.record import environment, publish, quartiles, spread, table

NAME = "filter_latency"
PACKAGES = ("expunge", "onnxruntime-gpu", "onnx", "onnxscript", "torch", "transformers", "numpy")
GOAL = 1.05
"""Latency with a filter over latency without."""


class Contender(NamedTuple):
    """Something to be timed, and what it costs besides time."""

    name: str
    call: Callable[[], object]
    mib: float
    """Of its files."""
    resident_mib: float
    """What a process grows by when it opens the graphs and runs one prompt."""


def folder_mib(folder: Path) -> float:
    """Size of its files."""
    return sum(file.stat().st_size for file in folder.iterdir()) / 2**20


def rss_mib() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def resident(feeds: Mapping[str, np.ndarray], paths: Sequence[Path]) -> float:
    """MiB by which this process grows when it opens the graphs and runs each once."""
    before = rss_mib()
    sessions = [open_session(path) for path in paths]
    for session in sessions:
        session.run(None, inputs_of(session, feeds))
    return rss_mib() - before


def inputs_of(session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the session takes of `feeds`; a filter's graph looks for the listed tokens itself."""
    shapes = {item.name: item.shape for item in session.get_inputs()}
    found = {name: feeds[name] for name in shapes if name in feeds}
    if "named" in shapes:
        found["named"] = np.full((*feeds["input_ids"].shape, shapes["named"][-1]), -1, np.int64)
    return found


def resident_alone(feeds: Mapping[str, np.ndarray], paths: Sequence[Path]) -> float:
    """The same in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(resident, dict(feeds), list(paths)).result()


def race(contenders: Sequence[Contender], *, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of every call: all contenders in turn, `repeats` times or until `seconds` have passed, thrice at least."""
    for contender in contenders:
        contender.call()
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    begun = time.perf_counter()
    for turn in tqdm(range(repeats), desc=" ".join(times), unit="turn", leave=False):
        if turn >= 3 and time.perf_counter() - begun > seconds:
            break
        for contender in contenders:
            start = time.perf_counter()
            contender.call()
            times[contender.name].append(time.perf_counter() - start)
    return times


def summarise(contenders: Sequence[Contender], times: Mapping[str, list[float]], batch: int) -> list[dict[str, Any]]:
    """A record for each contender; the first is the one that the others are compared with."""
    base = np.array(times[contenders[0].name])
    return [
        {
            "contender": c.name,
            "batch": batch,
            "milliseconds": quartiles([1e3 * t for t in times[c.name]]),
            "ratio": float(np.median(times[c.name]) / np.median(base)),
            "ratio_within_turns": quartiles((np.array(times[c.name]) / base).tolist()),
            "file_mib": c.mib,
            "resident_mib": c.resident_mib,
        }
        for c in contenders
    ]


def needed_bytes(shape: Shape, d_sae: int, batch: int) -> int:
    """A bound on what the dense form takes: weights thrice (torch, file, packed), and pre-activations and codes."""
    return 4 * (3 * 2 * shape.width * d_sae + 3 * batch * shape.length * d_sae)


def free_bytes() -> int:
    """Memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def run(
    shape: Shape,
    requests: Sequence[int],
    widths: Sequence[int],  # d_sae of the dense form
    batches: Sequence[int],
    *,
    repeats: int,
    seconds: float,  # of one race at most
    out: Path,
) -> list[dict[str, Any]]:
    """Exports, races, publishes; returns the records."""
    encoder = build_encoder(shape)
    towers = build_towers(shape, encoder)
    feeds = {b: {"input_ids": prompts(shape, b)} for b in batches}
    example = torch.from_numpy(prompts(shape, 2))
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        graphs: dict[str, Path] = {}
        for count in tqdm([0, *requests], desc="export", unit="graph"):
            name = f"encoder, {count} request{'s' * (count > 1)}" if count else "encoder"
            graphs[name] = Path(work) / f"filter-{count}" / "graph.onnx"
            graphs[name].parent.mkdir()
            if count:
                filtered = FilteredTextEncoder(towers, build_filters(shape.width, shape.vocabulary, count))
                export_graph(filtered, Encoded(example, example > 0), graphs[name], opset=OPSET)
            else:
                export_module(
                    StockStates(encoder).eval(), example, graphs[name], ("input_ids", "last_hidden_state"), beside=False
                )
        one = {"input_ids": prompts(shape, 1)}
        cost = {name: (folder_mib(path.parent), resident_alone(one, [path])) for name, path in graphs.items()}
        sessions = {name: open_session(path) for name, path in graphs.items()}
        for batch in batches:
            contenders = [Contender(n, caller(s, feeds[batch]), *cost[n]) for n, s in sessions.items()]
            found += summarise(contenders, race(contenders, repeats=repeats, seconds=seconds), batch)
        stock = sessions["encoder"]
        del sessions, contenders  # each holds the graphs
        gc.collect()
        for d_sae in widths:
            found += measure_dense(
                shape, d_sae, stock, graphs["encoder"], cost["encoder"], batches, repeats=repeats, seconds=seconds
            )
    record = {
        "environment": environment(PACKAGES),
        "providers": stock.get_providers(),
        "onnxruntime": ort.__version__,
        "shape": shape._asdict(),
        "features_per_request": OWN + CONTEXT,
        "k": K,
        "goal": GOAL,
        "results": found,
    }
    publish(NAME, record, describe(shape, found), out)
    return found


def caller(session: ort.InferenceSession, feed: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """One call of a session."""
    given = inputs_of(session, feed)
    return lambda: session.run(None, given)


def measure_dense(
    shape: Shape,
    d_sae: int,
    stock: ort.InferenceSession,
    graph: Path,
    cost: tuple[float, float],
    batches: Sequence[int],
    *,
    repeats: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """The dense form of one width against the encoder alone; records that say why where memory does not suffice."""
    name = f"encoder, dense SAE of 2^{d_sae.bit_length() - 1}"
    fits = [b for b in batches if needed_bytes(shape, d_sae, b) < 0.85 * free_bytes()]
    found: list[dict[str, Any]] = []
    if fits:
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "graph.onnx"
            example = torch.zeros(2, shape.length, shape.width)
            export_module(
                DenseSae(shape.width, d_sae).eval(), example, path, ("residual_stream", "reconstruction"), beside=True
            )
            gc.collect()
            states = {b: rng.standard_normal((b, shape.length, shape.width), np.float32) for b in {1, *fits}}
            one = {"input_ids": prompts(shape, 1), "residual_stream": states[1]}
            whole = (cost[0] + folder_mib(path.parent), resident_alone(one, [graph, path]))
            dense = open_session(path)
            for batch in fits:
                first = caller(stock, {"input_ids": prompts(shape, batch)})
                then = caller(dense, {"residual_stream": states[batch]})
                contenders = [
                    Contender("encoder", first, *cost),
                    Contender(name, lambda first=first, then=then: (first(), then()), *whole),
                ]
                times = race(contenders, repeats=repeats, seconds=seconds)
                found += summarise(contenders, times, batch)[1:]
    for batch in batches:
        if batch not in fits:
            need = needed_bytes(shape, d_sae, batch) / 2**30
            found.append({"contender": name, "batch": batch, "why_not": f"would take {need:.0f} GiB of memory"})
    return found


def describe(shape: Shape, found: Sequence[Mapping[str, Any]]) -> str:
    """The table, under a line that says what was measured."""
    sizes = ", ".join(f"{name} {size}" for name, size in shape._asdict().items())
    rows = [
        [r["contender"], str(r["batch"]), r["why_not"], "", "", "", ""]
        if "why_not" in r
        else [
            r["contender"],
            str(r["batch"]),
            spread(r["milliseconds"]),
            str(r["milliseconds"]["n"]),
            spread(r["ratio_within_turns"]),
            f"{r['file_mib']:.0f}",
            f"{r['resident_mib']:.0f}",
        ]
        for r in found
    ]
    header = ("contender", "batch", "ms, median [quartiles]", "n", "ratio within turns", "file, MiB", "resident, MiB")
    return f"{sizes}; {OWN + CONTEXT} features a request; goal: ratio ≤ {GOAL}\n\n" + table(header, rows)
