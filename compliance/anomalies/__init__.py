"""Watching who reads what: bulk reads, slow drips, budget bursts, repeated refusals, differencing, the clock.

`events` turns entries of an audit log into typed events; `watch` runs the rules of `reads`, `spending`, `refusals` and
`differencing` over them; `book` keeps state, alerts, blocks and what is still to be sent, in one file.
"""
