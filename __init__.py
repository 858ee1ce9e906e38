"""foedus: federated customer analytics whose claims a partner's officer can re-check offline.

The folders of the repository's root are this package (see ``docs/architecture.md``):
``privacy`` (pure), ``compliance``, ``federation``, then ``clients`` and ``server`` side by side.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("foedus")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
