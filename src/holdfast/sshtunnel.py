"""The names and arguments of the package sshtunnel, over holdfast's own tunnels: moving is one import line.

What ssh can do is handed to it as an option. What only paramiko can do (a password, a key that is an object) is
refused, and the error names the way out. docs/from-sshtunnel.md has a row for each argument.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import selectors
import shlex
import socket
import subprocess
import time
import warnings
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast import leasing
from holdfast import sshtunnel_arguments as arguments
from holdfast.control import check_host, check_options
from holdfast.errors import HoldfastError, LoginNeeded, UsageError
from holdfast.forward import Forward
from holdfast.sshtunnel_arguments import (
    SSH_CONFIG_FILE,
    ArgumentRefused,
    BaseSSHTunnelForwarderError,
    File,
    HandlerSSHTunnelForwarderError,
    Place,
)

if TYPE_CHECKING:
    from holdfast.openssh.settings import Settings

__all__ = [
    "DEFAULT_LOGLEVEL",
    "SSH_CONFIG_FILE",
    "SSH_TIMEOUT",
    "TRACE_LEVEL",
    "TUNNEL_TIMEOUT",
    "ArgumentRefused",
    "BaseSSHTunnelForwarderError",
    "HandlerSSHTunnelForwarderError",
    "SSHTunnelForwarder",
    "create_logger",
    "open_tunnel",
]

# Programs set these two. The second bounds what a check may take; the first has no use here.
SSH_TIMEOUT = 0.1
TUNNEL_TIMEOUT = 10.0
TRACE_LEVEL = 1
DEFAULT_LOGLEVEL = logging.ERROR
logging.addLevelName(TRACE_LEVEL, "TRACE")

# Seconds that ssh may take, besides four round trips, to hang up where nothing listens over there.
_HANG_UP = 0.3
# Seconds for `ssh -G`.
_SETTINGS = 10.0
# The states of a tunnel whose connection is up, whatever may be wrong with a forward, or comes when it is needed.
_CONNECTED = ("up", "no service", "port taken", "refused", "idle")
_NOT_STARTED = "Server is not started. Please .start() first!"

Value = TypeVar("Value")


def create_logger(
    logger: logging.Logger | None = None,
    loglevel: int | str | None = None,
    capture_warnings: bool = False,
    add_paramiko_handler: bool = True,  # noqa: ARG001 - there is no paramiko
) -> logging.Logger:
    """`logger`, else sshtunnel's, at `loglevel` (default ERROR); it prints to stderr if it has no handler yet."""
    logger = logger or logging.getLogger("sshtunnel.SSHTunnelForwarder")
    if not logger.handlers:
        loglevel = loglevel or DEFAULT_LOGLEVEL
        console = logging.StreamHandler()
        console.setFormatter(logging.Formatter("%(asctime)s| %(levelname)-8s| %(message)s"))
        logger.addHandler(console)
    if loglevel:
        logger.setLevel(loglevel)
        for handler in logger.handlers:
            handler.setLevel(loglevel)
    if capture_warnings:
        logging.captureWarnings(True)
    return logger


