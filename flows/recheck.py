"""Flow `recheck`: evaluates and attacks the champion again on fresh seeds, in a scratch folder, and raises the alarm if it no longer passes.

What is evaluated are the bytes of the champion's release, fetched and checked; prompts are drawn anew from its own requests and params,
seeds are the date's. The working tree is only read: for the base model, the judges and other inputs that params.yaml names by a path in it;
the digests of base and judge must be those of the release.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prefect import flow, get_run_logger, task
from prefect.events import emit_event
from prefect.states import Cancelled, State

import components
from components.common.errors import ArtifactError, StageError
from components.common.files import write_text
from components.common.paths import CONCEPTS, CORPUS, EVALUATE, FILTER, GUIDANCE
from components.common.process import stream
from components.evaluate.attacks.evidence import attacked_same
from components.evaluate.attacks.summary import ATTACKS, read_attacks
from components.evaluate.summary import read_evaluation
from components.ledger.releases import History, read_history
from components.registry import binding
from components.registry.checks import Assessment, Evidence, assess, check_attacks
from components.registry.params import PromoteParams
from components.registry.promotion import Policy, check_same, fetched, read_policy
from components.registry.release import Release
from flows.common import HOOKS, HOUR, RETRIES, publish, registrar
from flows.lifecycle import FlowCancelledError, cancellation, run_program
from flows.notify import notify

ACTOR = "expunge-recheck"
STAGES = (
    "components.collect.stage_corpus",
    "components.collect.stage_concepts",
    "components.evaluate.stage",
    "components.evaluate.attacks.stage",
)
WRITTEN = {Path("data"), Path("models"), Path("reports"), CORPUS, CONCEPTS, FILTER, GUIDANCE}
"""Paths in a project that lead to what a recheck writes itself."""
ATTACK_SIZE = "quick"
"""Size of the attacks, where params.yaml has it; else the size that params.yaml names."""
REGRESSED = "expunge.release.regressed"


class Recheck(NamedTuple):
    """What a second evaluation of the champion found; without a champion there is no assessment."""

    version: int | None
    seed: int
    assessment: Assessment | None


def prepare(release: Release, scratch: Path, policy: Policy, seed: int, root: Path) -> None:
    """Fills a scratch project with a release's filter, adapters, requests and params, today's gates, attacks and a seed, and links to the rest of `root`."""
    for source, target in ((binding.FILTER, FILTER), (binding.ADAPTERS, GUIDANCE)):
        if (release.folder / source).is_dir():
            shutil.copytree(release.folder / source, scratch / target)
        else:
            (scratch / target).mkdir(parents=True)
    shutil.copyfile(release.folder / "requests.yaml", scratch / "requests.yaml")
    params = release.params
    gates = [gate.model_dump(mode="json") for gate in policy.gates]
    params["evaluate"] = params["evaluate"] | {"seed": seed, "gates": gates}
    if policy.attack:
        size = ATTACK_SIZE if ATTACK_SIZE in policy.attack.sizes else policy.attack.size
        params["attack"] = policy.attack.model_dump(mode="json") | {"seed": seed, "size": size}
    write_text(scratch / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    _link_inputs(root.resolve(), scratch)


def _link_inputs(root: Path, scratch: Path) -> None:
    """Links in `scratch` to what lies in `root` and is neither there already nor written by a stage of the recheck."""
    for path in [*root.iterdir(), *root.glob("data/*"), *root.glob("models/*")]:
        here = path.relative_to(root)
        if not path.name.startswith(".") and here not in WRITTEN and not (scratch / here).exists():
            (scratch / here).parent.mkdir(exist_ok=True)
            (scratch / here).symlink_to(path)


def evaluate_again(release: Release, policy: Policy, seed: int, root: Path, line: Callable[[str], None]) -> Evidence:
    """The metrics and attacks of a release on other seeds; `StageError` if a stage fails, `ArtifactError` if base or judge are not its own."""
    with tempfile.TemporaryDirectory(prefix="expunge-recheck-") as folder:
        scratch, code = Path(folder), Path(components.__file__).parents[1]
        prepare(release, scratch, policy, seed, root)
        cancelled = cancellation()
        for stage in STAGES:
            status = stream(["env", f"PYTHONPATH={code}", sys.executable, "-m", stage], scratch, line, ended=cancelled)
            if cancelled():
                raise FlowCancelledError
            if status != 0:
                raise StageError(f"{stage} ended with exit status {status}", "its log above says why")
        metrics, verdict = read_evaluation(scratch / EVALUATE)
        attacks, _ = read_attacks(scratch / ATTACKS)
    judged = release.verdict["judged"]
    for part in ("base", "judge", "filter"):
        if verdict["judged"].get(part) != judged.get(part):
            raise ArtifactError(f"the {part} is not the one of the release", "restore it: git checkout or dvc checkout")
    if part := attacked_same(attacks["judged"], verdict["judged"]):
        raise ArtifactError(f"the {part} that was attacked is not the one that was evaluated", "run the flow again")
    return Evidence(metrics["size"], metrics["requests"], release.requests, attacks)


def judge_again(found: Evidence, policy: Policy, history: History, version: int) -> Assessment:
    """The findings on the new metrics and attacks, each of the size that was run; an override in force answers for its gate as it did at the promotion."""
    overrides = history.releases[version].in_force(datetime.now(UTC))
    size = found.attacks["size"] if found.attacks else ""
    attacked = check_attacks(found, policy.tiers(size), _sized(policy.promote, size), policy.attacks(size))
    overridden = [override.gate for override in overrides]
    return assess(found, policy.gates, _sized(policy.promote, found.size), overridden=overridden, attacked=attacked)


def _sized(params: PromoteParams, size: str) -> PromoteParams:
    """What promotion asks for, of a size that it knows."""
    return params.model_copy(update={"size": size}) if size in params.images else params


@task(name="recheck-champion", **RETRIES)
def recheck_champion(root: Path, seed: int) -> Recheck:
    """Fetches, evaluates and judges."""
    acts, policy = registrar(root, ACTOR, empty=True), read_policy(root)
    history = read_history(acts.ledger)
    version = history.champion
    if version is None:
        check_same(history, acts.store.aliases())
        return Recheck(None, seed, None)
    with fetched(acts.store, version, history.releases[version].digest) as release:
        found = evaluate_again(release, policy, seed, root, get_run_logger().info)
    return Recheck(version, seed, judge_again(found, policy, history, version))


@flow(name="recheck", flow_run_name="recheck", timeout_seconds=12 * HOUR, **HOOKS)
def recheck(root: str = ".", seed: int | None = None) -> dict[str, Any] | State:
    """Evaluates and attacks the champion of the project in `root` again; `StageError` if a gate fails that it passed. The seed's default is the date."""
    seed = int(f"{datetime.now(UTC):%Y%m%d}") if seed is None else seed
    try:
        done = recheck_champion(Path(root).resolve(), seed)
    except FlowCancelledError as error:
        return Cancelled(message=error.fact)
    if done.assessment is None:
        get_run_logger().info("there is no champion to check")
        return {"version": None, "result": "", "seed": done.seed, "failed": []}
    failed = [finding.gate for finding in done.assessment.failed]
    facts = {"version": done.version, "result": done.assessment.result, "seed": done.seed, "failed": failed}
    rows = [[f.gate, "pass" if f.passed else "FAIL", f.reason, f.n] for f in done.assessment.findings]
    title = f"Champion (version {done.version}) on fresh seeds: {done.assessment.result}"
    publish("expunge-recheck", title, rows, header=["gate", "", "reason", "n"], note=f"Seed {done.seed}.")
    if failed:
        resource = {"prefect.resource.id": f"expunge.release.{done.version}"}
        emit_event(REGRESSED, resource=resource, payload={"failed": failed, "seed": done.seed})
        notify("release.regressed", facts)
        raise StageError(
            f"the champion, version {done.version}, fails {failed[0]} on seed {done.seed}",
            f"look at it and roll back: expunge release show {done.version}",
        )
    notify("release.rechecked", facts)
    return facts


if __name__ == "__main__":
    run_program(recheck)
