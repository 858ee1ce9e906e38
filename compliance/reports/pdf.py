"""A report as PDF, by WeasyPrint: the page set on A4, and the page itself attached to it.

Equal pages give equal bytes on one machine; other versions of WeasyPrint, Pango or the fonts set lines otherwise.
WeasyPrint needs Pango of the operating system; fonts are embedded. Chosen for reasons: decision 25.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from datetime import UTC, datetime
from typing import Any

from ...errors import InputError, VerificationError

ATTACHMENT = "report.html"
_PACKAGES = "on Debian: apt install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-liberation fonts-noto-cjk"


def pdf(page: str, made: str) -> bytes:
    """The page as PDF/A-3u, with itself attached.

    Args:
        made: the date of the report, which is the file's, too.

    Raises:
        InputError: Pango is not installed, or no font here has a character of the report.
    """
    try:
        import weasyprint
        from weasyprint.urls import URLFetcher
    except (ImportError, OSError) as error:
        raise InputError(f"PDF needs Pango, which is not here ({_first(error)})", remedy=_PACKAGES) from error

    class Nothing(URLFetcher):  # type: ignore[misc]
        """A report loads nothing."""

        def fetch(self, url: str, headers: Any = None) -> Any:
            raise ValueError(f"a report loads nothing, not {url}")

    moment = datetime.fromisoformat(made).replace(tzinfo=UTC)
    attached = weasyprint.Attachment(
        string=page,
        name=ATTACHMENT,
        description="The report, machine-readable: foedus report check",
        relationship="Source",
        created=moment,
        modified=moment,
    )
    heard = _Heard()
    log = logging.getLogger("weasyprint")
    log.addHandler(heard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # WeasyPrint 70 leaves its colour profile open
            made_pdf = weasyprint.HTML(string=page, url_fetcher=Nothing()).write_pdf(
                attachments=[attached],
                pdf_variant="pdf/a-3u",
                pdf_identifier=hashlib.sha256(page.encode()).digest()[:16],
                pdf_tags=True,
            )
    finally:
        log.removeHandler(heard)
    if heard.missing:
        raise InputError(
            f"no font here has {', '.join(heard.missing[:5])}: the report can't be set", remedy=_PACKAGES
        )
    return bytes(made_pdf)


def attached(data: bytes) -> str:
    """The page attached to a PDF.

    Raises:
        InputError: not a PDF. VerificationError: it has not one report attached.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        found = PdfReader(io.BytesIO(data), strict=True).attachments
        pages = list(found.get(ATTACHMENT, [])) if set(found) == {ATTACHMENT} else []
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise InputError(f"not a PDF that can be read: {error}") from error
    if len(pages) != 1:
        raise VerificationError(f"the PDF does not have one {ATTACHMENT} attached, as a report has")
    try:
        return pages[0].decode()
    except UnicodeDecodeError as error:
        raise VerificationError("what is attached to the PDF is not a report") from error


def check(data: bytes, page: str, made: str) -> None:
    """That a PDF shows the page attached to it: set again, it has the same bytes.

    Raises:
        VerificationError: it does not.
    """
    if pdf(page, made) != data:
        raise VerificationError(
            "the PDF is not what its attached page gives here: it was changed, or set with another version of"
            " WeasyPrint, Pango or the fonts",
            remedy="take the page out (foedus report page REPORT.pdf), check it, and set it anew (--format pdf)",
        )


class _Heard(logging.Handler):
    """Remembers for which characters no font was found."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.missing: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "notdef" in str(record.msg):
            self.missing.append(record.getMessage().rpartition(": ")[2])


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:200]
