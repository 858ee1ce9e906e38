"""What stock Flower runs on a node, in a process of its own for every message."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("noop")
def noop(message: Message, context: Context) -> Message:
    """Send back what came."""
    return Message(message.content, reply_to=message)
