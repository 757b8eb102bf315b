"""Log lines for a collector, without secrets: to standard error and to the run's own log file."""

import logging
import re
import sys
import time
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from steps import addresses

_hidden: set[str] = set()

# Shorter values would blot out words that are no secret.
_SHORTEST_SECRET = 4


# Libraries quote the links that servers redirect to; a presigned link's query is a credential.
_QUERY = re.compile(r"""(https?://[^\s?'"<>]*)\?[^\s'"<>)]*""")


def hide(value: str) -> None:
    """Never show this value again, in whatever line it turns up."""
    if len(value) >= _SHORTEST_SECRET:
        _hidden.add(value)


def redact(text: str) -> str:
    """The text without the values that were hidden, and without queries of links."""
    for value in _hidden:
        text = text.replace(value, "**********")
    return _QUERY.sub(r"\1?**********", text)


def public_uri(uri: str) -> str:
    """The address without user, password and query: a presigned link's query is a credential.

    Of several addresses in one text, each.
    """
    return "".join(_public(part) for part in addresses.parts(uri))


def uri_secrets(uri: str) -> list[str]:
    """What `public_uri` leaves out of one address."""
    if "://" not in uri:
        return []
    try:
        user, query = _credentials(urlsplit(uri))
    except ValueError:
        return [uri.partition("?")[2]]
    return [text for text in (user, user.partition(":")[2], query) if text]


def _public(part: str) -> str:
    if "://" not in part:
        return part
    uri = addresses.split(part)[0].uri
    try:
        parts = urlsplit(uri)
    except ValueError:  # no address: whoever opens it says so
        return part.partition("?")[0]
    user, query = _credentials(parts)
    if not user and not query:
        return part
    shown = parts._replace(
        netloc=parts.netloc.rpartition("@")[2] if user else parts.netloc,
        query="**********" if query else parts.query,
    )
    return part.removesuffix(uri) + urlunsplit(shown)


def _credentials(parts: SplitResult) -> tuple[str, str]:
    """User with password, and query: each empty where the scheme has another use for its sign."""
    revision = parts.scheme in ("hf", "oci")  # follows an @
    wildcard = parts.scheme in ("hf", "oci", "pvc", "s3")  # a ? is one
    user = "" if revision else parts.netloc.rpartition("@")[0]
    return user, "" if wildcard else parts.query


class Formatter(logging.Formatter):
    """`2026-01-31T12:00:00Z INFO dataset: message`, with hidden values masked."""

    def __init__(self, step: str) -> None:
        self.converter = time.gmtime
        self._separator = f" {step}: "
        super().__init__(
            f"%(asctime)s %(levelname)s {step}: %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ"
        )

    def format(self, record: logging.LogRecord) -> str:
        """The message, traceback included, each of its lines with its own time and level."""
        first, *more = redact(super().format(record)).splitlines()
        head = first[: first.index(self._separator) + len(self._separator)]
        return "\n".join([first, *(f"{head}{line}" for line in more)])


def set_up(step: str, level: str) -> None:
    """Send this process's log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(step))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("steps").setLevel(level)
    # Says of every saved model with tied weights that it left one copy out.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(
        logging.WARNING if level == "DEBUG" else logging.ERROR
    )


def add_file(step: str, path: Path) -> None:
    """Send them to the run's log file too; an earlier attempt's lines stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Formatter(step))
    logging.getLogger().addHandler(handler)
