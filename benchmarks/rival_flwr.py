"""Flower's side of `make bench-secagg`: SecAgg+ by its own functions, called as its mod and workflow call them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from measure import Job, Watch
from secagg_rivals.flower import VERSION, Federation, Recorded, Wire, mod, weighted_mean

__all__ = ["VERSION", "client_mask", "server_sum", "set_up", "verify"]
_EXAMPLES = 500  # of each node; the default's maximum is 1,000
_EXACT = 1e-4  # 16 in 2^22 levels, after weighting with 0.5


def verify(n: int, threshold: int) -> None:
    """A whole round over all n, one lost, gives the right average; raises if not."""
    rng = np.random.default_rng(5)
    vectors, weights = [rng.normal(size=256).astype(np.float32) for _ in range(n)], [_EXAMPLES] * n
    federation = Federation(vectors, weights, threshold=threshold)
    federation.wire.lost = {Stage.COLLECT_MASKED_VECTORS: set(federation.nodes[:1])}
    _right(federation.round(), weighted_mean(vectors[1:], weights[1:]))


def client_mask(n: int, vector: npt.NDArray[np.float32], threshold: int) -> Iterator[Job]:
    """`_collect_masked_vectors` of one node: shares decrypted, vector weighted, quantised, masked, serialised."""
    federation = Federation([vector] * n, [_EXAMPLES] * n, threshold=threshold)
    state = federation.set_up()
    node = federation.nodes[0]
    configs = {
        Key.CIPHERTEXT_LIST: state.forward_ciphertexts[node],
        Key.SOURCE_LIST: state.forward_srcs[node],
    }
    parameters = ndarrays_to_parameters([vector])
    while True:

        def job(watch: Watch) -> None:
            kept = federation.node_state(node)
            with watch:
                result = mod._collect_masked_vectors(kept, configs, _EXAMPLES, parameters)
            watch.size = sum(len(part) for part in result[Key.MASKED_PARAMETERS])

        yield job


def server_sum(n: int, vector: npt.NDArray[np.float32], dropped: int, threshold: int) -> Iterator[Job]:
    """The workflow's last two stages over replies recorded before: add up, combine shares, take masks off, dequantise.

    The strategy takes the average as it is; FedAvg would average n copies of it, which is not timed.
    """
    wire = Wire()
    federation = Federation([vector] * n, [_EXAMPLES] * n, threshold=threshold, wire=wire)
    wire.lost = {Stage.COLLECT_MASKED_VECTORS: set(federation.nodes[:dropped])}
    start = federation.set_up()
    _last_stages(federation, wire, _fresh(start))
    _right(federation.model, vector)
    recorded = Recorded(wire.replies)
    while True:

        def job(watch: Watch) -> None:
            state = _fresh(start)
            with watch:
                _last_stages(federation, recorded, state)
            _right(federation.model, vector)

        yield job


def set_up(n: int, threshold: int) -> Iterator[Job]:
    """`_setup` and `_share_keys` of one node among n: what it does before every round."""
    federation = Federation([np.zeros(1, np.float32)] * n, [_EXAMPLES] * n, threshold=threshold)
    asked: dict[str, object] = {}

    class Listener(Wire):
        def on_request(self, stage: str, node: int, configs: object, content: object) -> None:
            asked.update(dict(configs))  # type: ignore[call-overload]

    listener = Listener()
    listener.apps, listener.contexts = federation.wire.apps, federation.wire.contexts
    federation.workflow.setup_stage(listener, federation.context, WorkflowState())
    node, keys = federation.nodes[n // 2], {}
    for reply in listener.replies[Stage.SETUP]:
        told = reply.content.config_records[RECORD_KEY_CONFIGS]
        keys[str(reply.metadata.src_node_id)] = (told[Key.PUBLIC_KEY_1], told[Key.PUBLIC_KEY_2])
    while True:

        def job(watch: Watch) -> None:
            state = mod.SecAggPlusState(nid=node)
            with watch:
                own = mod._setup(state, asked)
                named = {**keys, str(node): (own[Key.PUBLIC_KEY_1], own[Key.PUBLIC_KEY_2])}
                result = mod._share_keys(state, named)
            if len(result[Key.CIPHERTEXT_LIST]) != n - 1:
                raise AssertionError("SecAgg+ dealt a wrong number of shares")

        yield job


def _last_stages(federation: Federation, grid: Wire | Recorded, state: WorkflowState) -> None:
    workflow, context = federation.workflow, federation.context
    if not (
        workflow.collect_masked_vectors_stage(grid, context, state)
        and workflow.unmask_stage(grid, context, state)
    ):
        raise AssertionError("SecAgg+ stopped")


def _fresh(start: WorkflowState) -> WorkflowState:
    """The stages take the state apart: each run gets its own, cheaply."""
    state = copy.copy(start)
    state.nid_to_neighbours = {node: set(peers) for node, peers in start.nid_to_neighbours.items()}
    state.legacy_results, state.failures = [], []
    return state


def _right(got: npt.NDArray[np.float64], true: npt.NDArray[np.float64]) -> None:
    if np.abs(got - true).max() > _EXACT:
        raise AssertionError("SecAgg+'s average is wrong")
