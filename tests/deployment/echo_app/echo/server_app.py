"""Some trips to every node: sends a few bytes, takes what comes back, writes times and replies to a file."""

import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from foedus.server.trips import quicken

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    poll = float(config["poll"])
    pause = quicken() if config["quick"] else time.sleep
    end = time.time() + 60
    while len(nodes := list(grid.get_node_ids())) < int(config["nodes"]):
        if time.time() > end:
            raise TimeoutError(f"{len(nodes)} nodes")
        time.sleep(0.05)
    trips = []
    for number in range(int(config["trips"])):
        body = os.urandom(int(config["size"]))
        messages = [
            Message(
                RecordDict(
                    {
                        "c": ConfigRecord(
                            {"n": number, "body": body, "to": node.to_bytes(8, "big"), "kind": "x"}
                        )
                    }
                ),
                dst_node_id=node,
                message_type="query.echo",
                group_id=str(number),
            )
            for node in nodes
        ]
        start = time.time()
        waiting = set(grid.push_messages(messages))
        pushed = time.time() - start
        replies: list[Message] = []
        while waiting and time.time() < start + 30:
            got = list(grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in got}
            replies += got
            if waiting:
                pause(poll)
        trips.append(
            {
                "seconds": time.time() - start,
                "push": pushed,
                "echoed": sum(not r.has_error() and r.content["c"]["body"] == body for r in replies),
                "answers": [r.content["c"]["answer"] for r in replies if not r.has_error()],
                "errors": [[r.error.code, r.error.reason] for r in replies if r.has_error()],
            }
        )
        time.sleep(float(config["pause"]))
    Path(str(config["out"])).write_text(json.dumps(trips))
