"""`crm-replay control`: the control plane on uvicorn, until SIGTERM or SIGINT."""

import os
import signal
import socket
import ssl
import sys
from typing import Any

import uvicorn

from ops.control.app import ControlApp
from ops.control.backend import Backend
from ops.control.settings import ControlSettings
from schemas.errors import BadInputError, ReplayError
from schemas.process import logs
from schemas.process.connections import Connections

KEEP_ALIVE_S = 75  # longer than the 60 s after which common gateways close an idle connection
BACKLOG = 512
REQUESTS_AT_ONCE_MAX = 1_000  # connections and requests; more get 503 from uvicorn
HEADER_BYTES_MAX = 64 * 1024


class ControlServer(uvicorn.Server):
    """uvicorn that stops the application first: an event stream never ends by itself."""

    def __init__(self, config: uvicorn.Config, app: ControlApp) -> None:
        """`app` is also the one in `config`."""
        super().__init__(config)
        self._control_app = app

    async def startup(self, sockets: Any = None) -> None:
        """Start to serve."""
        # asyncio does this only for sockets it makes itself. Without it each answer's body waits 40 ms for the client
        # to acknowledge the headers (Nagle's algorithm against delayed acknowledgements). Connections inherit it.
        for bound in sockets or ():
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await super().startup(sockets)

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop: no new requests; running ones end, within the time of the settings."""
        self._control_app.stop()
        await super().shutdown(sockets)


def server_of(settings: ControlSettings, connections: Connections) -> ControlServer:
    """Return the server, ready to run. Raises BadInputError for a certificate or an address that is no use."""
    app = ControlApp(settings, Backend(settings, connections))
    tls: dict[str, Any] = {}
    if settings.tls_certificate_path:
        tls = {"ssl_certfile": settings.tls_certificate_path, "ssl_keyfile": settings.tls_key_path}
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # edge.py writes our own, without addresses and queries
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        limit_concurrency=REQUESTS_AT_ONCE_MAX,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        **tls,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise BadInputError(f"the TLS certificate or key cannot be used ({error})", "name PEM files") from error
    return ControlServer(config, app)


def serve(connections: Connections, host: str = "", port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT; what is given here comes before CRM_CONTROL_* in the environment.

    Raises BadInputError for settings that are no use, or an address that is taken.
    """
    settings = ControlSettings.load(host=host or None, port=port)
    logs.configure("control", environ={**os.environ, logs.LEVEL_VARIABLE: settings.log_level.upper()})
    server = server_of(settings, connections)
    scheme = "https" if settings.tls_certificate_path else "http"
    try:
        bound = server.config.bind_socket()
    except SystemExit:
        raise BadInputError(
            f"{settings.host}:{settings.port} cannot be listened on", "is it in use? set CRM_CONTROL_PORT"
        ) from None
    bound_host, bound_port = bound.getsockname()[:2]
    print(f"control plane at {scheme}://{bound_host}:{bound_port}/console/", file=sys.stderr, flush=True)  # noqa: T201
    # uvicorn stops at SIGTERM and then sends it to itself again, for an earlier handler. A stop
    # on request is no failure, so the exit code is 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run(sockets=[bound])


def main() -> int:
    """Run it as a process of its own: `python -m ops.control`; returns the exit code."""
    try:
        serve(Connections())
    except ReplayError as error:
        print(f"crm-replay control: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0
