"""`prefloop serve`: one process that serves one workspace at one address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import re
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefloop.store.accounts import PROGRAM, Accounts
from prefloop.store.private import keep_private, workspace_key
from prefloop.types import PrefloopError
from prefloop.web.app import make_app
from prefloop.web.limits import Limits
from prefloop.web.workspace import Workspace, database_of, open_workspace

FIRST_PORT = 8765
_PORTS = 20
_HEAD_BYTES = 16 * 1024
_PUBLIC = re.compile(r"(https://[a-z0-9.-]+(?::[0-9]{1,5})?)/?")
_PATIENCE = 15.0  # seconds
_CONNECTIONS = 512  # more are told to come back later
_SWITCH = 0.0005  # seconds that a busy thread keeps Python for: what a labeler waits for takes it many times over


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to listen. No port: the first free one from FIRST_PORT on. `names`: under which others know this server.
    `public`: the address of a reverse proxy on this machine that speaks TLS, such as https://labels.example.org."""

    host: str = "127.0.0.1"
    port: int | None = None
    names: Sequence[str] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    public: str = ""

    @property
    def origin(self) -> str:
        """`public` as browsers send it; empty without. Raises PrefloopError for what is no such address."""
        if not self.public:
            return ""
        parsed = _PUBLIC.fullmatch(self.public.lower())
        if parsed is None:
            raise PrefloopError(
                f"--public-url {self.public} is no address such as https://labels.example.org; mend it."
            )
        return parsed[1].removesuffix(":443")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.public:
            return False
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def serve(folder: Path, database: str, place: Place, admin: tuple[str, str] | None = None) -> None:
    """Serve until Ctrl-C. Prints where, with a link that lets its reader in once. `admin`: name and password of
    somebody who becomes one, with this password, whether they have an account or not.

    Raises PrefloopError where the port is taken, or where others could reach a server without a password."""
    if (place.certificate is None) != (place.private_key is None):
        raise PrefloopError("TLS needs both a certificate and its key: --tls-certificate FILE --tls-key FILE.")
    _keep_to_ourselves(folder, database)
    with contextlib.closing(open_workspace(folder, workspace_key(folder), database)) as workspace:
        if admin is not None:
            _add_admin(workspace.accounts, *admin)
        _check_reach(workspace, place)
        server = uvicorn.Server(_config(workspace, place))
        sys.setswitchinterval(_SWITCH)
        with _listen(place) as listener:
            print(_greeting(workspace, place, listener.getsockname()[1]), flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.run(sockets=[listener])
            print("Stopped. Every answer that was acknowledged is kept.", flush=True)


def server_config(workspace: Workspace, limits: Limits, seconds: float = _PATIENCE) -> uvicorn.Config:
    """How a workspace is served, but for where. `seconds`: patience with each connection."""

    class Protocol(PunctualProtocol):
        patience = seconds

    return uvicorn.Config(
        make_app(workspace, limits),
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,  # addresses of links are secrets
        server_header=False,
        proxy_headers=bool(limits.origin),  # who asks, by X-Forwarded-For
        forwarded_allow_ips=["127.0.0.1", "::1"],
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )


class PunctualProtocol(H11Protocol):
    """Gives a connection up whose other side takes longer than `patience` seconds: to send the head of a request, or
    what is left of one that was answered already, or to read what it asked for. uvicorn itself would wait for ever."""

    patience: float
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._calm()

    def _watch(self) -> None:
        ours = self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused
        if ours:
            self._calm()
        elif self._alarm is None:
            self._alarm = self.loop.call_later(self.patience, self.transport.abort)

    def _calm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def _config(workspace: Workspace, place: Place) -> uvicorn.Config:
    origin = place.origin
    names = (*Limits().names, place.host, *place.names, *([urlsplit(origin).hostname or ""] if origin else []))
    limits = Limits(names=names, secure=bool(origin) or place.certificate is not None, origin=origin)
    config = server_config(workspace, limits)
    config.ssl_certfile, config.ssl_keyfile = place.certificate, place.private_key
    try:
        config.load()
    except OSError as error:
        raise PrefloopError(
            f"TLS: {place.certificate} and {place.private_key} are no certificate and its key: {error}."
        ) from error
    return config


def _add_admin(accounts: Accounts, name: str, password: str) -> None:
    if accounts.find(name) is None:
        accounts.create(name, "admin", password=password, by=PROGRAM)
    else:
        accounts.set_role(name, "admin", by=PROGRAM)
        accounts.set_password(name, password, by=PROGRAM)


def _keep_to_ourselves(folder: Path, database: str) -> None:
    """Files that are made from here on are for this user alone, and uploads on the workspace's disk, not in memory."""
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder.absolute())
    keep_private(database_of(folder, database))


def _check_reach(workspace: Workspace, place: Place) -> None:
    guarded = any(account.may("admin") and account.has_password for account in workspace.accounts.all())
    if not place.local and not guarded:
        where, option = (place.public, "--public-url") if place.public else (place.host, "--host")
        raise PrefloopError(
            f"Other machines could reach {where}, and there is no admin with a password yet: prefloop serve"
            f" {option} {where} --add-admin NAME makes one."
        )


def _listen(place: Place) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    ports = range(FIRST_PORT, FIRST_PORT + _PORTS) if place.port is None else [place.port]
    for port in ports:
        try:
            made = socket.create_server((place.host, port), family=family, backlog=_CONNECTIONS)
            # asyncio does this for sockets of its own making alone; without, an answer waits 40 ms for a receipt.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            return made
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                reason = getattr(error, "strerror", None) or error
                raise PrefloopError(f"Cannot listen at {place.host} port {port}: {reason}.") from error
    taken = f"Port {ports[0]} is" if len(ports) == 1 else f"Ports {ports[0]} to {ports[-1]} are"
    raise PrefloopError(f"{taken} taken; stop what listens there, or choose another with --port.")


def _greeting(workspace: Workspace, place: Place, port: int) -> str:
    scheme = "http" if place.certificate is None else "https"
    shown = place.names[0] if place.names and not place.public else place.host
    address = f"{scheme}://{f'[{shown}]' if ':' in shown else shown}:{port}"
    where = f"{place.origin}, through a proxy to {address}" if place.public else address
    first = f"prefloop serves {workspace.folder.absolute()} at {where} (Ctrl-C stops it)."
    if place.local:
        return f"{first}\nOpen {address}/start/{workspace.invites.start()}\nThis link works once."
    bare = place.certificate is None and not place.public
    warning = "\nWithout TLS, passwords and labels can be read on their way: see --help." if bare else ""
    return f"{first}{warning}\nSign in at {place.origin or address}/login"
