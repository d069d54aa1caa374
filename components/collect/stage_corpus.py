"""Stage `corpus`: prompts for the SAE and benign prompts; no request enters."""

from __future__ import annotations

from components.collect.corpus import build_corpus
from components.collect.params import CorpusParams
from components.collect.sources import read_source
from components.collect.tables import write_table
from components.common.files import new_folder
from components.common.paths import CORPUS
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.worlds.load import load_world


def corpus() -> None:
    """Draws, deduplicates and splits the prompts that no request changes."""
    params, world = read_section("corpus", CorpusParams), load_world(read_section("world", str))
    extra, real = (
        [prompt for source in listed for prompt in read_source(source)]
        for listed in (params.sources, params.benign.real)
    )
    table = build_corpus(world, params, extra, real)
    with new_folder(CORPUS) as partial:
        write_table(partial, table, counted=["split", "source"])
    log.info("%s: %d prompts", CORPUS, len(table))


if __name__ == "__main__":
    run_stage(corpus)
