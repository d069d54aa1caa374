"""The text encoder and its filters as one ONNX graph, the proof that it decides as torch does, and its run-time."""

from components.export.graph import INPUTS, OUTPUTS, ExportedFilter, export_graph
from components.export.parity import REPORT, Parity, latency, measure_parity, open_session, write_report
from components.export.runtime import OnnxTextEncoder

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "REPORT",
    "ExportedFilter",
    "OnnxTextEncoder",
    "Parity",
    "export_graph",
    "latency",
    "measure_parity",
    "open_session",
    "write_report",
]
