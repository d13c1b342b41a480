"""Keeps passwords in URIs out of everything that is written or printed."""

import base64
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from raymimic.errors import ConfigError

USERNAME = "MLFLOW_TRACKING_USERNAME"
PASSWORD = "MLFLOW_TRACKING_PASSWORD"
TOKEN = "MLFLOW_TRACKING_TOKEN"
TRACKING_URI = "MLFLOW_TRACKING_URI"
# Passes a tracking URI with its password from one raymimic process to the next.
FULL_URI = "RAYMIMIC_MLFLOW_URI"

HIDDEN = "***"

_WEB = {"http", "https"}

_WORDS = "pass|pwd|token|secret|sig|credential|key|auth|odbc_connect"
_QUERY = re.compile(rf"([?&;][\w.-]*(?:{_WORDS})[\w.-]*=)[^&;\s'\"<>#]+", re.IGNORECASE)
# A name alone is no secret (`sftp://user@host`, Azure's `abfs://container@account`), but on the
# web it may be a token.
_LOGIN = re.compile(r"(://)[^\s/@:'\"<>]*:[^\s'\"<>]*@|(https?://)[^\s/?#@:'\"<>]+@", re.IGNORECASE)

# A shorter secret may be a word of any message.
_LEAST_SECRET = 4


def masked(text: str) -> str:
    """Hides the credentials of the URIs in a text, before it is printed or logged.

    Hides logins (`http://***@host`) and values of query parameters such as `token` and `sig`.
    """
    if "://" not in text:
        return text
    text = _LOGIN.sub(lambda match: f"{match[1] or match[2]}{HIDDEN}@", text)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", text)


def holds_login(uri: str) -> bool:
    """Whether a URI has a password, or on the web any login, before its host."""
    return _LOGIN.search(uri) is not None


class ServerUri(str):
    """The address of a tracking server or database, without its password.

    The password is carried in memory only: neither JSON nor a pickle of the address holds it.

    Attributes:
        environment: variables that hand the password to another raymimic process.
    """

    environment: Mapping[str, str]

    @classmethod
    def of(cls, uri: str) -> Self:
        """Takes the password out of an address.

        If it has none, the password of the same address in `MLFLOW_TRACKING_URI` is used.

        Raises:
            ConfigError: the end of the password is ambiguous.
        """
        if isinstance(uri, cls):
            return uri
        address, environment = _split(uri)
        for variable in (FULL_URI, TRACKING_URI):
            given = os.environ.get(variable)
            if given and not environment:
                other_address, variables = _split(given)
                environment = variables if other_address == address else {}
        result = cls(address)
        result.environment = environment
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _split(uri: str) -> tuple[str, dict[str, str]]:
    """An address without password, and the variables that hold the password."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.lower().partition("+")[0] in {"sqlite", "file"}:
        return uri, {}
    if scheme.lower() in _WEB:
        host, slash, path = rest.partition("/")
        login, at, host = host.rpartition("@")
        if "@" in f"{host}{path}" or "#" in login or "?" in login:
            raise ConfigError(
                f"the login in mlflow.tracking_uri '{_hidden(uri)}' has characters that end it "
                f"(@ / ? #): give {USERNAME} and {PASSWORD} in the environment instead"
            )
        if not at:
            return uri, {}
        user, _, password = login.partition(":")
        variables = {USERNAME: unquote(user), PASSWORD: unquote(password)}
        environment = {name: value for name, value in variables.items() if value.strip("*")}
        return f"{scheme}://{host}{slash}{path}", environment
    # As SQLAlchemy reads it: a password may hold anything but an @.
    login_match = re.match(r"([^:/?]*):([^@]*)@", rest)
    if login_match and "@" in rest[login_match.end() :].partition("?")[0]:
        raise ConfigError(
            f"the password in mlflow.tracking_uri '{_hidden(uri)}' holds an @, which ends it: "
            "write %40 in its place"
        )
    address = uri
    if login_match:
        address = f"{scheme}://{login_match[1]}@{rest[login_match.end() :]}"
    before, question, query = address.partition("?")
    if question:
        kept = [part for part in query.split("&") if not _QUERY.match(f"?{part}")]
        address = f"{before}?{'&'.join(kept)}" if kept else before
    return address, {FULL_URI: uri} if secret_parts(uri) else {}


def full_uri(address: str) -> str:
    """The address with its password, if this process has it in its environment."""
    given = os.environ.get(FULL_URI)
    return given if given and _split(given)[0] == address else address


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """All forms that the credentials of an environment may have in a text, longest first."""
    user, password = environment.get(USERNAME, ""), environment.get(PASSWORD, "")
    secrets = {password, environment.get(TOKEN, "")}
    if password:
        secrets.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    for variable in (FULL_URI, TRACKING_URI):
        secrets |= passwords_of(environment.get(variable, ""))
    return sorted((s for s in secrets if len(s) >= _LEAST_SECRET), key=len, reverse=True)


def secret_parts(uri: str) -> list[str]:
    """The secret parts of a URI, such as `user:password@` and `token=abc`."""
    parts = [login] if (login := _login(uri)) else []
    parts += [match[0][1:] for match in _QUERY.finditer(uri)]
    return [part for part in parts if part.strip("*@") and not part.endswith((":@", "*@"))]


def _login(uri: str) -> str:
    """The login in a URI, with its `@`. Blanks and quotes are part of it, unlike in `_LOGIN`."""
    scheme, _, rest = uri.partition("://")
    login, at, _ = rest.rpartition("@")
    name, colon, _ = login.partition(":")
    if at and "/" not in name and "?" not in name and (colon or scheme.lower() in _WEB):
        return login + at
    return ""


def _hidden(uri: str) -> str:
    return masked(uri.replace(_login(uri) or "\0", f"{HIDDEN}@"))


def passwords_of(uri: str) -> set[str]:
    """The secrets of a URI, both quoted and unquoted."""
    secrets = set()
    for part in secret_parts(uri):
        if part.endswith("@"):
            user, colon, password = part[:-1].partition(":")
            secrets.add(password if colon else user)
        else:
            secrets.add(part.partition("=")[2])
    return {form for secret in secrets for form in (secret, unquote(secret))}


def without(text: str, secrets: Iterable[str]) -> str:
    """A library's text without known secrets, and without any login in a URI."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return masked(text)


def is_server(uri: str) -> bool:
    """Whether an address is that of a web server."""
    return urlsplit(uri).scheme in _WEB
