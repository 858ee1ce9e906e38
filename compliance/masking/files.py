"""From a file to a file: masked whole, or nothing is written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from ...errors import InputError
from . import tables
from .policy import Policy
from .release import mask
from .report import Report

Admit = Callable[[pd.DataFrame, pd.DataFrame, Policy], object]
"""(the table, what is to be released of it, the policy): raises if it may not leave."""


def mask_file(
    table: Path, policy: Path, out: Path, report: Path | None = None, *, admit: Admit | None = None
) -> Report:
    """Mask a .csv or .parquet file into a new one, readable by its owner only, and write its report as JSON.

    Args:
        admit: a gate it must pass before anything is written.

    Raises:
        InputError: a file is not what it must be, or one that would be written exists already.
        Refused: see `mask`. Nothing is written then.
    """
    if out.suffix.lower() not in tables.SUFFIXES:
        raise InputError(f"{out}: not a {' or '.join(tables.SUFFIXES)} file")
    wanted = [out] if report is None else [out, report]
    if len({path.resolve() for path in wanted}) < len(wanted):
        raise InputError(f"{out}: the table and its report would be one file")
    for path in wanted:
        if path.exists():
            raise InputError(f"{path}: exists already", remedy="choose another name, or move it away")
    frame, rules = tables.read(table), Policy.load(policy)
    released, found = mask(frame, rules)
    if admit is not None:
        admit(frame, released, rules)
    text = json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    writers: list[Callable[[BinaryIO], object]] = [
        partial(_save, released, out),
        lambda file: file.write(text.encode()),
    ]
    _write(dict(zip(wanted, writers, strict=False)))
    return found


def write_table(released: pd.DataFrame, out: Path) -> None:
    """A new .csv or .parquet file, readable by its owner only; whole or not there.

    Raises:
        InputError: it is neither, or can't be written.
    """
    if out.suffix.lower() not in tables.SUFFIXES:
        raise InputError(f"{out}: not a {' or '.join(tables.SUFFIXES)} file")
    _write({out: partial(_save, released, out)})


def _save(released: pd.DataFrame, out: Path, file: BinaryIO) -> None:
    if out.suffix.lower() == ".csv":
        released.to_csv(file, index=False)
    else:
        released.to_parquet(file, index=False)


def _write(files: dict[Path, Callable[[BinaryIO], object]]) -> None:
    """Write all beside their places, then put all into them."""
    staged: dict[Path, Path] = {}
    try:
        for path, save in files.items():
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            staged[path] = Path(name)
            with os.fdopen(descriptor, "wb") as file:
                save(file)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in staged.items():
            temporary.replace(path)
    except OSError as error:
        raise InputError(f"{next(iter(files))}: {error.strerror or error}") from error
    finally:
        for temporary in staged.values():
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
