"""Every metric of the data path by name, kind and labels: what dashboards, alert rules and docs/reference rely on.

Pure. A process counts in plain numbers; they get their public names here, at each scrape, so that counting costs the
same without one. Labels are bounded: `reason`, `cause`, `case` and `outcome` by closed enums, `table` and `role` by the
code, `account` by the one replay of a process, or the `ACCOUNTS_MAX` accounts that changed last.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "crm_replay_"
ACCOUNTS_MAX = 500  # time series of one process per metric, about


class Kind(StrEnum):
    """The Prometheus type of a metric."""

    COUNTER = "counter"  # only rises; its name ends in _total
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: `name` without prefix, `help` for `# HELP`, the names of its labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name in Prometheus."""
        return PREFIX + self.name


@dataclass(frozen=True, slots=True)
class Value:
    """The present value of a metric, for one combination of its labels."""

    metric: str  # a Metric's name
    value: float
    labels: Mapping[str, str] | None = None


def _counter(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, help_text, labels)


def _gauge(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, help_text, labels)


REBALANCES = _counter("rebalances_total", "Assignments of partitions")
PRODUCER = (
    _counter("rows_read_total", "Source rows read by the snapshot"),
    _counter("rows_published_total", "Source rows that Kafka has confirmed"),
    _counter("rows_late_total", "Rows found when the gaps were read again"),
    _counter("rows_unpublishable_total", "Rows published as dead letters: too large for the topic"),
    _counter("pages_total", "Pages read, published and saved"),
    _counter("page_read_seconds_total", "Time in the source's page queries"),
    _counter("throttle_wait_seconds_total", "Time waited to limit the load on the source"),
    _gauge("cursor_audit_id", "Highest audit id that is published and saved, of all ranges"),
    _gauge("cursor_saved_timestamp_seconds", "When a cursor was saved last"),
    _gauge("top_audit_id", "Audit id at which the snapshot ends"),
)
PROCESSORS = (
    _counter("records_processed_total", "Records taken from the input topic"),
    _counter("outcomes_total", "Outcomes: log, skip or dead_letter, with the reason or cause", "outcome", "reason"),
    _counter("rows_by_plain_way_total", "Rows that the fast path does not handle; all rows where it is absent"),
    _counter("records_republished_total", "Records dropped because the snapshot had published them before"),
    _counter("runs_total", "Batches handled"),
    _counter("transform_seconds_total", "Time in decoding, rules and encoding"),
    _counter("delivery_wait_seconds_total", "Time waited for confirmations of outcomes"),
    REBALANCES,
    _counter("rules_total", "Events in the rules besides the outcomes: values refused, id sets missing …", "what"),
    _counter("actors_fell_back_total", "Actors that became «[Deleted CRM User]», by case", "case"),
    _counter("directory_total", "User directory: requests, answers by kind, circuit openings", "what"),
    _gauge("table_entries", "Entries of a reference table", "table"),
    _gauge("table_load_seconds", "How long the tables took to load"),
    _counter("table_rejects_total", "Entries of reference topics that could not be used"),
)
LIVE = (
    _counter(
        "live_contacts_total", "Persons queried, batches held, contacts that came late or cannot be decoded", "what"
    ),
    _counter("changes_refused_total", "Change events that are not audit events", "reason"),
)
SINK = (
    _counter("batches_written_total", "Bulk writes answered"),
    _counter("records_consumed_total", "Outcome records in those batches"),
    _counter("bytes_consumed_total", "Bytes in those batches"),
    _counter("write_seconds_total", "Time in bulk writes"),
    _counter("documents_total", "Documents sent: inserted, redelivered, duplicate or failed", "outcome"),
    _counter("dead_letters_total", "Dead letters delivered"),
    _counter("records_repeated_total", "Records that had been counted before"),
    _counter("records_undecodable_total", "Outcomes that could not be decoded"),
    _counter("progress_races_total", "Races for a progress document lost to another sink"),
    _counter("retries_total", "Effects retried because a server had not answered"),
    REBALANCES,
)
JOBS = (
    _gauge("job_state", "1 for the present status of the account's last job", "account", "status"),
    _gauge("job_progress_ratio", "Part of the source rows that has ended in a bin, 0 to 1", "account"),
    _gauge("job_accuracy_ratio", "Documents per row that should have become one, 0 to 1; after validation", "account"),
    _gauge(
        "job_documents_missing", "Documents expected by the bins and missing in MongoDB at the last count", "account"
    ),
    _gauge("job_rows", "Source rows of the account's last job by bin", "account", "bin"),
    _gauge("job_rows_of", "Rows in those bins: attempted, duplicate, repaired, late", "account", "what"),
    _gauge("job_actors_fell_back", "Logs of the last job whose actor is «[Deleted CRM User]»", "account"),
    _gauge("job_skipped_rows", "Skipped rows by reason", "account", "reason"),
    _gauge("job_failed_rows", "Failed rows by cause", "account", "cause"),
    _gauge("job_updated_timestamp_seconds", "When the job's counts changed last", "account"),
    _gauge("job_heartbeat_timestamp_seconds", "Last heartbeat of the job's runner", "account"),
    _gauge(
        "lag_records", "Records of the replay topic that have yet to pass a stage, of running jobs", "account", "stage"
    ),
    _gauge("dead_letters_waiting", "Dead letters whose rows have not been repaired since", "account"),
)
ENRICHMENTS = (
    _gauge("enrichment_unfinished", "1 until the account's last enrichment is done", "account"),
    _gauge("enrichment_progress_ratio", "Part of its source rows that has been processed, 0 to 1", "account"),
    _gauge("enrichment_rows", "Association rows of the account's last enrichment by outcome", "account", "outcome"),
    _gauge("enrichment_deleted_references", "Those of them that name a deleted record", "account"),
    _gauge("enrichment_updated_timestamp_seconds", "When the account's last enrichment reported progress", "account"),
)
RUNNER = (_gauge("worker_up", "1 if the runner could scrape its worker, else 0", "role", "worker", "account"),)
PROCESS = (
    _gauge("process_info", "1; which process of which job and run this is", "role", "account", "job_id", "run"),
    _gauge("last_turn_timestamp_seconds", "When the worker's loop last turned; waiting for a server counts"),
    _gauge("last_progress_timestamp_seconds", "When the worker last handled records, or started"),
    _gauge("hot_paths_compiled", "1 if the process runs the compiled hot paths, 0 if they are interpreted"),
)

METRICS: Mapping[str, Metric] = {
    metric.name: metric for metric in (*PRODUCER, *PROCESSORS, *LIVE, *SINK, *JOBS, *ENRICHMENTS, *RUNNER, *PROCESS)
}


def labelled(name: str, label: str, counts: Mapping[str, float]) -> Iterable[Value]:
    """Return one value per count, by that label."""
    return [Value(name, count, {label: key}) for key, count in counts.items()]
