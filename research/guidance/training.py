"""Trains an adapter as the stage `guidance` does, into any folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from components.collect.record import RequestRecord
from components.common.closure import code_of
from components.common.files import digest, key_of, read_sidecar
from components.diffusion.device import accelerator_device
from components.diffusion.folder import part_digests
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.guidance.adapters import FORMAT, MADE_FOR, write_adapter
from components.guidance.params import GuidanceParams
from components.guidance.start import NAME
from components.guidance.train import train_adapter


class Trained(NamedTuple):
    """One adapter, and what it cost."""

    folder: Path
    seconds: float
    """From loading the base to the last step."""


def train_one(
    record: RequestRecord,
    table: pd.DataFrame,  # the request's prompts
    base: BaseParams,
    params: GuidanceParams,
    workspace: Path,
) -> Trained:
    """Trains the adapter of one request, or finds it in `workspace`.

    The adapter's folder is named by all that the adapter is made from, so that a report that stopped goes on.
    """
    device = accelerator_device()
    made_from = {
        "base": digest(base.path),
        "code": code_of("components.guidance.train"),
        "device": device.type,  # its seconds are part of the result
        "guidance_scale": str(base.guidance_scale),
        "params": params.model_dump_json(),
        "prompts": str(table.to_json(orient="split")),
        "request": record.model_dump_json(),
    }
    folder = workspace / key_of(made_from)
    if folder.is_dir():
        return Trained(folder, read_sidecar(folder, FORMAT)["facts"]["seconds"])
    begun = time.perf_counter()
    pipe = load_pipeline(base.path, device)
    steps = train_adapter(pipe, record, table, params, guidance_scale=base.guidance_scale)
    title = f"guidance {record.request.target}"
    for _ in tqdm(steps, total=params.steps, desc=title, unit="step", mininterval=5):
        pass
    seconds = time.perf_counter() - begun
    inputs = part_digests(base.path, MADE_FOR)
    write_adapter(folder, pipe.unet, NAME, params=params.model_dump(), inputs=inputs, facts={"seconds": seconds})
    return Trained(folder, seconds)
