"""Separate databases on the servers, for the demo and the benchmark.

Servers that the environment names are a CRM's and a platform's: nothing is created on them unless requested. What
is loaded and deleted here lives on the embedded servers, in a PostgreSQL and a MongoDB database of the sandbox's name,
and in topics of the accounts made for it.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from confluent_kafka import KafkaException
from psycopg import sql
from psycopg.conninfo import make_conninfo

from ops.kafka import admin as kafka_admin
from ops.local import services
from schemas.collections import ACTIVITY_LOGS, JOBS
from schemas.errors import ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.environment import FILE_SUFFIX
from schemas.process.mongodb import connect
from schemas.topics import AccountTopics


@contextmanager
def servers(say: Any, *, of_environment: bool = False) -> Iterator[Connections]:
    """Give the servers' addresses; starts the embedded ones that are missing, and stops those again that it started.

    Inside, this process and its children have no server of the environment, unless `of_environment` is set.
    """
    with contextlib.nullcontext() if of_environment else _without_the_environments(say):
        before = services.endpoints() or services.Endpoints()
        services.up(say=say)
        try:
            yield services.connections()
        finally:
            if not before.environment():
                services.down(say=say)


@contextmanager
def _without_the_environments(say: Any) -> Iterator[None]:
    """Take every variable that names a server, or how to log in there, out of the environment for a while."""
    own = (services.endpoints() or services.Endpoints()).environment()
    names = [*(name.upper() for name in Connections.model_fields), *(extra.variable for extra in services.Extra)]
    taken = {
        name: os.environ.pop(name) for name in (*names, *(name + FILE_SUFFIX for name in names)) if name in os.environ
    }
    if ignored := [name for name, value in taken.items() if value and own.get(name) != value]:
        say(f"not used, nothing is created on your servers: {', '.join(ignored)}")
    try:
        yield
    finally:
        os.environ.update(taken)


def own_databases(connections: Connections, name: str) -> Connections:
    """Return the connections with PostgreSQL and MongoDB databases called `name`; the former is created if missing."""
    dsn = connections.crm_audit_database_url
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as db:
            if db.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                db.execute(
                    sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(sql.Identifier(name))
                )
    except psycopg.OperationalError as error:
        raise ServiceUnreachableError(
            f"PostgreSQL refuses to create the database {name} ({str(error).strip().splitlines()[0]})",
            "check CRM_AUDIT_DATABASE_URL, or unset it for the embedded server",
        ) from error
    own = make_conninfo(dsn, dbname=name)
    return connections.model_copy(update={"crm_audit_database_url": own, "mongodb_database": name})


def forget(connections: Connections, account: str) -> None:
    """Delete the account's topics, groups and documents, so that its next run is its first."""
    topics = AccountTopics.of(account)
    admin = kafka_admin.client(connections.kafka())
    existing = admin.list_topics(timeout=kafka_admin.ANSWER_TIMEOUT_S).topics
    names = (topics.replay, topics.outcomes, topics.dead_letters, *topics.references)
    if doomed := [name for name in names if name in existing]:
        for future in admin.delete_topics(doomed, operation_timeout=kafka_admin.ANSWER_TIMEOUT_S).values():
            future.result()
    for future in admin.delete_consumer_groups([topics.processors_group, topics.sink_group]).values():
        with contextlib.suppress(KafkaException):  # there is none, or its last member is still being given up
            future.result()
    database = connect(connections)
    try:
        for collection in (ACTIVITY_LOGS, JOBS):
            database[collection].delete_many({"company_sso_id": account})
    finally:
        database.client.close()
