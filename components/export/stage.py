"""Stage `export`: the filter as ONNX, with the parity report that a server may rely on."""

from __future__ import annotations

import onnxruntime as ort

from components.collect.record import read_prompts, read_records
from components.collect.tables import read_table, where
from components.common.errors import StageError
from components.common.files import SIDECAR, digest, new_folder
from components.common.paths import CORPUS, FILTER, ONNX
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.params import BaseParams
from components.diffusion.text import load_towers
from components.export.graph import ExportedFilter, export_graph
from components.export.params import ExportParams
from components.export.parity import latency, measure_parity, open_session, write_report
from components.export.report import REPORT, write_no_graph
from components.filter.artifact import open_filters
from components.filter.encoder import FilteredTextEncoder

GRAPH = "filter.onnx"


def export() -> None:
    """Exports, checks, compares, and refuses to leave a graph that decides differently."""
    base, settings = read_section("base", BaseParams), read_section("export", ExportParams)
    filters = open_filters(FILTER, base.path, base.hookpoints).filters
    towers = load_towers(base.path, base.hookpoints)
    encoder = FilteredTextEncoder(towers, filters)
    made_from = {"filter": digest(FILTER / SIDECAR), "params": settings.model_dump(mode="json")}
    if not filters:
        with new_folder(ONNX) as partial:
            write_no_graph(partial / REPORT, made_from)
        log.info("export: no request has a filter, so that there is no graph")
        return
    table, corpus = read_prompts(read_records()), read_table(CORPUS)
    naming = where(table, (table["split"] == "evaluate") & table["names_target"])["prompt"].tolist()
    benign = where(corpus, corpus["split"] == "evaluate")["prompt"].tolist()
    half = settings.prompts // 2
    encoded = towers.tokenize(naming[:half] + benign[: settings.prompts - min(half, len(naming))])
    with new_folder(ONNX) as partial:
        export_graph(encoder, encoded.rows(slice(2)), partial / GRAPH, opset=settings.opset)
        session = open_session(partial / GRAPH)
        parity = measure_parity(session, ExportedFilter(encoder), encoded)
        if not parity.decisions_agree or parity.max_abs_hidden > settings.tolerance:
            raise StageError(
                f"ONNX and torch differ by {parity.max_abs_hidden:.2g} on {parity.prompts} prompts "
                f"(decisions {'agree' if parity.decisions_agree else 'differ'})",
                f"raise export.tolerance above {settings.tolerance} only if the decisions agree",
            )
        write_report(
            partial / GRAPH,
            parity,
            encoder,
            providers=session.get_providers(),
            inputs=part_digests(base.path, TEXT_PARTS),
            made_from=made_from,
        )
        seconds = {str(b): latency(session, encoded.rows(slice(b))) for b in (1, 16)}
    log.info("export: %s; seconds a call %s; onnxruntime %s", parity, seconds, ort.__version__)


if __name__ == "__main__":
    run_stage(export)
