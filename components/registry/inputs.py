"""What the last stages would refuse after hours of training, and what can be known before the first: requests, prompts, attacks.

    python -m components.registry.inputs     # in a project: one sentence and its exit code

It imports torch, so that `components.registry.preflight.ask_inputs` runs it in a process whose memory ends with it.
"""

from __future__ import annotations

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams, CorpusParams
from components.collect.sources import read_source
from components.common.errors import UserError
from components.common.sections import PARAMS, read_section
from components.common.toplevel import one_sentence
from components.diffusion.geometry import read_geometry
from components.diffusion.params import BaseParams
from components.diffusion.text import check_hookpoints
from components.evaluate.attacks.attempts import read_target
from components.evaluate.attacks.params import AttackParams
from components.evaluate.attacks.registry import attack_named
from components.evaluate.measure import make_plan
from components.evaluate.params import EvaluateParams
from components.evaluate.probes.params import ProbeParams
from components.evaluate.probes.registry import check_probe
from components.evaluate.qualify import needed_names, subjects_of
from components.requests.requests import check_names, load_requests
from components.worlds.judges import open_panel
from components.worlds.load import load_world
from components.worlds.panel import check_sizes
from components.worlds.params import JudgeParams
from components.worlds.references import load_second_judge


def check_inputs() -> None:
    """`UserError`, or the `ArtifactError` of a judge, for what keeps the project in the working directory from being trained, evaluated and attacked.

    That is: no request, one that its world refuses or of which there are fewer prompts than an attack needs; an attack, a probe, a
    hookpoint or a second judge that does not exist; prompts that cannot be read; a judge that cannot be opened, or that does not
    know a target or an anchor.
    """
    requests = load_requests()
    if not requests:
        raise UserError("requests.yaml holds no request", "add one: expunge request add")
    for request in requests.values():
        check_names(request)
    _check_listed()
    _check_files()
    named, params = read_section("world", str), read_section("concepts", ConceptsParams)
    world = load_world(named)
    world.check(requests)
    table = build_prompts(requests, world, params).query("split == 'evaluate'")
    records = {request_id: make_record(request_id, request, world) for request_id, request in requests.items()}
    for record in records.values():
        read_target(record, table)
    evaluated, judge = read_section("evaluate", EvaluateParams), read_section("judge", JudgeParams)
    plan = make_plan(records, table, evaluated, evaluated.sizes[evaluated.size])
    panel = open_panel(named, judge, subjects_of(records, plan.retain), needed_names(records))
    check_sizes(panel, read_geometry(read_section("base", BaseParams).path)[0])
    seconds = (read_section("attack", AttackParams).second_judge, read_section("probe", ProbeParams).second_judge)
    for second in dict.fromkeys(path for path in seconds if path is not None):
        load_second_judge(named, second)


def _check_listed() -> None:
    settings, probing = read_section("attack", AttackParams), read_section("probe", ProbeParams)
    size = settings.sizes[settings.size]
    for name in (*size.attacks, *(gate.attack for gate in size.gates if gate.attack)):
        attack_named(name)
    for name in probing.sizes[probing.size].probes:
        check_probe(name)
    for section, judge in (("attack", settings.second_judge), ("probe", probing.second_judge)):
        if judge is not None and not judge.is_dir():
            raise UserError(f"{section}.second_judge={judge} does not exist", f"mend it in {PARAMS}")


def _check_files() -> None:
    base, corpus = read_section("base", BaseParams), read_section("corpus", CorpusParams)
    check_hookpoints(base.path, base.hookpoints)
    for source in (*corpus.sources, *corpus.benign.real):
        if not source.startswith("hf:"):  # a network's business
            read_source(source)


if __name__ == "__main__":
    with one_sentence("expunge"):
        check_inputs()
