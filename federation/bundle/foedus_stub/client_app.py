"""Refuses: a foedus node runs its own installed code and never loads a bundle."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


def refuse(message: Message, context: Context) -> Message:
    """Answer nothing.

    Raises:
        RuntimeError: always; Flower turns it into an error reply.
    """
    raise RuntimeError("this bundle holds no client code: run a foedus node instead of a Flower SuperNode")


app.query()(refuse)
app.train()(refuse)
app.evaluate()(refuse)
