"""Stage `guidance@<request>`: makes that request's adapter, and no other."""

from __future__ import annotations

import sys

from accelerate import Accelerator
from tqdm import tqdm

from components.collect.record import read_record
from components.collect.tables import read_table
from components.common.closure import code_of
from components.common.curves import write_curves
from components.common.files import digest, key_of, naming
from components.common.paths import CACHE, CONCEPTS, GUIDANCE
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.diffusion.device import accelerator_device
from components.diffusion.folder import part_digests
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.guidance.adapters import MADE_FOR, write_adapter, write_no_adapter
from components.guidance.params import GuidanceParams
from components.guidance.plot import last_losses, plot_training
from components.guidance.start import NAME
from components.guidance.train import train_adapter


def guidance(request_id: str) -> None:
    """Trains the adapter and writes `models/guidance/<request>`; without the channel `guidance` a note that there is none."""
    base, params = read_section("base", BaseParams), read_section("guidance", GuidanceParams)
    record, folder = read_record(request_id), GUIDANCE / request_id
    if "guidance" not in record.request.channels:
        write_no_adapter(folder)
        return
    table, pipe = read_table(CONCEPTS / request_id), load_pipeline(base.path, accelerator_device())
    inputs = part_digests(base.path, MADE_FOR) | {"concepts": digest(CONCEPTS / request_id)}
    made_from = {"code": code_of("components.guidance.train"), "params": params.model_dump_json()}
    key = key_of(inputs | made_from | {"guidance_scale": str(base.guidance_scale)})
    checkpoint = CACHE / "guidance" / f"{request_id}-{key}.safetensors"
    loop = train_adapter(pipe, record, table, params, guidance_scale=base.guidance_scale, checkpoint=checkpoint)
    steps = list(tqdm(loop, total=params.steps, desc=f"guidance {request_id}", unit="step", mininterval=5))
    if not Accelerator().is_main_process:
        return
    facts = {"final": last_losses(steps)}
    write_adapter(folder, pipe.unet, NAME, params=params.model_dump(), inputs=inputs, facts=facts)
    if steps:
        with naming(folder / "training.png"):
            plot_training(steps).savefig(folder / "training.png", dpi=80)
        write_curves(folder, steps)
    checkpoint.unlink(missing_ok=True)
    log.info("guidance %s: %s", request_id, facts)


if __name__ == "__main__":
    run_stage(guidance, *sys.argv[1:])
