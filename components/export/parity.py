"""Holds the ONNX graph against torch: hidden states within a tolerance, decisions identical.

P prompts
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch

from components.common.errors import UserError
from components.common.files import digest
from components.diffusion.encode import Encoded
from components.export.graph import ExportedFilter, data_of, feed_of, input_names, output_names
from components.export.report import REPORT, write_sealed
from components.filter.artifact import text_facts
from components.filter.encoder import FilteredTextEncoder


class Parity(NamedTuple):
    """How far the two run-times differ."""

    prompts: int
    max_abs_hidden: float
    max_abs_score: float
    decisions_agree: bool
    flagged: int
    """Prompts that at least one request flags."""


def open_session(path: Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> ort.InferenceSession:
    """A session on the first of `providers`; `UserError` if this onnxruntime does not have it (it would fall back silently)."""
    available = ort.get_available_providers()
    if providers[0] not in available:
        raise UserError(f"onnxruntime has no {providers[0]} here", f"use one of: {', '.join(available)}")
    ort.set_default_logger_severity(3)
    session = ort.InferenceSession(str(path), providers=list(providers))
    if session.get_providers()[0] != providers[0]:
        raise UserError(
            f"{path} could not be opened on {providers[0]}", f"it runs on {session.get_providers()[0]} only"
        )
    return session


def measure_parity(session: ort.InferenceSession, module: ExportedFilter, encoded: Encoded) -> Parity:
    """Runs both on the tokens of P prompts in batches of 1, 2, 3, 4, 16, 16, … and compares everything that they return."""
    sizes = [1, 2, 3, 4]
    hidden = score = 0.0
    agree, flagged, start = True, 0, 0
    names, requests = list(output_names(1 + len(encoded.others))), len(module.encoder.requests)
    while start < len(encoded.input_ids):
        part = encoded.rows(slice(start, start + (sizes.pop(0) if sizes else 16)))
        start += len(part.input_ids)
        feed = feed_of(part, requests)
        found = session.run(names, feed)
        with torch.no_grad():
            wanted = [tensor.numpy() for tensor in module(*map(torch.from_numpy, feed.values()))]
        states = [float(np.abs(f - w).max()) for f, w in zip(found[:-2], wanted[:-2], strict=True)]
        hidden = max(hidden, *states)
        score = max(score, float(np.abs(found[-2] - wanted[-2]).max(initial=0.0)))
        agree &= bool((found[-1] == wanted[-1]).all())
        flagged += int(wanted[-1].any(1).sum())
    return Parity(len(encoded.input_ids), hidden, score, agree, flagged)


def write_report(
    graph: Path,
    parity: Parity,
    encoder: FilteredTextEncoder,
    *,
    providers: Sequence[str],
    inputs: Mapping[str, str],  # digests of the base's text parts
    made_from: Mapping[str, object] | None = None,
) -> None:
    """Writes, beside the graph, what a server may rely on: its digest, what it was made from and for, its requests in order, and how it compares."""
    towers = encoder.towers
    data = data_of(graph)
    report = text_facts(towers) | {
        "parity": parity._asdict(),
        "sha256": digest(graph),
        "data_sha256": digest(data) if data.is_file() else None,
        "inputs": list(input_names(len(towers.all))),
        "outputs": list(output_names(len(towers.all))),
        "requests": list(encoder.requests),
        "max_length": towers.max_length,
        "providers": list(providers),
        "made_from": dict(made_from or {}),
        "made_for": dict(inputs),
    }
    write_sealed(graph.with_name(REPORT), report)


def latency(session: ort.InferenceSession, encoded: Encoded, *, repeats: int = 20) -> float:
    """Median seconds of one call on the tokens of B prompts."""
    feed = feed_of(encoded, session.get_outputs()[-1].shape[-1])
    session.run(None, feed)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))
