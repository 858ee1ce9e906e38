"""``/v1/runs``: look at a run, follow it, stop it.

Following is server-sent events (WHATWG HTML §9.2)::

    id: 17
    event: round
    data: {"id":17,"kind":"round","time":"…","data":{…}}

A follower that lost its connection sends the last id as ``Last-Event-ID`` and misses nothing. The stream
ends after the run's last event; to one who has seen that already the answer is 204, which tells an
``EventSource`` not to come back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from ...errors import InputError
from ..auth import Principal, Role, require
from ..desk import DeskOf
from ..store import TERMINAL, RunEvent, Store
from .studies import run_json

router = APIRouter(prefix="/runs")
POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 10.0
_MAX_ID = 2**63 - 1


@router.get("/{run}", dependencies=[Depends(require(*Role))])
def show(run: str, desk: DeskOf) -> dict[str, Any]:
    """One run."""
    return run_json(desk.runs.find(run))


@router.get("/{run}/events", dependencies=[Depends(require(*Role))])
def follow(run: str, desk: DeskOf, last_event_id: Annotated[str, Header(max_length=20)] = "0") -> Response:
    """Follow a run to its end."""
    if not (last_event_id.isascii() and last_event_id.isdecimal()) or int(last_event_id) > _MAX_ID:
        raise InputError("Last-Event-ID is a number of an event")
    after = int(last_event_id)
    # The status before the events: a run seen as ended has all its events.
    ended = desk.runs.find(run).status in TERMINAL
    if ended and not desk.store.events(run, after=after, limit=1):
        return Response(status_code=204)
    headers = {"x-accel-buffering": "no"}  # a proxy must not wait for more
    return StreamingResponse(_stream(desk.store, run, after), media_type="text/event-stream", headers=headers)


@router.post("/{run}/stop")
def stop(
    run: str,
    caller: Annotated[Principal, Depends(require(Role.SCIENTIST, Role.ADMIN, Role.OFFICER))],
    desk: DeskOf,
) -> dict[str, Any]:
    """Stop an active run."""
    return run_json(desk.runs.stop(run, actor=caller.name))


async def _stream(store: Store, run: str, after: int) -> AsyncIterator[str]:
    spoken = time.monotonic()
    while True:
        events = await run_in_threadpool(store.events, run, after=after)
        for event in events:
            yield _text(event)
            if event.kind in TERMINAL:
                return
            after, spoken = event.id, time.monotonic()
        if time.monotonic() - spoken >= HEARTBEAT_SECONDS:
            spoken = time.monotonic()
            yield ": still running\n\n"
        if not events:
            await asyncio.sleep(POLL_SECONDS)


def _text(event: RunEvent) -> str:
    data = {"id": event.id, "kind": event.kind, "time": event.time, "data": json.loads(event.data)}
    return f"id: {event.id}\nevent: {event.kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
