"""APPFL's secure aggregation: its own `SecureAggregator` masks, trainer and FedAvg aggregator."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
import types
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

if importlib.util.find_spec("wandb") is None:  # its trainer imports it for charts, which are off here
    sys.modules["wandb"] = types.ModuleType("wandb")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its imports deprecate is not ours to see
    import appfl
    from appfl.algorithm.aggregator.fedavg_aggregator import FedAvgAggregator
    from appfl.algorithm.trainer.vanilla_trainer import VanillaTrainer
    from appfl.privacy import SecureAggregator
    from omegaconf import OmegaConf

VERSION = appfl.__version__
Array = npt.NDArray[np.float32]


class Federation:
    """Clients with the one secret APPFL gives them all, and the server's aggregator."""

    def __init__(self, names: list[str], secret: bytes) -> None:
        self.names, self.secret = names, secret

    def masker(self, name: str) -> SecureAggregator:
        """A client's own masking object."""
        return SecureAggregator(name, self.names, self.secret, torch.device("cpu"))

    def upload(self, name: str, value: Array, number: int, examples: int = 1) -> dict[str, Any]:
        """What a client sends, in the shape `VanillaTrainer` gives it."""
        flat, shapes = self.masker(name).mask_update({"w": torch.from_numpy(value)}, number)
        return {"type": "masked_update_flat", "flat": flat, "shapes": shapes, "num_examples": examples}

    def average(self, uploads: Mapping[str, dict[str, Any]], mode: str = "equal") -> Array:
        """What the server makes of the uploads."""
        configs = OmegaConf.create({"use_secure_agg": True, "client_weights_mode": mode})
        aggregator = FedAvgAggregator(aggregator_configs=configs, logger=logging.getLogger("appfl"))
        result: Array = aggregator.aggregate(dict(uploads))["w"].numpy()
        return result

    def trained(self, name: str, examples: int) -> dict[str, Any]:
        """The payload of APPFL's own trainer after a step on `examples` rows."""
        rng = torch.Generator().manual_seed(3)
        rows = torch.utils.data.TensorDataset(
            torch.randn(examples, 4, generator=rng), torch.zeros(examples, 1)
        )
        configs = {
            "mode": "step",
            "num_local_steps": 1,
            "optim": "SGD",
            "optim_args": {"lr": 0.1},
            "use_secure_agg": True,
            "do_validation": False,
        }
        trainer = VanillaTrainer(
            model=torch.nn.Linear(4, 1),
            loss_fn=torch.nn.MSELoss(),
            metric=lambda true, guess: float(np.abs(true - guess).mean()),
            train_dataset=rows,
            train_configs=OmegaConf.create(configs),
            logger=_Quiet(),
            client_id=name,
            runtime_context={"all_client_ids": self.names, "round_id": 1, "secure_agg_secret": self.secret},
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        payload: dict[str, Any] = trainer.model_state
        return payload


class _Quiet(logging.Logger):
    """The trainer's logger also draws tables."""

    def __init__(self) -> None:
        super().__init__("appfl")

    def log_title(self, row: Any) -> None:
        """Draws nothing."""

    set_title = log_content = log_title
