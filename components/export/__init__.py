"""The text encoder and its filters as one ONNX graph, and the proof that it decides as torch does."""

from components.export.graph import INPUTS, OUTPUTS, ExportedFilter, export_graph
from components.export.parity import Parity, latency, measure_parity, open_session

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "ExportedFilter",
    "Parity",
    "export_graph",
    "latency",
    "measure_parity",
    "open_session",
]
