"""Runs a command that ends when the process which started it does, even by SIGKILL: ``tether.py PID COMMAND…``.

It asks the kernel (prctl(2), PR_SET_PDEATHSIG, Linux only; elsewhere it changes nothing) and becomes the
command, so the process id stays. "Parent" means the *thread* that started it: start it from one that lives
as long as it should. Run as a file, it needs no import of foedus.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def tethered(command: list[str]) -> list[str]:
    """The command line that runs `command` as a child that does not outlive this thread."""
    return [sys.executable, "-I", str(Path(__file__).absolute()), str(os.getpid()), *command]


def main(arguments: list[str]) -> None:
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)
    os.execvp(command[0], command)  # noqa: S606 - a list, from the process that started this one


if __name__ == "__main__":
    main(sys.argv[1:])
