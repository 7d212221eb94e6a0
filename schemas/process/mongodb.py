"""Connections to the customer data platform's MongoDB, the same in every process."""

from typing import Any

import pymongo
import pymongo.database
from pymongo.collection import Collection
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from schemas.collections import JOBS
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.process.client_errors import kind_of
from schemas.process.connections import Connections
from schemas.secrets import about

Document = dict[str, Any]
Documents = Collection[Document]
Database = pymongo.database.Database[Document]

SERVER_SELECTION_TIMEOUT_MS = 5_000
SOCKET_TIMEOUT_MS = 120_000  # longer than any batch takes; closes a connection that hangs


def open_database(connections: Connections, app_name: str = "crm-replay") -> Database:
    """Return the database, not yet connected. Writes wait for the majority's journals unless the URL sets otherwise.

    For processes that are useful during an outage, too. Raises BadInputError for an invalid URL.
    """
    connections.require("mongodb_url")
    try:
        client: pymongo.MongoClient[Document] = pymongo.MongoClient(
            connections.mongodb_url,
            tz_aware=True,
            appname=app_name,
            serverSelectionTimeoutMS=SERVER_SELECTION_TIMEOUT_MS,
            connectTimeoutMS=SERVER_SELECTION_TIMEOUT_MS,
            socketTimeoutMS=SOCKET_TIMEOUT_MS,
        )
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise BadInputError(
            f"MONGODB_URL is not usable ({about(error, connections.mongodb_url)})", "mongodb://host:port"
        ) from error
    concern = client.write_concern if client.write_concern.document else WriteConcern("majority", j=True)
    return client.get_database(connections.mongodb_database, write_concern=concern)


def connect(connections: Connections, app_name: str = "crm-replay") -> Database:
    """Return the database like `open_database`, after a first read.

    Raises BadInputError for an invalid URL or credentials, ServiceUnreachableError if no server answers.
    """
    database = open_database(connections, app_name)
    client = database.client
    try:
        # A ping needs no authentication; a read does.
        database[JOBS].find_one({}, {"_id": 1})
    except OperationFailure as error:
        client.close()
        if kind_of(error) is ServiceUnreachableError:
            raise ServiceUnreachableError(
                f"MongoDB does not answer (code {error.code})",
                "check that every shard has a reachable primary",
            ) from error
        raise BadInputError(
            f"MongoDB refuses access (code {error.code})", "check the user and password in MONGODB_URL"
        ) from error
    except PyMongoError as error:
        client.close()
        raise ServiceUnreachableError(
            f"MongoDB does not answer ({type(error).__name__})",
            "check MONGODB_URL, or start the embedded servers: crm-replay services up",
        ) from error
    return database
