"""The installed coordinator; nothing of a study is in this bundle."""

from foedus.server.coordinator import app

__all__ = ["app"]
