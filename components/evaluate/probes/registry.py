"""Every probe by its name."""

from __future__ import annotations

from components.common.errors import UserError
from components.evaluate.probes import images, inversion
from components.evaluate.probes.given import Probe

RELEARNING = "relearning"
PROBES = {
    probe.name: probe
    for probe in (
        Probe("completion", "T3", images.completion),
        Probe("inpainting", "T3", images.inpainting),
        Probe("added-noise", "T3", images.added_noise),
        Probe("start-latent", "T3", images.start_latent),
        Probe("purification", "T3", images.purification),
        Probe("classifier-guidance", "T3", images.classifier_guidance),
        Probe("textual-inversion", "T3", inversion.textual_inversion),
    )
}
NAMES = (*PROBES, RELEARNING)


def check_probe(name: str) -> str:
    """`name` itself; `UserError` if no probe is called so."""
    if name not in NAMES:
        raise UserError(f"probe {name!r} is unknown", f"use some of: {', '.join(NAMES)}")
    return name
