"""Small releases that `read_release` accepts, and a registry of them in memory."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import yaml

from components.common.errors import UserError
from components.common.files import canonical, digest
from components.evaluate.gates import judge_gates
from components.evaluate.metrics import proportion
from components.evaluate.params import GateParams
from components.ledger.releases import ALIASES
from components.registry.checks import Evidence, scopes
from components.registry.params import PromoteParams
from components.registry.promotion import Policy
from components.registry.release import FORMAT, RELEASE, VERSION, read_release
from components.requests.requests import load_requests
from tests.toyattacks import attack_params, attack_results, write_attacks

GATES = (
    GateParams(metric="ua", variant="base", direction="at_most", threshold=0.5, n=24),
    GateParams(metric="ua", variant="gated", direction="at_least", threshold=0.9, n=24),
    GateParams(metric="ira", variant="summed", direction="at_least", threshold=-0.05, relative_to_base=True, n=32),
    GateParams(metric="fpr", variant="filter", direction="at_most", threshold=0.005, n=1000),
)
PROMOTE = PromoteParams(size="full", images={"quick": 24, "full": 142}, margin={"ua": 0.02, "ira": 0.05})
POLICY = Policy(GATES, PROMOTE)
REQUEST = {
    "target": "cat",
    "kind": "object",
    "aliases": [],
    "anchor": "dog",
    "neighbours": [],
    "channels": ["filter", "guidance"],
}


class Shown(NamedTuple):
    """Hits of each metric: of 200 images, of 2000 prompts, and of 200 attempts of an attacker."""

    ua: int = 200
    ira: int = 190
    fpr: int = 2
    attacks: int = 0
    images: int = 200


PERFECT = Shown()


def metrics_of(shown, requests):
    """metrics.json's part `requests`."""
    n = shown.images
    rate = {"ua": proportion([i < shown.ua for i in range(n)]), "ira": proportion([i < shown.ira for i in range(n)])}
    variants = {
        "base": {"ua": proportion([False] * n), "ira": proportion([i < 0.95 * n for i in range(n)])},
        "filter": {"fpr": proportion([i < shown.fpr for i in range(2000)])},
        "gated": rate,
        "summed": rate,
    }
    plain = {v: {name: metric.record() for name, metric in found.items()} for v, found in variants.items()}
    return dict.fromkeys((*requests, "joint"), plain)


def write_release(
    folder: Path, shown=PERFECT, *, size="full", requests=None, note="", gates=GATES, passed=None, attack=None,
    attacked=True, attacks_passed=None,
):  # fmt: skip
    """Writes a release and returns it; `passed` and `attacks_passed` are verdicts set by hand, `attack` a section of its own."""
    requests = {"r-1": REQUEST} if requests is None else requests
    for part in ("filter", "adapters/r-1", "onnx", "report"):
        (folder / part).mkdir(parents=True)
        (folder / part / "artifact.json").write_text(json.dumps({"note": note}))
    (folder / "requests.yaml").write_text(yaml.safe_dump({"requests": requests}))
    settings = {
        "size": size, "sizes": {size: {"templates": 1, "seeds": 1, "retain": 1}}, "batch": 1, "seed": 0,
        "gates": [gate.model_dump(mode="json") for gate in gates],
    }  # fmt: skip
    attack = attack or attack_params(size)
    sections = {"evaluate": settings, "attack": attack.model_dump(mode="json"), "world": "openmoji"}
    (folder / "params.yaml").write_text(yaml.safe_dump(sections))
    if attacked:
        found = attack_results(attack, requests, {}, hits=shown.attacks)
        write_attacks(folder / "report" / "attacks", found, attack, passed=attacks_passed)
    metrics = metrics_of(shown, requests)
    evidence = Evidence(size, metrics, load_requests(folder / "requests.yaml"))
    verdict = judge_gates(metrics, gates, scopes(evidence), {}).record()
    verdict["passed"] = verdict["passed"] if passed is None else passed
    report = {"size": size, "requests": metrics, "targets": {}}
    (folder / "report" / "metrics.json").write_text(canonical(report))
    (folder / "report" / "verdict.json").write_text(canonical(verdict))
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    record = {"format": FORMAT, "version": VERSION, "files": {name: digest(folder / name) for name in files}}
    (folder / RELEASE).write_text(canonical(record))
    return read_release(folder)


class Version(NamedTuple):
    version: int


class Store:
    """A registry of releases in folders; it answers as `Registry` does."""

    def __init__(self, folders=()):
        self.folders, self.named = list(folders), {}

    def versions(self):
        """All versions."""
        return [Version(number) for number in range(1, len(self.folders) + 1)]

    def fetch(self, which, out):
        """A copy of the version's folder, checked."""
        if which not in range(1, len(self.folders) + 1):
            raise UserError(f"version {which} does not exist", "use another")
        shutil.copytree(self.folders[which - 1], out)
        return read_release(out)

    def aliases(self):
        """All aliases."""
        return dict(self.named)

    def set_aliases(self, wanted):
        """As `Registry` does: the aliases of others stay."""
        self.named = {name: v for name, v in self.named.items() if name not in ALIASES} | dict(wanted)
