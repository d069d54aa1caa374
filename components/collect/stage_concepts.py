"""Stage `concepts`: for each request its record and its prompts, the last that is ever asked of a world but its judge."""

from __future__ import annotations

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.collect.record import write_record, write_request_ids
from components.collect.tables import read_table, where, write_table
from components.common.errors import UserError
from components.common.files import new_folder
from components.common.paths import CONCEPTS, CORPUS
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.common.words import mentions
from components.requests.requests import load_requests
from components.worlds.load import load_world


def concepts() -> None:
    """Writes each request's record and prompts; no evaluation prompt is among what is trained or calibrated on."""
    params, requests, world = (
        read_section("concepts", ConceptsParams),
        load_requests(),
        load_world(read_section("world", str)),
    )
    if not requests:
        raise UserError("requests.yaml holds no request", "add one: expunge request add")
    world.check(requests)
    table, corpus = build_prompts(requests, world, params), read_table(CORPUS)
    seen = set(corpus.query("split != 'evaluate'")["prompt"])
    table = where(table, (table["split"] != "evaluate") | ~table["prompt"].isin(list(seen)))
    benign = corpus.query("split in ('calibrate', 'evaluate')")["prompt"]
    with new_folder(CONCEPTS) as partial:
        for request_id, request in requests.items():
            record = make_record(request_id, request, world)
            write_record(partial / request_id, record)
            write_table(partial / request_id, where(table, table["request"] == request_id), counted=["split", "role"])
            named = sum(mentions(text, record.names["evaluate"]) for text in benign)
            log.info(
                "%s: %d of %d benign prompts name %r; they are not counted as benign",
                request_id,
                named,
                len(benign),
                request.target,
            )
        write_request_ids(partial, list(requests))
    log.info("%s: %d prompts", CONCEPTS, len(table))


if __name__ == "__main__":
    run_stage(concepts)
