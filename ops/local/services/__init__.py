"""The embedded servers: real PostgreSQL, Apache Kafka and MongoDB, started by one command, without Docker.

    services.up()            start what does not run yet, return the addresses
    services.endpoints()     the addresses of those that run
    services.connections()   the environment's addresses, completed with those
    services.status()        check each of them
    services.down()          stop them; the data stays

Data, logs and process ids are below `CRM_REPLAY_HOME` (default `.crm-replay`), downloaded programs below
`CRM_REPLAY_CACHE` (default `~/.cache/crm-replay`). A server whose address is in the environment is left to the user.
"""

from ops.local.services.layout import Extra, Service, ServiceSettings
from ops.local.services.stack import Endpoints, ServiceStatus, connections, down, endpoints, status, up

__all__ = [
    "Endpoints",
    "Extra",
    "Service",
    "ServiceSettings",
    "ServiceStatus",
    "connections",
    "down",
    "endpoints",
    "status",
    "up",
]
