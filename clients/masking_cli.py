"""``foedus columns`` and ``foedus pseudonyms``: what a table's columns seem to be, and pseudonyms in their place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    import pandas as pd

    from ..compliance.masking.pseudonyms import Gap

pseudonyms_app = typer.Typer(no_args_is_help=True, help="Put keyed pseudonyms in the place of identifiers.")
key_app = typer.Typer(no_args_is_help=True, help="Make, rotate and delete the keys of pseudonyms.")
pseudonyms_app.add_typer(key_app, name="key")

Table = Annotated[Path, typer.Argument(help="A .csv or .parquet file.", show_default=False)]
KeyFile = Annotated[Path, typer.Argument(help="The key file (mode 0600).", show_default=False)]
Region = Annotated[str, typer.Option(help="The country of phones without one, two letters.")]


def columns(
    table: Table,
    rows: Annotated[int, typer.Option(help="Look at so many values of each column.", min=1)] = 10_000,
    seed: Annotated[
        int, typer.Option(help="Which ones are drawn: equal seeds, equal suggestions.", min=0)
    ] = 0,
    region: Region = "CN",
    singling: Annotated[
        bool, typer.Option("--singling-out", help="Also which columns together single out the most rows.")
    ] = False,
) -> None:
    """Suggest what each column of a table is, who may see it, and why. It decides nothing: an officer does.

    No value of the table is printed. Recognised in part by lists and shapes: what isn't suggested may be personal still.

    Example: foedus columns customers.csv --singling-out
    """
    from rich.table import Table as Grid

    from ..compliance.masking.columns import suggest
    from ..compliance.masking.singling_out import quasi_identifiers

    frame = _read(table)
    out = Console()
    grid = Grid(title=f"Suggestions for {escape(table.name)}, {len(frame):,} rows: for an officer to decide")
    wide = out.width >= 120
    for name in (
        "column",
        "kind",
        "role",
        "level",
        "are it",
        "differ",
        "missing",
        *(["why"] if wide else []),
    ):
        grid.add_column(name, justify="right" if name in ("are it", "differ", "missing") else "left")
    reasons = []
    for s in suggest(frame, rows=rows, seed=seed, region=region):
        kind, role = (str(x).replace("_", " ") for x in (s.kind, s.role))
        figures = (f"{x:.0%}" if x in (0, 1) else f"{x:.1%}" for x in (s.share, s.uniqueness, s.missing))
        grid.add_row(
            escape(s.column), kind, role, str(s.level), *figures, *([escape(s.reason)] if wide else [])
        )
        reasons.append(f"{s.column}: {s.reason}")
    out.print(grid)
    if not wide:  # beside the figures there is no room for a sentence
        for reason in reasons:
            out.print(reason, markup=False, highlight=False)
    if singling:
        grid = Grid(title="Columns that together single out the most rows")
        for name in ("columns", "rows", "of all"):
            grid.add_column(name, justify="left" if name == "columns" else "right")
        for found in quasi_identifiers(frame):
            grid.add_row(escape(", ".join(found.columns)), f"{found.rows:,}", f"{found.share:.1%}")
        out.print(grid)


@key_app.command()
def new(file: KeyFile) -> None:
    """Make a key file with version 1. It never overwrites one.

    Example: foedus pseudonyms key new pseudonyms.key
    """
    from ..compliance.masking.pseudonyms import Keyring

    Keyring.create(file)
    typer.echo(f"{file}: version 1; keep it where the data is not, and back it up only where backups expire")


@key_app.command()
def show(file: KeyFile) -> None:
    """Print which versions a key file has; no key.

    Example: foedus pseudonyms key show pseudonyms.key
    """
    from ..compliance.masking.pseudonyms import Keyring

    ring = Keyring.load(file)
    typer.echo(f"versions {', '.join(map(str, ring.versions)) or 'none'}; the latest ever was {ring.latest}")


@key_app.command()
def rotate(file: KeyFile) -> None:
    """Add a new version, which new pseudonyms get from now on. Older ones stay until they are deleted.

    Example: foedus pseudonyms key rotate pseudonyms.key
    """
    from ..compliance.masking.pseudonyms import Keyring

    ring = Keyring.load(file).rotate()
    typer.echo(f"{file}: version {ring.latest} is the latest; p{ring.latest}. begins its pseudonyms")


@key_app.command()
def delete(
    file: KeyFile,
    version: Annotated[int, typer.Argument(help="The version, as pseudonyms begin with it.", min=1)],
) -> None:
    """Delete a version's key for good: nobody can link or make its pseudonyms again. Delete the backups, too.

    Example: foedus pseudonyms key delete pseudonyms.key 1
    """
    from ..compliance.masking.pseudonyms import Keyring

    Keyring.load(file).delete(version)
    typer.echo(f"{file}: version {version} is gone; backups of the file may still have it")


@pseudonyms_app.command()
def apply(
    table: Table,
    column: Annotated[
        list[str],
        typer.Option(
            help="name:kind, as often as needed; kinds: phone, resident_id, email, card, iban, name, text.",
            show_default=False,
        ),
    ],
    purpose: Annotated[
        str,
        typer.Option(help="What they are for: those of two purposes can't be linked.", show_default=False),
    ],
    key: Annotated[Path, typer.Option(help="The key file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A new .csv or .parquet file (mode 0600).", show_default=False)],
    version: Annotated[
        int | None, typer.Option(help="An older version, to link with.", show_default="the latest")
    ] = None,
    missing: Annotated[str, typer.Option(help="Missing values: refuse, or keep them missing.")] = "refuse",
    invalid: Annotated[
        str, typer.Option(help="Values not of the kind: refuse, or keep nothing of them.")
    ] = "refuse",
    region: Region = "CN",
    node: Annotated[
        Path | None,
        typer.Option(
            help="The node's directory whose lineage notes it.", show_default="the one that the table lies in"
        ),
    ] = None,
) -> None:
    """Write a table with pseudonyms in the place of some columns; all others are copied as they are.

    Example: foedus pseudonyms apply customers.csv --column phone:phone --purpose dpv:Marketing --key pseudonyms.key --out masked.csv
    """
    from ..compliance.masking.pseudonyms import Keyring, Subject, pseudonymise
    from ..errors import InputError
    from .lineage import AS_IT_WAS, noting_masked

    ring, frame = Keyring.load(key), _read(table)
    _kind_of_file(out)
    if out.exists():
        raise InputError(f"{out}: exists already", remedy="name a new file")
    for item in column:
        name, _, kind = item.rpartition(":")
        if kind not in list(Subject):
            raise InputError(f"--column {item}: not name:kind", remedy=f"kinds are {', '.join(Subject)}")
        if list(frame.columns).count(name) != 1:
            raise InputError(
                f"{table}: there is not one column {name!r}", remedy=f"it has {', '.join(map(str, frame))}"
            )
        frame[name] = pseudonymise(
            frame[name],
            Subject(kind),
            keys=ring,
            purpose=purpose,
            version=version,
            missing=_gap(missing),
            invalid=_gap(invalid),
            region=region,
        )
    kinds = dict(item.rpartition(":")[::2] for item in column)
    with noting_masked(table, out, "pseudonyms", node) as masked:
        _write(frame, out)
        masked.method = f"pseudonyms by HMAC-SHA-256 for {purpose}, version {version or ring.latest}"
        masked.columns = {
            str(name): f"pseudonym of a {kinds[str(name)]}" if str(name) in kinds else AS_IT_WAS
            for name in frame
        }
    say = Console(highlight=False, soft_wrap=True)
    say.print(
        f"{out}: {len(frame)} rows, pseudonyms in {', '.join(c.rpartition(':')[0] for c in column)}",
        markup=False,
    )
    say.print("the other columns are as they were: foedus columns says what they may tell", markup=False)


def _gap(choice: str) -> Gap:
    from ..errors import InputError

    if choice == "refuse":
        return "refuse"
    if choice == "keep":
        return "keep"
    raise InputError(f"{choice!r}: refuse or keep")


def _kind_of_file(path: Path) -> str:
    from ..errors import InputError

    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: not a .csv or .parquet file")
    return suffix


def _read(path: Path) -> pd.DataFrame:
    """A table; of a .csv file, texts as they stand: 00042 is not 42, and NA may be a name.

    Raises:
        InputError: unreadable, or not of these kinds.
    """
    import pandas as pd

    from ..errors import InputError

    try:
        if _kind_of_file(path) == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text", remedy="iconv -f GB18030 -t UTF-8, if Excel wrote it"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # pandas' and Arrow's own errors are ValueErrors; their text may show a row
        raise InputError(f"{path}: can't be read as a table") from error


def _write(frame: pd.DataFrame, out: Path) -> None:
    """Written beside with mode 0600, then renamed: the file is whole or not there."""
    from ..errors import InputError

    beside = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            if _kind_of_file(out) == ".csv":
                frame.to_csv(file, index=False)
            else:
                frame.to_parquet(file, index=False)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(out)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
