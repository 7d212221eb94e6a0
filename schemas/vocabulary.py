"""Closed vocabularies. Their values are stored, sent and graphed: add values, never rename one."""

import re
from enum import IntEnum, StrEnum


class SkipReason(StrEnum):
    """Why a source row becomes no activity log, on purpose. The first rule that applies decides."""

    UNMAPPED_ACTION_TYPE = "unmapped_action_type"  # no category for this type, action and columns
    CONTACT_NOT_FOUND = "contact_not_found"  # no CDP contact has any of the row's CRM person ids
    POST_SYNC_LIVE_FEED = "post_sync_live_feed"  # from the sync instant on, the live feed owns it
    PRE_SYNC_REPLAY = "pre_sync_replay"  # before the sync instant, the replay owns it
    DUPLICATE_EXTERNAL_ID = "duplicate_external_id"  # the unique index has it already


class DeadLetterCause(StrEnum):
    """Why a record could not be understood or not be stored."""

    UNDECODABLE_RECORD = "undecodable_record"  # not Avro of a schema we know
    UNDECODABLE_CHANGES = "undecodable_changes"  # audited_changes is unreadable as a whole
    ROW_TOO_LARGE = "row_too_large"  # a source row over the replay topic's max.message.bytes; its beginning is kept
    WRONG_ACCOUNT = "wrong_account"  # a record of another account in this account's topic
    TRANSFORM_FAILED = "transform_failed"  # a rule raised: a defect of ours
    DOCUMENT_TOO_LARGE = "document_too_large"  # over MongoDB's 16 MiB
    WRITE_REFUSED = "write_refused"  # MongoDB refused the document twice


class ChangeRefusal(StrEnum):
    """Why a change event of the CRM's database becomes no audit event."""

    AUDIT_UPDATED = "audit_updated"  # history is append-only: what was recorded stays
    AUDIT_DELETED = "audit_deleted"
    AUDITS_TRUNCATED = "audits_truncated"
    OTHER_TABLE = "other_table"  # the row is of a table that the source mapping does not name
    UNKNOWN_ACCOUNT = "unknown_account"  # no query or header names the row's account, or not yet
    UNREADABLE_CHANGE = "unreadable_change"  # no change event, or not of an audits table

    @property
    def loses_a_row(self) -> bool:
        """Whether there may be an audit row in the record, which has to be kept as a dead letter."""
        return self not in (self.AUDIT_UPDATED, self.AUDIT_DELETED, self.AUDITS_TRUNCATED)


class JobStatus(StrEnum):
    """State of a replay job; `ops.jobs.jobs` has the table of transitions."""

    IN_PROGRESS = "in_progress"
    HALTED = "halted"
    COMPLETED = "completed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


class ActorKind(StrEnum):
    """Who did it, as the activity log names it."""

    USER = "user"
    DELETED_USER = "deleted_user"
    SYSTEM = "system"


class FellBack(StrEnum):
    """Why an actor with an id or a name is the deleted user all the same. Graphed: add values, never rename one."""

    DELETED = "deleted"  # soft-deleted in the CRM
    NO_SSO_ID = "no_sso_id"  # active, and the directory has no user of this email or did not respond
    NO_EMAIL = "no_email"  # active, and without an email for the directory
    NO_USER = "no_user"  # the CRM has no row with this id
    OTHER_TYPE = "other_type"  # the id is that of something else than a user
    USERNAME_ONLY = "username_only"  # no id at all


class ExitCode(IntEnum):
    """How a command or a worker ends. Scripts and supervisors rely on it: no code changes its meaning.

    A worker is started again after FAILED, and not after what another start would end with too.
    """

    DONE = 0  # also a worker that was stopped, except a producer
    FAILED = 1  # the work went wrong: halted, out of balance, an outage, a defect
    BAD_INPUT = 2  # the call, a file or an address is wrong; nothing has been changed
    HALTED = 3  # of a sink: the job is halted, offsets are kept
    TOPIC_REPLACED = 4  # of a worker or a live feed: its topic is another one than the one that was consumed
    STOPPED = 5  # of a producer: stopped before the end, the cursor is kept
    ORPHANED = 6  # of a producer's reader: its parent is gone
    STALLED = 7  # of a worker: it no longer moved; what it had not committed is delivered again
    INTERRUPTED = 130  # of a command, as shells have it: 128 + SIGINT; can be resumed


class MarkerEdge(StrEnum):
    """Whether a marker is a run's first or last record on a partition."""

    BEGIN = "begin"
    END = "end"


REASON = re.compile(r"[a-z0-9_]{1,64}")
UNREADABLE_REASON = "unreadable_reason"


def countable(reason: str) -> str:
    """Return a skip's reason or a failure's cause if it can name a count, one of a newer release included."""
    return reason if REASON.fullmatch(reason) else UNREADABLE_REASON
