"""Where a page is, and what its address must hold: checks of what a user says about that.

Law: values in, values out, or an error that names the remedy.
"""

from __future__ import annotations

import os
import secrets
from urllib.parse import quote

from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any
from conveyor.stats import SERVE_VARIABLE

HOST = "127.0.0.1"
# What a browser may call this machine; no name that a server of names gives out is among them.
NAMES = frozenset({HOST, "localhost"})
TOKEN_VARIABLE = "CONVEYOR_TOKEN"
_LAST_PORT = 65535
_TOKEN_BYTES = 24


def check_port(port: Any) -> None:
    """Raise TypeError or ValueError for what is no port."""
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"serve: port must be an int, 0 for any that is free, not {short(port)}")
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(f"serve: port must be from 0, which is any that is free, to {_LAST_PORT:,}, not {port}")


def port_of_environment(wanted: str) -> int:
    """Return the port in a value of `CONVEYOR_SERVE`; raises ValueError.

    >>> port_of_environment("127.0.0.1:8642")
    8642
    """
    host, colon, port = wanted.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal() and int(port) <= _LAST_PORT):
        raise ValueError(
            f"{SERVE_VARIABLE}={wanted!r} must be an address with a port, such as 127.0.0.1:8642, or 127.0.0.1:0 for "
            "any port that is free"
        )
    if host not in NAMES:
        raise ValueError(
            f"{SERVE_VARIABLE}={wanted!r} names another address than 127.0.0.1, and a page can be reached from this "
            f"machine alone. Remedy: {SERVE_VARIABLE}=127.0.0.1:{port}, and from elsewhere a tunnel, such as "
            f"`ssh -L {port}:127.0.0.1:{port} host`."
        )
    return int(port)


_of_process: list[str] = []


def token() -> str:
    """Return what a request must know: `CONVEYOR_TOKEN`, or else what this process has chosen at random."""
    fixed = os.environ.get(TOKEN_VARIABLE)
    return fixed or secrets.token_urlsafe(_TOKEN_BYTES)


def token_of_process() -> str:
    """Return the same token for all pages that the environment wants: a browser may stay at one."""
    if not _of_process:
        _of_process.append(token())
    return _of_process[0]


def url_of(port: int, token: str) -> str:
    """Return the address of a page.

    >>> url_of(8642, "a b")
    'http://127.0.0.1:8642/?token=a%20b'
    """
    return f"http://{HOST}:{port}/?token={quote(token, safe='')}"
