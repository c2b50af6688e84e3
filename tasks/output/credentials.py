"""Addresses without credentials: for every text that is printed, logged, stored or put on a command line."""

import logging
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

HIDDEN = "***"
# A quote is part of a password only where the text goes on behind it.
_QUOTE = r"['\"](?=\w)"
# Up to the last @ of the authority; or user:password, whatever stands in the password. All lengths have a bound: what
# has no @ would be looked through again from each place.
_AUTHORITY = rf"(?:[^\s/?#'\"]|{_QUOTE}){{0,300}}@"
_PASSWORD = rf"(?:[^\s@'\"]|{_QUOTE}){{0,300}}@"
_USER_INFO = re.compile(
    # A page may have an @ behind host:port/, and a store, whose password may begin with digits and a slash, has none.
    rf"(?P<scheme>(?:https?|(?P<store>(?<![a-z0-9+.-])(?!https?:)[a-z][a-z0-9+.-]{{0,40}}))://)"
    rf"(?:{_AUTHORITY}|[^\s:/?#'\"@]{{0,300}}:(?(store)|(?!\d+[/?#])){_PASSWORD})",
    re.IGNORECASE,
)
_SECRET = "password|passwd|pwd|secret|token|signature|credential|auth|key|sas|odbc_connect"
_SECRET_PARAMETER = re.compile(
    rf"(?P<name>[?&#;](?:[\w.-]{{0,40}}(?:{_SECRET})[\w.-]{{0,40}}|sig)=)[^\s&#'\"]+", re.IGNORECASE
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
