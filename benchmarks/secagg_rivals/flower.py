"""Flower's SecAgg+: its own client mod and its own server workflow, n nodes in this process, no network.

`Wire` stands where Flower's `Grid` stands and carries the messages; a subclass of it is a dishonest server.
"""

from __future__ import annotations

import copy
import importlib
import logging
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import flwr
import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client import Client, ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.task_identity import TaskIdentity

VERSION = flwr.__version__
# The package re-exports the function `secaggplus_mod` under its module's name.
mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
Floats = npt.NDArray[np.float32]
FIRST_NODE = 1001  # nodes are numbered from here

logging.getLogger("flwr").setLevel(logging.CRITICAL)


class Wire:
    """An honest server's network: every message reaches its node, but for nodes `lost` from a stage on."""

    def __init__(self, lost: Mapping[str, Collection[int]] | None = None) -> None:
        self.lost = lost or {}
        self.apps: dict[int, ClientApp] = {}
        self.contexts: dict[int, Context] = {}
        self.replies: dict[str, list[Message]] = {}
        self.failures: list[str] = []

    def on_request(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        """What the server does to a message on its way to a node. An honest one does nothing."""

    def on_reply(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        """What the server reads in, or does to, a node's reply."""

    def ask(self, node: int, content: RecordDict, group: str = "1") -> Message:
        """Hand one message to a node's ClientApp, as its SuperNode does."""
        message = Message(content, dst_node_id=node, message_type="train", group_id=group)
        message.metadata.__dict__.update(_message_id=uuid.uuid4().hex, _src_node_id=1)
        reply = self.apps[node](message, self.contexts[node])
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Flower's Grid interface, the only method of it the workflow calls."""
        got = []
        stage = ""
        for message in messages:
            node = message.metadata.dst_node_id
            # The workflow sends one content object to all; over a network each node gets its own.
            content = RecordDict(
                {
                    k: ConfigRecord(dict(v)) if isinstance(v, ConfigRecord) else v
                    for k, v in message.content.items()
                }
            )
            configs = content.config_records[RECORD_KEY_CONFIGS]
            stage = str(configs[Key.STAGE])
            if node in self.lost.get(stage, ()):
                continue
            self.on_request(stage, node, configs, content)
            try:
                reply = self.ask(node, content)
            except Exception as error:  # noqa: BLE001 - a node's error is a missing reply, as in Flower
                self.failures.append(f"{stage}: node {node}: {type(error).__name__}: {error}")
                continue
            self.on_reply(stage, node, reply.content.config_records[RECORD_KEY_CONFIGS], reply.content)
            got.append(reply)
        self.replies[stage] = got
        return got


class Passive(FedAvg):
    """Takes the average SecAgg+ opened as it is. (FedAvg would average n equal copies of it: not secure aggregation.)"""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """As `Strategy`; remembers what else the nodes told the server."""
        self.seen = [(proxy.node_id, fit.num_examples, dict(fit.metrics)) for proxy, fit in results]
        return results[0][1].parameters, {}


class Federation:
    """n nodes with a vector and a number of examples each, and one workflow.

    Args:
        vectors, weights: one a node; node `FIRST_NODE + i` holds the i-th.
        threshold: as Flower's `reconstruction_threshold`: a number of shares (an int), or a fraction of n (a float).
    """

    def __init__(
        self,
        vectors: Sequence[Floats],
        weights: Sequence[int],
        *,
        threshold: float = 0.5,
        wire: Wire | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.wire = wire or Wire()
        self.nodes = [FIRST_NODE + i for i in range(len(vectors))]
        self.received: dict[int, list[Floats]] = {node: [] for node in self.nodes}
        manager = SimpleClientManager()
        for node, vector, weight in zip(self.nodes, vectors, weights, strict=True):
            self.wire.apps[node] = _app(vector, weight, self.received[node])
            self.wire.contexts[node] = _context(node)
            manager.register(GridClientProxy(node_id=node, grid=self.wire, run_id=1))
        n = len(vectors)
        self.strategy = Passive(fraction_fit=1.0, min_fit_clients=n, min_available_clients=n)
        self.context = LegacyContext(
            _context(0), config=ServerConfig(num_rounds=1), strategy=self.strategy, client_manager=manager
        )
        self.set_model([np.zeros(1, np.float32)])
        self.workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=threshold)

    def set_model(self, model: list[Any], number: int = 1) -> None:
        """The model the next round starts from, and the round's number."""
        self.context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord(
            {WorkflowKey.CURRENT_ROUND: number}
        )
        self.context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
            ndarrays_to_parameters(model), True
        )

    @property
    def model(self) -> Floats:
        """The first array of the model the server holds."""
        record = self.context.state.array_records[MAIN_PARAMS_RECORD]
        array: Floats = parameters_to_ndarrays(compat.arrayrecord_to_parameters(record, True))[0]
        return array

    def round(self) -> Floats:
        """All four stages; the opened average.

        Raises:
            RuntimeError: the workflow stopped without one.
        """
        before = self.context.state.array_records[MAIN_PARAMS_RECORD]
        self.workflow(self.wire, self.context)
        if self.context.state.array_records[MAIN_PARAMS_RECORD] is before:
            raise RuntimeError("SecAgg+ stopped: " + "; ".join(self.wire.failures))
        return self.model

    def set_up(self) -> WorkflowState:
        """The first two stages, after which every node may upload."""
        state = WorkflowState()
        if not (
            self.workflow.setup_stage(self.wire, self.context, state)
            and self.workflow.share_keys_stage(self.wire, self.context, state)
        ):
            raise RuntimeError("SecAgg+ did not set up: " + "; ".join(self.wire.failures))
        return state

    def node_state(self, node: int) -> Any:
        """What a node keeps between stages, as its mod reads it."""
        return mod.SecAggPlusState(
            **copy.deepcopy(dict(self.wire.contexts[node].state.config_records[RECORD_KEY_STATE]))
        )


class Recorded:
    """A Grid that answers with replies received before: what is left to time is the server's own work."""

    def __init__(self, replies: Mapping[str, list[Message]]) -> None:
        self._replies = replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies to this stage's messages, which are built and dropped."""
        stage = {str(m.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]) for m in messages}.pop()
        return self._replies[stage]


def weighted_mean(vectors: Sequence[Floats], weights: Sequence[int]) -> npt.NDArray[np.float64]:
    """What SecAgg+ is to give."""
    return np.average(np.stack(vectors), axis=0, weights=weights)


def _context(node: int) -> Context:
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}, series_id=1)


def _app(vector: Floats, weight: int, received: list[Floats]) -> ClientApp:
    class Silo(NumPyClient):
        def fit(self, parameters: list[Any], config: Any) -> tuple[list[Any], int, dict[str, Any]]:
            received.append(parameters[0])
            return [vector], weight, {"loss": float(np.abs(vector).mean())}

    def client_fn(context: Context) -> Client:
        return Silo().to_client()

    return ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
