"""Reads the graph that dvc.yaml states: which stages there are, an order to run them in, and which of them may have to run."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
from dvc.repo import Repo


def stage_order(root: Path) -> list[str]:
    """Names of all stages of the root's dvc.yaml but frozen ones, each after what it depends on, otherwise in its order.

    The working directory does not matter. Stages of other dvc.yaml files, such as how the embedded base was trained, are
    no part of it.
    """
    with Repo(str(root)) as repo:
        return _ordered(_graph(repo))


def stages_to_run(root: Path) -> list[str]:
    """Those of `stage_order` that `dvc status` finds changed, and all that depend on one of them: no other can have anything to do."""
    with Repo(str(root)) as repo:
        graph = _graph(repo)
        changed = {_name(address) for address in repo.status(targets=str(root / "dvc.yaml"))} & set(graph)
    wanted = changed.union(*(nx.descendants(graph, stage) for stage in changed))
    return [stage for stage in _ordered(graph) if stage in wanted]


def _graph(repo: Repo) -> nx.DiGraph:
    """Stages with an edge from each to those that depend on it; nodes stand in the order of dvc.yaml."""
    listed = [stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml" and not stage.frozen]
    graph = nx.DiGraph()
    graph.add_nodes_from(_name(stage.addressing) for stage in listed)
    between = repo.index.graph.subgraph(listed).edges
    graph.add_edges_from((_name(before.addressing), _name(after.addressing)) for after, before in between)
    return graph


def _name(address: str) -> str:
    return address.rpartition(":")[2]  # the rest is the way from where we are


def _ordered(graph: nx.DiGraph) -> list[str]:
    return [str(name) for name in nx.lexicographical_topological_sort(graph, key=list(graph).index)]
