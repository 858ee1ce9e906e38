"""Training with differential privacy for customers: clipped gradients, fast, and a drop-in for PyTorch's loop."""

from .clipped import clipped_gradient_sum
from .private import PrivateModel, PrivateOptimizer, SecureSumOptimizer
from .reference import per_customer_gradients
from .sampling import PoissonBatches

__all__ = [
    "PoissonBatches",
    "PrivateModel",
    "PrivateOptimizer",
    "SecureSumOptimizer",
    "clipped_gradient_sum",
    "per_customer_gradients",
]
