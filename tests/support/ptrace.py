"""A forked process that is stopped at each of its system calls that change files, and may be killed there.

Linux on x86-64 only: `available` says whether this is one, and whether it lets a process trace its child.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Numbers of the x86-64 table. Whatever SQLite and Python use to change a file or a directory is here.
CALLS = {
    1: "write", 18: "pwrite64", 74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate", 82: "rename",
    87: "unlink", 263: "unlinkat", 264: "renameat", 285: "fallocate", 296: "pwritev", 316: "renameat2",
}  # fmt: skip
_TRACEME, _PEEKUSER, _SYSCALL, _SETOPTIONS = 0, 3, 24, 0x4200
_ORIG_RAX, _RDI = 15 * 8, 14 * 8
_SYSGOOD = 1
Say = Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """How a traced process ended: its calls as ``(name, file)``, what it said, and its exit code (-9: killed)."""

    calls: tuple[tuple[str, str], ...]
    said: tuple[str, ...]
    code: int


def _ptrace() -> Callable[[int, int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).ptrace
    function.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_long
    return function  # type: ignore[no-any-return]


def available() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64" and traced(lambda say: None).code == 0


def traced(work: Callable[[Say], None], *, kill_before: int | None = None) -> Ended:
    """Run `work(say)` in a child.

    Args:
        kill_before: SIGKILL as it enters its call of this number (from 0), which so is not made.
    """
    ptrace = _ptrace()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            ptrace(_TRACEME, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            work(lambda line: (os.write(writing, f"{line}\n".encode()), None)[1])
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    if os.WIFSTOPPED(status):
        ptrace(_SETOPTIONS, pid, 0, _SYSGOOD)
    calls: list[tuple[str, str]] = []
    entering = True
    while os.WIFSTOPPED(status):
        number = os.WSTOPSIG(status)
        if number == signal.SIGTRAP | 0x80:
            name = CALLS.get(ptrace(_PEEKUSER, pid, _ORIG_RAX, 0))
            if entering and name is not None:
                if kill_before == len(calls):
                    os.kill(pid, signal.SIGKILL)
                calls.append((name, _file(pid, name, ptrace(_PEEKUSER, pid, _RDI, 0))))
            entering = not entering
        deliver = 0 if number in (signal.SIGSTOP, signal.SIGTRAP | 0x80) else number
        ptrace(_SYSCALL, pid, 0, deliver)
        _, status = os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        said = [x.decode() for x in pipe.read().split(b"\n")[:-1]]
    return Ended(tuple(calls), tuple(said), os.waitstatus_to_exitcode(status))


def _file(pid: int, name: str, first: int) -> str:
    """The file of a call whose first argument is a descriptor."""
    if name in ("unlink", "truncate", "rename", "unlinkat", "renameat", "renameat2"):
        return ""
    try:
        return Path(f"/proc/{pid}/fd/{first}").readlink().name
    except OSError:
        return ""
