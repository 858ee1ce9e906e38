"""Attacks on released secure aggregations; every one runs against the package's own code."""
