"""A command's environment on this host: addresses of servers, and the directory for logs and data.

Production names its servers in the environment. On a developer's machine the embedded ones fill the gaps, if
`ops.local` is installed. The image does not have it: no other module of a production command imports it.
"""

from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from schemas.process.connections import Connections
from schemas.process.environment import Settings


class HostSettings(Settings):
    """Where a command writes; `ops.local.services` reads the same variable for its servers' data."""

    home: Path = Field(Path(".crm-replay"), description="logs and data of the processes on this host")


def home() -> Path:
    """Return `CRM_REPLAY_HOME`, else `.crm-replay` in the current directory, as an absolute path. Creates nothing."""
    return HostSettings().home.expanduser().absolute()


def connections() -> Connections:
    """Return the settings of the environment; addresses that it lacks are those of the running embedded servers."""
    given = Connections()
    if given.kafka_bootstrap_servers and given.crm_audit_database_url and given.mongodb_url:
        return given  # nothing to fill in, and importing the embedded servers takes a while
    if not _has_embedded_servers():
        return given
    from ops.local import services

    found = services.endpoints()
    return given if found is None else found.fill(given)


def embedded_addresses() -> dict[str, str]:
    """Return variable -> address of the embedded servers that run on this host; none in the image."""
    if not _has_embedded_servers():
        return {}
    from ops.local import services

    found = services.endpoints()
    return {} if found is None else found.environment()


def _has_embedded_servers() -> bool:
    return find_spec("ops.local") is not None
