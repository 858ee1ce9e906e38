"""Never loaded by our nodes."""

from flwr.clientapp import ClientApp

app = ClientApp()
