"""Where a space on NATS is and who asks: a URL, and the environment for what the URL leaves out.

``nats://[user:password@]h1:4222[,h2:4222…]/SPACE[?ca=FILE&cert=FILE&key=FILE&nkey=SEEDFILE&creds=FILE&tls=1&inbox=PREFIX]``;
``tls://`` is the same with TLS required. Files are named, never their contents. Secrets appear in no text that is made here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from onefold.errors import InvalidArgument
from onefold.log.jetstream.names import INBOX_PREFIX, check_space

DEFAULT_PORT: Final = 4222
SCHEMES: Final = ("nats", "tls")
_FILES: Final = ("ca", "cert", "key", "nkey", "creds")
_OPTIONS: Final = (*_FILES, "tls", "inbox")
_SEED: Final = re.compile(r"^S[A-Z2-7]{50,}$")
_INBOX: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_HOST: Final = re.compile(r"\[[0-9A-Fa-f:.%]+\]|[^\s\[\]:@/?#]+")


@dataclass(frozen=True)
class Address:
    """A space on NATS servers. Equal addresses may share a connection. ``repr`` and ``url`` show no secret and no user."""

    servers: tuple[str, ...]
    """``host:port`` each, as configured; the servers tell of others."""
    space: str
    tls: bool = False
    """Whether a server without TLS is refused."""
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    nkey: str | None = None
    """The file of a seed."""
    creds: str | None = None
    """The file of a JWT with its seed."""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    inbox: str = INBOX_PREFIX
    region: str | None = None
    """Of the program, which a URL does not say."""
    url: str = field(default="", compare=False)
    """The URL as it may be shown: without user information."""

    def __str__(self) -> str:
        return self.url


def is_nats(url: str) -> bool:
    """Whether a URL names a space on NATS."""
    return url.partition("://")[0] in SCHEMES and "://" in url


def redact(url: str) -> str:
    """A URL as it may be shown, however malformed it is: what stands before the last ``@`` may hold a secret, and so may
    the value of an option that is none of ours (``?token=…``)."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url.rpartition("@")[2]
    rest, mark, query = rest.rpartition("@")[2].partition("?")
    shown = f"{scheme}://{rest}{mark}{'&'.join(map(_redacted_option, query.split('&')))}"
    return re.sub(r"S[A-Z2-7]{50,}", "…", shown)


def _redacted_option(text: str) -> str:
    name, mark, _ = text.partition("=")
    return text if name in _OPTIONS or not mark else f"{name[:20]}=…"


def parse_address(url: str, environ: Mapping[str, str] | None = None) -> Address:
    """The address in a URL, completed from the environment. Raises InvalidArgument, without the URL's secrets in it.

    The environment's credentials count only when the URL has none; then ``ONEFOLD_NATS_CREDS``, ``ONEFOLD_NATS_NKEY``, or
    ``ONEFOLD_NATS_USER`` with ``ONEFOLD_NATS_PASSWORD``, in this order. A CA or a certificate makes TLS required.
    """
    environ = os.environ if environ is None else environ
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise InvalidArgument(f"{redact(url)}: a space on NATS is nats://host:port/SPACE or tls://…")
    rest, _, query = rest.partition("?")
    hosts, _, path = rest.partition("/")
    if "@" in path:
        raise _bad(url, "write /, @ and , in a password as %2F, %40 and %2C")
    if not path:
        raise _bad(url, "the name of the space is missing: nats://host:port/SPACE")
    space = check_space(unquote(path.rstrip("/")))
    servers, user, password = _servers(url, hosts)
    options = _options(url, query)
    tls = scheme == "tls" or options.get("tls") == "1"
    given = {"user": user, "password": password} | {name: options.get(name) for name in ("nkey", "creds")}
    if not any(given.values()):
        given = _from_environment(environ)
    elif password is None and user is not None:
        given["password"] = environ.get("ONEFOLD_NATS_PASSWORD")
    if (given["user"] is None) != (given["password"] is None):
        raise _bad(url, "a user needs a password: user:password@host, or ONEFOLD_NATS_PASSWORD")
    files = {
        name: options.get(name) or environ.get(f"ONEFOLD_NATS_{name.upper()}")
        for name in ("ca", "cert", "key")
    }
    if (files["cert"] is None) != (files["key"] is None):
        raise _bad(url, "cert and key belong together: give both files")
    return Address(
        servers,
        space,
        tls or any(files.values()),
        **given,
        **files,
        inbox=options.get("inbox", INBOX_PREFIX),
        url=_shown(scheme, servers, space, options),
    )


def _servers(url: str, hosts: str) -> tuple[tuple[str, ...], str | None, str | None]:
    """The servers, and the user and password that stand before one or all of them."""
    servers: list[str] = []
    found: set[str] = set()
    for part in hosts.split(","):
        info, mark, host = part.rpartition("@")
        if mark:
            found.add(info)
        servers.append(_host_and_port(url, host))
    if len(found) > 1:
        raise _bad(url, "all servers of a space take the same user; several are given")
    if not found:
        return tuple(dict.fromkeys(servers)), None, None
    user, mark, password = found.pop().partition(":")
    if not user:
        raise _bad(url, "the user before @ is empty")
    return tuple(dict.fromkeys(servers)), unquote(user), unquote(password) if mark else None


def _host_and_port(url: str, text: str) -> str:
    match = _HOST.match(text)
    if match is None:
        raise _bad(url, "a server is host:port; one is empty or malformed")
    host, rest = match.group(), text[match.end() :]
    if not rest:
        return f"{host}:{DEFAULT_PORT}"
    port = rest[1:]
    if rest[0] != ":" or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise _bad(url, "a server is host:port; a port is 1 to 65535")
    return f"{host}:{int(port)}"


def _options(url: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS or name in options:
            raise _bad(url, f"options are {', '.join(_OPTIONS)}, each once; one is {name[:20]!r}")
        if not value:
            raise _bad(url, f"the option {name} is empty")
        if name in _FILES and (_SEED.match(value) or "\n" in value):
            raise InvalidArgument(
                f"the option {name} of a nats:// URL is the path of a file, not what the file holds"
            )
        options[name] = value
    if options.get("tls", "1") not in ("0", "1"):
        raise _bad(url, "tls is 0 or 1")
    if not _INBOX.fullmatch(options.get("inbox", INBOX_PREFIX)):
        raise _bad(url, "inbox is a subject prefix such as _INBOX_app")
    if "nkey" in options and "creds" in options:
        raise _bad(url, "nkey and creds are two credentials: give one")
    return options


def _from_environment(environ: Mapping[str, str]) -> dict[str, str | None]:
    nothing: dict[str, str | None] = dict.fromkeys(("user", "password", "nkey", "creds"))
    if creds := environ.get("ONEFOLD_NATS_CREDS"):
        return nothing | {"creds": creds}
    if nkey := environ.get("ONEFOLD_NATS_NKEY"):
        if _SEED.match(nkey.strip()):
            raise InvalidArgument("ONEFOLD_NATS_NKEY is the path of a seed file, not the seed itself")
        return nothing | {"nkey": nkey}
    user, password = environ.get("ONEFOLD_NATS_USER"), environ.get("ONEFOLD_NATS_PASSWORD")
    return nothing | {"user": user or None, "password": password if user else None}


def _shown(scheme: str, servers: tuple[str, ...], space: str, options: Mapping[str, str]) -> str:
    query = urlencode(options, quote_via=quote, safe="/")
    return f"{scheme}://{','.join(servers)}/{space}" + (f"?{query}" if query else "")


def _bad(url: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{redact(url)}: {problem}")