class SSHTunnelForwarder:
    """One or more local forwards to places that the gateway can reach, open from `start` to `stop`.

    The arguments are sshtunnel's, and mean the same. Raises ArgumentRefused, a ValueError, for those that ssh
    can't use. Without a local address it listens on this machine's loopback addresses only.
    """

    # Seconds that `start` may take.
    start_timeout = 60.0
    skip_tunnel_checkup = True
    # Programs set them. No thread of holdfast's keeps a program from ending.
    daemon_forward_servers = True
    daemon_transport = True

    _tunnel: leasing.Tunnel | None = None

    def __init__(
        self,
        ssh_address_or_host: Place | None = None,
        ssh_config_file: File | None = SSH_CONFIG_FILE,
        ssh_host_key: object = None,
        ssh_password: str | None = None,
        ssh_pkey: File | object = None,
        ssh_private_key_password: str | None = None,
        ssh_proxy: Any = None,
        ssh_proxy_enabled: bool = True,
        ssh_username: str | None = None,
        local_bind_address: Place | tuple[str] | None = None,
        local_bind_addresses: Sequence[Place | tuple[str]] | None = None,
        logger: logging.Logger | None = None,
        mute_exceptions: bool = False,
        remote_bind_address: Place | None = None,
        remote_bind_addresses: Sequence[Place] | None = None,
        set_keepalive: float = 5.0,
        threaded: bool = True,  # noqa: ARG002 - connections never wait for one another here
        compression: bool | None = None,
        allow_agent: bool = True,
        host_pkey_directories: Sequence[File] | None = None,
        *,
        ssh_port: int | str | None = None,
        **deprecated: Any,
    ) -> None:
        self.logger = logger or create_logger()
        for name in ("ssh_address", "ssh_host"):
            ssh_address_or_host = arguments.replaced(ssh_address_or_host, name, deprecated)
        ssh_pkey = arguments.replaced(ssh_pkey, "ssh_private_key", deprecated)
        raises = arguments.replaced(None, "raise_exception_if_any_forwarder_have_a_problem", deprecated)
        if deprecated:
            raise ArgumentRefused(f"Unknown arguments: {deprecated}")
        self._raises = not mute_exceptions if raises is None else bool(raises)
        self.set_keepalive = set_keepalive
        self.compression = compression
        self.ssh_proxy = ssh_proxy if ssh_proxy_enabled else None
        self.ssh_host_key = self.ssh_password = None
        self.ssh_pkeys = arguments.key_files(ssh_pkey, host_pkey_directories, self.logger)
        self.tunnel_is_up: dict[Place, bool] = {}
        self._remote_binds = arguments.places("remote", remote_bind_address, remote_bind_addresses)
        self._local_binds = arguments.places("local", local_bind_address, local_bind_addresses)
        if len(self._local_binds) > len(self._remote_binds):
            raise ArgumentRefused("Too many local bind addresses (local_bind_addresses > remote_bind_addresses)")
        self._local_binds += [("", 0)] * (len(self._remote_binds) - len(self._local_binds))
        self._host, port = arguments.host_and_port(ssh_address_or_host, ssh_port)
        self._options = (
            *arguments.config_options(ssh_config_file, self.logger),
            *(("-l", ssh_username) if ssh_username else ()),
            *(("-p", str(port)) if port else ()),
            *(word for key in self.ssh_pkeys for word in ("-i", key)),
            *arguments.proxy_options(ssh_proxy, self._host, port, enabled=ssh_proxy_enabled),
            *(() if compression is None else ("-o", f"Compression={'yes' if compression else 'no'}")),
            *(() if allow_agent else ("-o", "IdentityAgent=none")),
        )
        try:
            check_host(self._host)
            check_options(self._options)
            self._forwards = arguments.forwards(self._local_binds, self._remote_binds)
        except UsageError as error:
            raise ArgumentRefused(error.message, error.hint) from None
        # Those of the last `restart`, which may have failed: the next one is for the same ports.
        self._last: Sequence[Forward] = self._forwards
        arguments.check_secrets(
            password=ssh_password,
            passphrase=ssh_private_key_password,
            host_key=ssh_host_key,
            key=self.ssh_pkeys[0] if self.ssh_pkeys else "",
            host=self._host,
            up=self._up_command(),
        )

    def start(self) -> None:
        """Returns once every tunnel is proven. Raises BaseSSHTunnelForwarderError, unless exceptions are muted."""
        if self._tunnel is not None:
            self.logger.warning("Already started!")
            return
        self._open(self._forwards)

    def stop(self, force: bool = False) -> None:  # noqa: ARG002 - connections end with the link, not before
        """Gives the tunnels up; nothing listens for them any more when it returns."""
        if self._tunnel is None:
            self.logger.warning(_NOT_STARTED)
            return
        self.logger.info("Closing all open connections...")
        self._forgotten.detach()
        self._tunnel.close()
        self._tunnel = None
        self.tunnel_is_up = {}

    def close(self) -> None:
        """The same as `stop`."""
        self.stop()

    def restart(self) -> None:
        """Stops and starts again, on the same ports. An outage doesn't need it: the tunnel heals by itself."""
        if self._tunnel is not None:
            self._last = leasing.forwards_of(self._tunnel)
        self.stop()
        self._open(self._last)

    def check_tunnels(self) -> None:
        """Connects to each tunnel once, and notes in `tunnel_is_up` whether it leads anywhere."""
        if self._tunnel is None:
            return
        leading: set[Place] = set()
        try:
            status = self._tunnel.status(TUNNEL_TIMEOUT)
        except HoldfastError as error:
            self.logger.error("%s", error.message)
        else:
            if status["state"] in _CONNECTED:
                leading = _leading(self.local_bind_addresses, _HANG_UP + 4 * (status["rtt_ms"] or 0) / 1000)
        for local, remote in zip(self.local_bind_addresses, self._remote_binds, strict=True):
            self.tunnel_is_up[local] = local in leading
            self.logger.debug("Tunnel to %s is %s", remote, "UP" if local in leading else "DOWN")

    def local_is_up(self, target: Place) -> bool:
        """Whether the tunnel that listens at `target` leads anywhere."""
        self.check_tunnels()
        places = [target]
        if isinstance(target, tuple):  # its address by name, or one of all that it listens on
            names = ["127.0.0.1"] if target[0] == "localhost" else []
            places += [(host, target[1]) for host in (*names, "0.0.0.0", "::")]  # noqa: S104 - compared
        return any(self.tunnel_is_up.get(place) for place in places)

    @property
    def is_alive(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._tunnel is not None

    @property
    def is_active(self) -> bool:
        """Whether the connection to the gateway is up; False also in an outage, which ends by itself."""
        return self._tunnel is not None and self._tunnel.state in _CONNECTED

    @property
    def local_bind_addresses(self) -> list[Place]:
        """Where each tunnel listens, in the order of the remote addresses."""
        if self._tunnel is None:
            raise BaseSSHTunnelForwarderError(_NOT_STARTED)
        return [end.path or (end.host, end.port) for end in self._tunnel.endpoints]

    @property
    def local_bind_hosts(self) -> list[str]:
        return [place[0] for place in self.local_bind_addresses if isinstance(place, tuple)]

    @property
    def local_bind_ports(self) -> list[int]:
        return [place[1] for place in self.local_bind_addresses if isinstance(place, tuple)]

    @property
    def local_bind_address(self) -> Place:
        return self._only("addresses", self.local_bind_addresses)

    @property
    def local_bind_host(self) -> str:
        return self._only("hosts", self.local_bind_hosts)

    @property
    def local_bind_port(self) -> int:
        return self._only("ports", self.local_bind_ports)

    @property
    def tunnel_bindings(self) -> dict[Place, Place]:
        """Where each tunnel that is up leads to, and where it listens; nothing before `start`."""
        if self._tunnel is None:
            return {}
        pairs = zip(self._remote_binds, self.local_bind_addresses, strict=True)
        return {remote: local for remote, local in pairs if self.tunnel_is_up[local]}

    @property
    def ssh_host(self) -> str:
        """The gateway's name or address, as ssh's configuration says."""
        return self._settings.get("hostname") or self._host

    @property
    def ssh_port(self) -> int:
        return int(self._settings.get("port") or 22)

    @property
    def ssh_username(self) -> str:
        return self._settings.get("user")

    @functools.cached_property
    def _settings(self) -> Settings:
        """What ssh would use; nothing where it can't say."""
        from holdfast.openssh.command import show_settings
        from holdfast.openssh.settings import Settings

        words, shown = show_settings(self._host, self._options), ""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            shown = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SETTINGS, check=False
            ).stdout
        return Settings(shown)

    def _open(self, forwards: Sequence[Forward]) -> None:
        for exposed in (forward.listen for forward in forwards if not forward.listen.is_loopback):
            self.logger.warning("Other machines can connect to %s", exposed)
        try:
            self._tunnel = leasing.tunnel(
                self._host,
                *map(arguments.specification, forwards),
                options=self._options,
                expose=True,  # an address that is none of loopback's was written down by the program's author
                timeout=self.start_timeout,
            )
        except LoginNeeded as error:
            self._fail(BaseSSHTunnelForwarderError(error.message, f"log in once: {self._up_command()}"), error)
            return
        except HoldfastError as error:
            self._fail(BaseSSHTunnelForwarderError(error.message, error.hint), error)
            return
        self._forgotten = weakref.finalize(self, _close_forgotten, self._tunnel, self.logger)
        self._forgotten.atexit = False  # the lease ends with the program anyway
        for local, remote in zip(self.local_bind_addresses, self._remote_binds, strict=True):
            self.logger.info("Opening tunnel: %s <> %s", local, remote)
        self.tunnel_is_up = dict.fromkeys(self.local_bind_addresses, True)
        if not self.skip_tunnel_checkup:
            self._check_leads_somewhere()

    def _check_leads_somewhere(self) -> None:
        self.check_tunnels()
        if any(self.tunnel_is_up.values()):
            return
        self.stop()
        dead = ", ".join(str(forward.target) for forward in self._forwards)
        told = f"An error occurred while opening tunnels: nothing listens at {dead}"
        self._fail(HandlerSSHTunnelForwarderError(told, f"start it, as {self._host} sees it"))

    def _fail(self, error: BaseSSHTunnelForwarderError, cause: HoldfastError | None = None) -> None:
        if self._raises:
            raise error from cause
        self.logger.error("%s", error)

    def _only(self, several: str, found: list[Value]) -> Value:
        if len(self._remote_binds) != 1 or not found:
            raise BaseSSHTunnelForwarderError(f"Use .local_bind_{several} property for more than one tunnel")
        return found[0]

    def _up_command(self) -> str:
        """What a person runs to log in, so that this finds the tunnel there."""
        specifications = map(arguments.specification, self._forwards)
        return shlex.join(["holdfast", "up", self._host, *self._options, *specifications])

    def __enter__(self) -> SSHTunnelForwarder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._tunnel is not None:
            self.stop(force=True)

    def __repr__(self) -> str:
        forwards = ", ".join(map(str, self._forwards))
        return f"<SSHTunnelForwarder {self._host}: {forwards}, {'' if self.is_alive else 'not '}started>"


