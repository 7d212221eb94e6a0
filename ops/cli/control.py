"""`crm-replay control`."""

from typing import Annotated

import typer

from ops.cli import host as this_host
from ops.control.server import serve


def control(
    host: Annotated[
        str, typer.Option(help="Address to listen on [CRM_CONTROL_HOST, 127.0.0.1].", show_default=False)
    ] = "",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: a free one [CRM_CONTROL_PORT, 8090].", show_default=False)
    ] = None,
) -> None:
    """Serve jobs, status and roll back over HTTP, and the operator's console; needs CRM_CONTROL_BASIC_CREDENTIALS."""
    serve(this_host.connections(), host, port)
