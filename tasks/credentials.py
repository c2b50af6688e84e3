"""Addresses without credentials: for every text that is printed, logged, stored or put on a command line."""

import logging
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

HIDDEN = "***"
_USER_INFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)"
    # Up to the last @ of the authority; or user:password, whatever stands in the password, unless it is host:port/path.
    r"(?:[^\s/?#'\"]*@|[^\s:/?#'\"@]*:(?!\d+[/?#])[^\s@'\"]*@)"
)
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&](?:password|passwd|pwd|token|access_token|api_key|apikey|key|secret|signature|sig|sslpassword)=)"
    r"[^\s&#'\"]+",
    re.IGNORECASE,
)


class Login(NamedTuple):
    """User name and password."""

    user: str
    password: str


def without_credentials(text: str) -> str:
    """The text with user names, passwords and keys taken out of every address in it.

    >>> without_credentials("no answer from postgresql://ann:pa/ss@db:5432/mlflow?sslmode=require")
    'no answer from postgresql://***@db:5432/mlflow?sslmode=require'
    >>> without_credentials("models:/desk@production at http://127.0.0.1:5000/#/models/desk@production")
    'models:/desk@production at http://127.0.0.1:5000/#/models/desk@production'
    """
    if "://" not in text:
        return text
    return _SECRET_PARAMETER.sub(rf"\g<name>{HIDDEN}", _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text))


def split_login(address: str) -> tuple[str, Login | None]:
    """An http or https address without its user and password, and those; any other address as it is.

    >>> split_login("https://ann:p%40ss@mlflow.example:8443/base")
    ('https://mlflow.example:8443/base', Login(user='ann', password='p@ss'))
    """
    if not address.startswith(("http://", "https://")):
        return address, None
    parts = urlsplit(address)
    user_info, at, host = parts.netloc.rpartition("@")
    if not at:
        return address, None
    user, _, password = user_info.partition(":")
    return urlunsplit(parts._replace(netloc=host)), Login(unquote(user), unquote(password))


class WithoutCredentials(logging.Filter):
    """Takes credentials out of what a logger or a handler passes on."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, its text made safe."""
        text = record.getMessage()
        safe = without_credentials(text)
        if safe != text:
            record.msg, record.args = safe, ()
        return True
