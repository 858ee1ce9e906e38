"""What flows where, for drawing: rounds, cohorts and sums of one study are one node each, or nothing could be read.

`Graph` has datasets only, each saying which jobs made it; `graph` has jobs as nodes too. `layers` sets nodes in columns,
each right of all it comes from.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from . import events as e
from .facets import Json

N = TypeVar("N", bound=Hashable)
Node = tuple[Literal["dataset", "job"], str]
_SHORT = 8
_MANY = {"cohort": "cohorts", "update": "masked updates", "sum": "sums", "approval": "approvals"}


@dataclass
class Box:
    """One node: datasets that are alike, or runs that failed alike.

    Attributes:
        kind: of `events.Kind`, or ``failed``.
        party: whose it is.
        names: of the datasets; of failed runs, their reasons.
        jobs: that made it.
    """

    kind: str
    party: str
    label: str
    names: set[str] = field(default_factory=set)
    jobs: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Graph:
    """Boxes by key, and edges between keys, each once."""

    boxes: Mapping[tuple[str, str], Box]
    edges: Sequence[tuple[tuple[str, str], tuple[str, str]]]

    @classmethod
    def of(cls, events: Iterable[Json]) -> Graph:
        """The graph of events, in their order."""
        boxes: dict[tuple[str, str], Box] = {}
        edges: dict[tuple[tuple[str, str], tuple[str, str]], None] = {}
        for event in _without_hearsay(list(events)):
            job = _job(event)
            inputs = [_box(boxes, d) for d in event.get("inputs", ())]
            outputs = [_box(boxes, d) for d in event.get("outputs", ())]
            for key in outputs:
                boxes[key].jobs.add(job)
                edges |= {(source, key): None for source in inputs if source != key}
            if event["eventType"] in ("FAIL", "ABORT"):
                key = _failed(boxes, event, job)
                edges |= {(source, key): None for source in inputs}
        return cls(boxes, list(edges))


def graph(events: Sequence[Json]) -> tuple[list[Node], list[tuple[Node, Node]]]:
    """Datasets and jobs as nodes ``(kind, "party/name")``; an edge goes from an input to its job, from a job to its output."""
    nodes: set[Node] = set()
    edges: set[tuple[Node, Node]] = set()
    for event in _without_hearsay(events):
        if not event.get("outputs"):
            continue
        job: Node = ("job", f"{_party(event['job']['namespace'])}/{_job(event)}")
        inputs = {_node(d) for d in event.get("inputs", ())}
        outputs = {_node(d) for d in event["outputs"]}
        nodes |= {job} | inputs | outputs
        edges |= {(x, job) for x in inputs} | {(job, x) for x in outputs}
    return sorted(nodes), sorted(edges)


def _without_hearsay(events: Sequence[Json]) -> Iterable[Json]:
    """What the server says of a silo is left out where the silo says it itself."""
    speaking = {event["job"]["namespace"] for event in events}
    for event in events:
        silo = _job(event).partition("silo ")[2]
        if not silo or f"foedus://{silo}" not in speaking:
            yield event


def _party(namespace: str) -> str:
    return namespace.removeprefix("foedus://")


def _job(event: Json) -> str:
    return str(event["job"]["name"]).rpartition("/")[2]


def _label(dataset: Json) -> str:
    kind, name = e.kind_of(dataset), str(dataset["name"])
    if kind in _MANY:
        return _MANY[kind]
    if kind == "features":
        return f"features, {name.rpartition('/')[2]}"
    head, slash, digest = name.rpartition("/")
    return f"{head} {digest[:_SHORT]}…" if slash and kind in ("study", "model", "metrics", "scores") else name


def _box(boxes: dict[tuple[str, str], Box], dataset: Json) -> tuple[str, str]:
    key = str(dataset["namespace"]), _label(dataset)
    box = boxes.setdefault(key, Box(e.kind_of(dataset), _party(key[0]), key[1]))
    if box.kind == "dataset":
        box.kind = e.kind_of(dataset)
    box.names.add(str(dataset["name"]))
    return key


def _failed(boxes: dict[tuple[str, str], Box], event: Json, job: str) -> tuple[str, str]:
    end = "failed" if event["eventType"] == "FAIL" else "aborted"
    key = str(event["job"]["namespace"]), f"{job} {end}"
    reason = str(e.facet_of(event["run"], "errorMessage").get("message", "no reason told"))
    boxes.setdefault(key, Box("failed", _party(key[0]), key[1])).names.add(reason)
    return key


def _node(dataset: Json) -> Node:
    return "dataset", f"{_party(str(dataset['namespace']))}/{_label(dataset)}"


# ── columns ──────────────────────────────────────────────────────────────────────────────────────


def layers(nodes: Sequence[N], edges: Sequence[tuple[N, N]]) -> list[list[N]]:
    """Nodes in columns: each right of all it comes from, and as far right as what it feeds allows.

    An edge that would close a circle is drawn, but does not count here.
    """
    forward = _acyclic(nodes, edges)
    depth = dict.fromkeys(nodes, 0)
    for a, b in forward:
        depth[b] = max(depth[b], depth[a] + 1)
    for node in sorted(nodes, key=lambda n: -depth[n]):
        if fed := [depth[b] for a, b in forward if a == node]:
            depth[node] = min(fed) - 1
    columns: list[list[N]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in nodes:
        columns[depth[node]].append(node)
    return _untangled([column for column in columns if column], edges)


def _acyclic(nodes: Sequence[N], edges: Sequence[tuple[N, N]]) -> list[tuple[N, N]]:
    """The edges, less those that close a circle; all into a node stand before all out of it."""
    known = set(nodes)
    targets: Mapping[N, list[N]] = {n: [b for a, b in edges if a == n and b in known] for n in nodes}
    done: dict[N, bool] = {}  # absent: not seen; False: on the path to here; True: left behind
    order: list[N] = []
    kept: list[tuple[N, N]] = []
    for root in nodes:
        path = [] if root in done else [(root, iter(targets[root]))]
        done.setdefault(root, False)
        while path:
            node, rest = path[-1]
            following = next(rest, None)
            if following is None:
                done[node] = True
                order.append(node)
                path.pop()
            elif done.get(following) is not False:
                kept.append((node, following))
                if following not in done:
                    done[following] = False
                    path.append((following, iter(targets[following])))
    place = {node: i for i, node in enumerate(reversed(order))}
    return sorted(kept, key=lambda e: place[e[0]])


def _untangled(columns: list[list[N]], edges: Sequence[tuple[N, N]]) -> list[list[N]]:
    """Barycentre sweeps (Sugiyama, Tagawa and Toda 1981): every node to the mean height of its neighbours."""
    near: dict[N, list[N]] = {n: [] for column in columns for n in column}
    for a, b in edges:
        if a in near and b in near:
            near[a].append(b)
            near[b].append(a)
    height = {n: (i + 0.5) / len(column) for column in columns for i, n in enumerate(column)}
    for _ in range(8):
        for column in (*columns, *reversed(columns)):
            mean = {
                n: sum(height[m] for m in near[n]) / len(near[n]) if near[n] else height[n] for n in column
            }
            column.sort(key=lambda n: (mean[n], str(n)))
            height |= {n: (i + 0.5) / len(column) for i, n in enumerate(column)}
    return columns
