"""The attacker's code."""
