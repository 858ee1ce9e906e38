"""A function in a forked process that a test may kill: quicker than a fresh interpreter, and it dies as hard."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

Say = Callable[[str], None]


class Forked:
    """Runs `work(say)` in a child; what it said, line by line, is read here. Not for code that needs threads."""

    def __init__(self, work: Callable[[Say], None]) -> None:
        reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:  # the child; it leaves by _exit or by a signal, never through pytest
            try:
                os.close(reading)
                work(lambda line: (os.write(writing, f"{line}\n".encode()), None)[1])
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writing)
        self._file = os.fdopen(reading, "rb")

    def line(self) -> str:
        """The next thing it says."""
        return self._file.readline().decode().strip()

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def end(self) -> tuple[int, list[str]]:
        """Wait; its exit code (−9 if killed) and the whole lines it still said."""
        with self._file:
            said = [
                line.decode().strip()
                for line in self._file.read().splitlines(keepends=True)
                if line.endswith(b"\n")
            ]
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), said
