"""All of params.yaml at once, which no stage reads: every section checked by its owner's class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from components.collect.params import ConceptsParams, CorpusParams
from components.common.errors import UserError
from components.common.sections import PARAMS, read_section, read_yaml
from components.diffusion.params import BaseParams
from components.evaluate.attacks.params import AttackParams
from components.evaluate.params import EvaluateParams
from components.evaluate.probes.params import ProbeParams
from components.export.params import ExportParams
from components.features.params import FeaturesParams
from components.guidance.params import GuidanceParams
from components.ledger.params import LedgerParams
from components.registry.params import PromoteParams, check_sizes
from components.sae.params import SaeParams
from components.worlds.params import JudgeParams

SECTIONS: dict[str, type] = {
    "world": str,
    "base": BaseParams,
    "judge": JudgeParams,
    "corpus": CorpusParams,
    "concepts": ConceptsParams,
    "sae": SaeParams,
    "features": FeaturesParams,
    "guidance": GuidanceParams,
    "evaluate": EvaluateParams,
    "attack": AttackParams,
    "probe": ProbeParams,
    "export": ExportParams,
    "ledger": LedgerParams,
    "promote": PromoteParams,
}


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """Every section, as it was understood; `UserError` for one that is missing, does not make sense, or that nobody owns."""
    content = read_yaml(path)
    if isinstance(content, dict) and (unknown := [name for name in content if name not in SECTIONS]):
        raise UserError(f"{path} has an unknown section {unknown[0]!r}", f"use some of: {', '.join(SECTIONS)}")
    read: dict[str, Any] = {name: read_section(name, kind, path) for name, kind in SECTIONS.items()}
    check_sizes(read["promote"], read["evaluate"], read["attack"])
    return {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in read.items()}
