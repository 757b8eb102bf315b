"""Where the Model Registry is, and what may be told to whom: address, token, trusted certificates."""

import logging
import re
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from steps.errors import ConfigError, CredentialsError, UsageError
from steps.logs import public_uri
from steps.register.params import REGISTRY_SECRET
from steps.secrets import environment

log = logging.getLogger(__name__)

HTTPS_PORT = 443

_HOST = re.compile(r"[\w.:-]+")


@dataclass(frozen=True)
class Address:
    """A registry's base address, and how to identify ourselves and it."""

    url: str
    """Scheme, host and port, and a path in front of the API where there is one."""
    token: str = field(default="", repr=False)
    """Bearer token to send; empty sends none."""
    ca: str = ""
    """PEM certificates to trust instead of the system's; empty trusts those."""


def address(text: str, port: int) -> Address:
    """The registry that `text` names, with the secret model-registry from the environment.

    Scheme and port in the text win over `port`, which is for http alone. A token goes over http
    only where the text says `http://`: nobody shall lose one to a forgotten scheme.

    Raises UsageError for an address that cannot be used, CredentialsError for a token and
    ConfigError for a certificate that are none.
    """
    url, explicit = _url(text.strip(), port)
    return Address(url, _token(url, explicit), _ca())


def _url(text: str, port: int) -> tuple[str, bool]:
    explicit = "://" in text
    text = text if explicit else f"http://{text}"
    where = f"--address {public_uri(text)} (phase_04_registry_man_address)"
    try:
        parts = urlsplit(text)
        port = parts.port or (HTTPS_PORT if parts.scheme == "https" else port)
    except ValueError as error:
        raise UsageError(f"{where}: {error}; write http(s)://host:port") from error
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise UsageError(f"{where}: write host:port, http://host:port or https://host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"{where}: an address has no user, query or fragment; a token belongs in the secret "
            f"{REGISTRY_SECRET.name} (key MODEL_REGISTRY_TOKEN)"
        )
    bracketed = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{bracketed}:{port}{parts.path.rstrip('/')}", explicit


def _token(url: str, explicit: bool) -> str:
    token = environment("MODEL_REGISTRY_TOKEN")
    if not (token.isascii() and token.isprintable()):
        raise CredentialsError(
            f"secret {REGISTRY_SECRET.name}, key MODEL_REGISTRY_TOKEN: not one line of plain text, "
            "as a token is"
        )
    if token and not explicit:
        log.warning(
            "%s: the token is not sent, because the address has no scheme; write https://, "
            "or http:// to send it unencrypted",
            url,
        )
        return ""
    return token


def _ca() -> str:
    ca = environment("MODEL_REGISTRY_CA")
    if ca:
        try:
            ssl.create_default_context(cadata=ca)
        except (TypeError, ValueError, ssl.SSLError) as error:
            raise ConfigError(
                f"secret {REGISTRY_SECRET.name}, key MODEL_REGISTRY_CA: no certificates in PEM "
                f"format ({error})"
            ) from error
    return ca
