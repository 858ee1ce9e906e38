"""From events to ε.

`PLD` is the tight one: a closed form for Gaussians and sums of discrete Gaussians, privacy loss distributions for
the rest. `ZCDP` adds up ρ. Each answers with a bound that is proven: never less than what was spent.
"""

from .calibration import noise_multiplier
from .duty import Accountant
from .gaussian import epsilon_to_mu, mu_to_epsilon
from .pld import PLD
from .zcdp import ZCDP, epsilon_to_rho, rho_to_epsilon

__all__ = [
    "PLD",
    "ZCDP",
    "Accountant",
    "epsilon_to_mu",
    "epsilon_to_rho",
    "mu_to_epsilon",
    "noise_multiplier",
    "rho_to_epsilon",
]
