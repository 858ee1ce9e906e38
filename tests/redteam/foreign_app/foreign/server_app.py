"""The attacker's half at the server: sends every node the messages its code waits for, writes down the replies."""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from foedus.server.trips import quicken

app = ServerApp()
KINDS = ("query", "train", "query.keys")


@app.main()
def main(grid: Grid, context: Context) -> None:
    out = Path(str(context.run_config["out"]))
    (out / "ran-at-the-server").write_text("x")
    if context.run_config["inline"]:  # content inside the messages, as our coordinator sends and reads it
        quicken()
    end = time.time() + float(context.run_config["seconds"])
    while len(nodes := list(grid.get_node_ids())) < int(context.run_config["nodes"]) and time.time() < end:
        time.sleep(0.2)
    record = {"action": "keys", "body": b"{}", "data": b""}
    messages = [
        Message(RecordDict({"foedus": ConfigRecord(record)}), dst_node_id=node, message_type=kind)
        for node in nodes
        for kind in KINDS
    ]
    waiting = set(grid.push_messages(messages))
    (out / "sent").write_text(str(len(waiting)))
    replies = []
    while waiting and time.time() < end:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            said = {"node": str(reply.metadata.src_node_id), "type": reply.metadata.message_type}
            if reply.has_error():
                said |= {"error": str(reply.error.reason)}
            else:
                said |= {
                    name: {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in record.items()}
                    for name, record in reply.content.config_records.items()
                }
            replies.append(said)
        time.sleep(0.2)
    (out / "replies.json").write_text(json.dumps(replies))
