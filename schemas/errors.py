"""Exceptions, with the facts that an operator needs first. An ordinary outcome is a return value, never one of these.

    ReplayError                       the work went wrong, or a server refused
    ├── ServiceUnreachableError       an outage: the same call can succeed later
    ├── BadInputError                 the call, a file or the configuration is wrong: it cannot
    │   ├── MappingError              ... the source mapping
    │   └── UnreadableTopicError      ... a record that has to be read
    ├── UndecodableRecordError        bytes that are no record; its holder dead-letters it
    │   └── UnknownSchemaError        ... of a schema that is not known here
    └── CursorDidNotAdvanceError      a defect of the reader

Packages add their own below these. Which of them a client library's error is: `schemas.process.client_errors`.
"""

from schemas.secrets import without_secrets
from schemas.vocabulary import ExitCode


class ReplayError(Exception):
    """Something the operator has to act on: `what` went wrong and what `to_do` about it."""

    exit_code = ExitCode.FAILED

    def __init__(self, what: str, to_do: str = "") -> None:
        """One line each, without a final full stop. Of an address in `what`, users and passwords are left out."""
        what = without_secrets(what)
        super().__init__(f"{what}: {to_do}" if to_do else what)
        self.what = what
        self.to_do = to_do


class BadInputError(ReplayError):
    """The call, a file or a server's address is wrong; nothing has been changed."""

    exit_code = ExitCode.BAD_INPUT


class ServiceUnreachableError(ReplayError):
    """PostgreSQL, Kafka, MongoDB or an HTTP service does not answer, or is in a state that passes."""

    exit_code = ExitCode.BAD_INPUT  # of a command: the address may be wrong; see `worker_exit_code`


def worker_exit_code(error: ReplayError) -> int:
    """Return the exit code of a worker that ends with this error.

    A server that does not respond is worth a restart: the process that started the worker has reached it before.
    """
    return ExitCode.FAILED if isinstance(error, ServiceUnreachableError) else error.exit_code


class MappingError(BadInputError):
    """The source mapping file is not usable; the text names the file, the key and the line."""


class CursorDidNotAdvanceError(ReplayError):
    """The snapshot would read the same page indefinitely."""

    def __init__(self, cursor: int, page_end: int) -> None:
        """`cursor` is where the page began, `page_end` the id up to which it reports to have scanned."""
        super().__init__(
            f"the cursor did not advance past audit id {cursor} (the page ended at {page_end})",
            "this is a defect of the reader; the cursor is kept, nothing is lost",
        )


class UndecodableRecordError(ReplayError):
    """Bytes from a topic are not a record of a schema we know. A caller that holds the record dead-letters it."""


class UnknownSchemaError(UndecodableRecordError):
    """A value's frame names a schema that cannot be looked up here: a matter of configuration, and not of the value."""


class UnreadableTopicError(BadInputError):
    """A record on a topic of ours cannot be decoded, and what depends on it would be decided wrongly without it."""

    @classmethod
    def at(
        cls, topic: str, partition: int, offset: int, error: UndecodableRecordError, to_do: str = ""
    ) -> "UnreadableTopicError":
        """Return it for the record at a place; `to_do` where the error itself has none."""
        what = f"{topic}, partition {partition}, offset {offset} cannot be decoded: {error.what}"
        return cls(what, error.to_do or to_do)
