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
from components.diffusion.params import BaseParams
from components.diffusion.text import check_hookpoints
from components.evaluate.attacks.attempts import read_target
from components.evaluate.attacks.params import AttackParams
from components.evaluate.attacks.registry import attack_named
from components.requests.requests import load_requests
from components.worlds.load import load_world


def check_inputs() -> None:
    """`UserError` for what keeps the project in the working directory from being evaluated and attacked.

    That is: a hookpoint that the base does not have, a file of prompts that cannot be read, no request, a request that its world refuses, fewer prompts of a target than an attack needs, or a prompt longer than
    one may be, an attack that nobody has written, a second judge without a folder. Judges are not opened.
    """
    requests, params, settings = load_requests(), read_section("concepts", ConceptsParams), read_section("attack", AttackParams)  # fmt: skip
    if not requests:
        raise UserError("requests.yaml holds no request", "add one: expunge request add")
    size = settings.sizes[settings.size]
    for name in (*size.attacks, *(gate.attack for gate in size.gates if gate.attack)):
        attack_named(name)
    if settings.second_judge is not None and not settings.second_judge.is_dir():
        raise UserError(f"attack.second_judge={settings.second_judge} does not exist", f"mend it in {PARAMS}")
    base, corpus = read_section("base", BaseParams), read_section("corpus", CorpusParams)
    check_hookpoints(base.path, base.hookpoints)
    for source in (*corpus.sources, *corpus.benign.real):
        if not source.startswith("hf:"):  # a network's business
            read_source(source)
    world = load_world(read_section("world", str))
    world.check(requests)
    table = build_prompts(requests, world, params).query("split == 'evaluate'")
    for request_id, request in requests.items():
        read_target(make_record(request_id, request, world), table)


if __name__ == "__main__":
    with one_sentence("expunge"):
        check_inputs()
