"""A connection to a PostgreSQL for test data, whose errors an operator can read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from schemas.errors import BadInputError, ServiceUnreachableError

CONNECT_TIMEOUT_S = 10


@contextmanager
def connected(dsn: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection: what was done is committed at the end, or undone when an exception leaves the block.

    Raises ServiceUnreachableError where nobody answers (any more), BadInputError where the server refuses.
    """
    try:
        with psycopg.connect(dsn, autocommit=autocommit, connect_timeout=CONNECT_TIMEOUT_S) as db:
            yield db
    except psycopg.OperationalError as error:
        raise ServiceUnreachableError(
            f"PostgreSQL does not answer ({_line(error)})",
            "check CRM_AUDIT_DATABASE_URL or --dsn, or start the embedded servers: crm-replay services up",
        ) from error
    except psycopg.Error as error:
        raise BadInputError(f"PostgreSQL refused ({_line(error)})", "nothing was changed; mend that first") from error


def _line(error: psycopg.Error) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
