"""Holds the ONNX graph against torch: hidden states within a tolerance, decisions identical.

P prompts, L token positions
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
from components.common.files import canonical, digest
from components.export.graph import INPUTS, OUTPUTS, ExportedFilter

REPORT = "parity.json"
"""Stands beside the graph."""


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


def measure_parity(session: ort.InferenceSession, module: ExportedFilter, input_ids: torch.Tensor) -> Parity:
    """Runs both on tokens (P, L) in batches of 1, 2, 3, 4, 16, 16, … and compares everything that they return."""
    sizes = [1, 2, 3, 4]
    hidden = score = 0.0
    agree, flagged, start = True, 0, 0
    while start < len(input_ids):
        ids = input_ids[start : start + (sizes.pop(0) if sizes else 16)]
        start += len(ids)
        found = session.run(list(OUTPUTS), {INPUTS[0]: ids.numpy()})
        with torch.no_grad():
            wanted = [tensor.numpy() for tensor in module(ids)]
        hidden = max(hidden, float(np.abs(found[0] - wanted[0]).max()))
        score = max(score, float(np.abs(found[1] - wanted[1]).max(initial=0.0)))
        agree &= bool((found[2] == wanted[2]).all())
        flagged += int(wanted[2].any(1).sum())
    return Parity(len(input_ids), hidden, score, agree, flagged)


def write_report(
    graph: Path,
    parity: Parity,
    *,
    requests: Sequence[str],
    max_length: int,
    providers: Sequence[str],
    made_from: Mapping[str, object] | None = None,
) -> None:
    """Writes, beside the graph, what a server may rely on: its digest, what it was made from, its requests in order, and how it compares."""
    report = {
        "parity": parity._asdict(),
        "sha256": digest(graph),
        "inputs": list(INPUTS),
        "outputs": list(OUTPUTS),
        "requests": list(requests),
        "max_length": max_length,
        "providers": list(providers),
        "made_from": dict(made_from or {}),
    }
    graph.with_name(REPORT).write_text(canonical(report), encoding="utf-8")


def latency(session: ort.InferenceSession, input_ids: torch.Tensor, *, repeats: int = 20) -> float:
    """Median seconds of one call on tokens (B, L)."""
    feed = {INPUTS[0]: input_ids.numpy()}
    session.run(None, feed)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))
