"""OpenFL's secure aggregation: its own set-up callback, aggregator and masks.

Collaborators take the callback's steps in turn, in one thread: masks come from Python's global `random`, which
collaborators of a real federation, each a process, don't share.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its imports deprecate is not ours to see
    import openfl
    from openfl.callbacks.secure_aggregation import SecAggBootstrapping
    from openfl.component.collaborator.collaborator import Collaborator
    from openfl.databases import TensorDB
    from openfl.interface.aggregation_functions.secure_weighted_average import SecureWeightedAverage
    from openfl.utilities import LocalTensor, TensorKey
    from openfl.utilities.secagg.bootstrap import SecAggSetup

VERSION = openfl.__version__
logging.getLogger("openfl").setLevel(logging.CRITICAL)
Array = npt.NDArray[np.float64]


class _Client:
    """Stands where a collaborator's gRPC client stands: the set-up's two calls, in this process."""

    def __init__(self, setup: SecAggSetup, database: TensorDB) -> None:
        self._setup, self._database = setup, database

    def send_local_task_results(self, number: int, task: str, size: int, tensors: list[Any]) -> None:
        self._setup.process_secagg_setup_tensors(tensors)

    def get_aggregated_tensor(self, name: str, number: int, report: bool, tags: Any, lossless: bool) -> Any:
        key = TensorKey(name, "aggregator", number, report, tags)
        found = self._database.get_tensor_from_cache(key)
        return SimpleNamespace(data_bytes=json.dumps(found, default=np.ndarray.tolist).encode())


class Federation:
    """Collaborators `names` and an aggregator after OpenFL's own secure aggregation set-up."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.database = TensorDB()
        # It is a singleton that keeps the masks of the first experiment of its process: each gets a fresh one here.
        type(SecureWeightedAverage)._instances.pop(SecureWeightedAverage, None)
        self.setup = SecAggSetup("aggregator", names, self.database)
        self.callbacks: dict[str, SecAggBootstrapping] = {}
        self.collaborators: dict[str, Any] = {}
        for name in names:
            callback = SecAggBootstrapping()
            callback.set_params({"origin": name})
            callback.set_tensor_db(TensorDB())
            callback.name, callback.client = name, _Client(self.setup, self.database)
            self.callbacks[name] = callback
            # `_apply_masks` reads only these of a Collaborator.
            self.collaborators[name] = SimpleNamespace(
                collaborator_name=name, tensor_db=callback.tensor_db, _private_mask=None, _shared_mask=None
            )
        self._set_up(list(self.callbacks.values()))

    @staticmethod
    def _set_up(callbacks: list[SecAggBootstrapping]) -> None:
        """The steps of `SecAggBootstrapping.on_experiment_begin`, each taken by all before the next."""
        for callback in callbacks:
            callback._generate_keys()
        keys = [callback._fetch_public_keys() for callback in callbacks]
        for callback, public in zip(callbacks, keys, strict=True):
            callback._generate_ciphertexts(public)
        for callback, public in zip(callbacks, keys, strict=True):
            callback._decrypt_ciphertexts(public)
        for callback in callbacks:
            callback._save_mask_tensors()

    def upload(self, name: str, value: Array, *tags: str) -> Array:
        """A tensor as the collaborator sends it, by its own masking."""
        key = TensorKey("weights", name, 0, False, tags or ("trained",))
        tensors = {key: value}
        Collaborator._apply_masks(self.collaborators[name], tensors)
        masked: Array = tensors[key]
        return masked

    def average(self, uploads: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
        """What the aggregator makes of the uploads."""
        local = [LocalTensor(name, value, weights[name]) for name, value in uploads.items()]
        rows = (row for _, row in self.database.tensor_db.iterrows())
        result: Array = SecureWeightedAverage().call(local, rows)
        return result
