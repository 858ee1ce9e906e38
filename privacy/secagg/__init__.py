"""The secure sum: Bonawitz et al. 2017 (CCS), with signed keys and a batched set-up (DESIGN §6).

`client.Silo` and `aggregator.Aggregator` are state machines over plain values; who carries their
messages is `federation.secure_sum`'s affair. Docstrings of those modules hold the protocol, the
security argument stands in `client`.
"""
