"""One node of foedus that answers every message with its content: ``trips_node.py ADDRESS CA KEY``."""

import signal
import sys
import threading
from pathlib import Path

from flwr.app import Context, Message

from foedus.clients.fleet import FleetLink, serve


def echo(message: Message, context: Context) -> Message:
    """Send back what came."""
    return Message(message.content, reply_to=message)


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    serve(FleetLink(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])), echo, stop=stop)