def open_tunnel(
    *args: Any,
    debug_level: int | str | None = None,
    skip_tunnel_checkup: bool = True,
    block_on_close: bool | None = None,
    **kwargs: Any,
) -> SSHTunnelForwarder:
    """An SSHTunnelForwarder with these arguments, not started. It logs at `debug_level`."""
    if block_on_close:
        warnings.warn("'block_on_close' is DEPRECATED, and has no effect", DeprecationWarning, stacklevel=2)
    kwargs["logger"] = kwargs.get("logger") or create_logger(loglevel=debug_level)
    forwarder = SSHTunnelForwarder(*args, **kwargs)
    forwarder.skip_tunnel_checkup = skip_tunnel_checkup
    return forwarder


def _close_forgotten(tunnel: leasing.Tunnel, logger: logging.Logger) -> None:
    """For a forwarder that nobody has any more."""
    logger.warning("It looks like you didn't call the .stop() of the forwarder over %r", tunnel)
    tunnel.close()


def _leading(places: Sequence[Place], patience: float) -> set[Place]:
    """Those that let a connection live for so many seconds, or say something: ssh ends what leads nowhere."""
    deadline = time.monotonic() + min(patience, TUNNEL_TIMEOUT)
    with contextlib.ExitStack() as connections:
        waiting = connections.enter_context(selectors.DefaultSelector())  # select() takes no descriptor above 1023
        for place in places:
            with contextlib.suppress(OSError):
                connected = connections.enter_context(_connect(place))
                waiting.register(connected, selectors.EVENT_READ, (connected, place))
        leading: set[Place] = {key.data[1] for key in waiting.get_map().values()}
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                connected, place = key.data
                waiting.unregister(connected)
                if _has_ended(connected):
                    leading.discard(place)
    return leading


def _connect(place: Place) -> socket.socket:
    if isinstance(place, tuple):
        return socket.create_connection(place, TUNNEL_TIMEOUT)
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(TUNNEL_TIMEOUT)
    try:
        connected.connect(place)
    except OSError:
        connected.close()
        raise
    return connected


def _has_ended(connected: socket.socket) -> bool:
    try:
        return not connected.recv(1)
    except OSError:
        return True
