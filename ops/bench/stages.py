"""`crm-replay bench`: the rate of each stage alone and of the whole, on generated rows, as JSON lines.

Every stage is the real process on the real servers, with topics and collections of its own:

- `producer`: PostgreSQL -> replay topic, until every row and end marker is confirmed;
- `processor`: the replay topic the producer has filled -> outcomes, full transformation;
- `sink`: the outcomes the processor has made -> MongoDB, an empty collection;
- `table_load`: a compacted topic of contacts -> a worker's table;
- `transform`: the rules alone, in this process, no server;
- `end_to_end`: all of it at once, from the first process's start to the last end marker at the sink;
- `enrich`: the ids and names of its association logs, removed and added again, in associations a second;
- `verify`: the check of the result of `end_to_end`, and its cost as a share of the replay's; then `verify_again`, the
  same check of unchanged data;
- `limits`: the maximum rates of servers and clients on the same rows (`limits.py`);
- `accounts`: many small accounts, by a runner, one after another and ten at once (`accounts.py`); only if named;
- `live`: how long after its cause the live feed's document can be read (`live.py`); only if named.

`--versus` runs another pipeline on the same rows (`versus.py`).

`rows_per_s` is rows over wall time, process start included (of `end_to_end` their libraries are loaded by then, as in
a real run: once, and not counted); `steady_rows_per_s` the slope between 20 and 90 % of the rows, the rate of a longer
run. Processes are started for every measurement, servers only for the first: `warm` tells them apart. Compare
within one run on one machine, by ratios.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from ops.bench import accounts as bench_accounts
from ops.bench import limits, live, transform
from ops.bench import versus as bench_versus
from ops.bench.measure import Cost, Meter, workers_of
from ops.bench.versus import Peer
from ops.checks.verify import VerifyOptions, verify_account
from ops.enrich.run import EnrichOptions, enrich_account
from ops.jobs import migrations
from ops.jobs.jobs import Job
from ops.jobs.store import JobStore, NewJob
from ops.kafka import admin as kafka_admin
from ops.local import sandbox, services
from ops.local.generator import GENERATED_MAPPING, Plan, generate_crm
from ops.local.sample.contacts import seed_contacts
from ops.progress import PlainView, generating
from ops.runner.options import RunOptions
from ops.runner.processes import child_environment, python_module
from ops.runner.replay import run_account
from producer import markers, references
from producer.survey import survey
from schemas.collections import ACTIVITY_LOGS
from schemas.compiled import hot_paths
from schemas.errors import BadInputError, ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import connect
from schemas.process.registry import codec_for
from schemas.records import Contact
from schemas.source.mapping import load
from schemas.topics import AccountTopics
from sink.match_key import Outcome

NAME = "crm_replay_bench"
STAGES = ("transform", "table_load", "producer", "processor", "sink", "end_to_end", "enrich", "verify", "limits")
NAMED_ONLY = ("accounts", "live")
ON_SERVERS = ("producer", "processor", "sink")
GENERATED_TABLE = "crm.audits"
CONTACTS_TOPIC = "crm.bench.contacts"
TRANSFORM_SECONDS = 3.0
STAGE_TIMEOUT_S = 3600.0
SEED = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """One stage, measured once."""

    stage: str
    rows: int
    seconds: float
    steady_rows_per_s: float | None
    costs: Mapping[str, Cost]
    growth_mib: Mapping[str, float] = field(default_factory=dict)  # of each process that lives on to 90 % of the rows
    more: Mapping[str, object] = field(default_factory=dict)  # further fields

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes, servers included."""
        return sum(cost.cpu_s for cost in self.costs.values())

    @property
    def rows_per_s(self) -> float:
        """Rows over wall time."""
        return self.rows / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON line's object."""
        return {
            "stage": self.stage,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s),
            "steady_rows_per_s": None if self.steady_rows_per_s is None else round(self.steady_rows_per_s),
            "cpu_us_per_row": round(self.cpu_s / self.rows * 1e6, 1),
            "rows_per_cpu_s": round(self.rows / self.cpu_s) if self.cpu_s else None,
            "cpu_s": {name: cost.cpu_s for name, cost in self.costs.items()},
            "peak_mib": {name: cost.peak_mib for name, cost in self.costs.items()},
            **({"growth_mib": dict(self.growth_mib)} if self.growth_mib else {}),
            "hot_paths": hot_paths(),
            **self.more,
        }


class Bench:
    """The benchmark's surroundings: one account with all the rows, in databases of its own."""

    def __init__(self, connections: Connections, account: str, rows: int, options: RunOptions) -> None:
        """`account` has been generated and its contacts are seeded."""
        self.connections, self.account, self.rows, self.options = connections, account, rows, options
        self.topics = AccountTopics.of(account)
        self.kafka = connections.kafka()
        self.codec = codec_for(connections.schema_registry_url)
        self.database = connect(connections, app_name="crm-replay-bench")
        self.store = JobStore(self.database)
        self.server_pids = {
            str(found.service): found.pid for found in services.status() if found.pid and found.state == "running"
        }

    def prepared_job(self) -> Job:
        """Return a new job with topics, references, begin markers and committed offsets: what a run does first."""
        sandbox.forget(self.connections, self.account)
        mapping = load(self.options.mapping_path)
        dsn = self.connections.crm_audit_database_url
        found = survey(dsn, mapping, self.account)
        partitions = kafka_admin.ensure_topics(kafka_admin.client(self.kafka), self.topics, self.options.partitions)
        job = self.store.create(
            NewJob(
                company_sso_id=self.account,
                partitions=partitions,
                top_audit_id=found.top_audit_id,
                snapshot_xmax=found.snapshot_xmax,
                writers=found.writers,
                cutoff=found.cutoff,
                mapping_path=self.options.mapping_path,
                records_total=found.rows,
            )
        )
        references.publish(
            dsn, mapping, self.account, kafka=self.kafka, mongo=self.database, topics=self.topics, codec=self.codec
        )
        begin = markers.begin(
            self.kafka, self.topics.replay, partitions, job_id=job.job_id, run=job.run, codec=self.codec
        )
        kafka_admin.commit_offsets(
            self.kafka, self.topics.processors_group, self.topics.replay, [offset + 1 for offset in begin]
        )
        kafka_admin.commit_offsets(self.kafka, self.topics.sink_group, self.topics.outcomes, [0] * partitions)
        return self.store.set_begin_offsets(job, begin, partitions)

    def process(self, stage: str, module: str, job: Job, counter: Callable[[], int]) -> Measured:
        """Run one process of the job to its own end and measure it."""
        addresses = self.connections.environment()
        environment = child_environment(
            **addresses, CRM_REPLAY_JOB=job.replay_job().model_dump_json(), CRM_REPLAY_EXIT_AT_END="1"
        )
        log = self.options.home / "logs" / "bench" / f"{stage}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = subprocess.Popen(  # noqa: S603 - our own module
                python_module(module), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        meter = Meter(lambda: {**self.server_pids, stage: child.pid}, counter).start()
        try:
            code = child.wait(STAGE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        seconds = meter.stop()
        if code:
            raise ReplayError(f"the stage {stage} ended with code {code}", f"see {log}")
        rows = counter()
        if rows < self.rows:
            raise ReplayError(f"the stage {stage} ended after {rows:,} of {self.rows:,} rows", f"see {log}")
        growth = meter.growth_mib(self.rows)
        return Measured(stage, self.rows, seconds, meter.steady_rate(self.rows), meter.costs(), growth)

    def records_on(self, topic: str, partitions: int) -> Callable[[], int]:
        """Return a function that gives the number of records that have been written to a topic from now on."""
        at_first = sum(kafka_admin.end_offsets(self.kafka, topic, partitions))
        return lambda: sum(kafka_admin.end_offsets(self.kafka, topic, partitions)) - at_first

    def handled(self, job: Job) -> Callable[[], int]:
        """Return a function that gives the number of the job's records that the processors have committed."""
        group, topic, at_first = (
            self.topics.processors_group,
            self.topics.replay,
            sum(job.begin_offsets) + job.partitions,
        )
        return lambda: sum(kafka_admin.committed_offsets(self.kafka, group, topic, job.partitions)) - at_first

    def stages_alone(self, wanted: Iterable[str]) -> Iterator[Measured]:
        """Yield producer, processor and sink, each fed by what the one before it has left."""
        last = max((ON_SERVERS.index(s) for s in wanted if s in ON_SERVERS), default=-1)
        if last < 0:
            return
        job = self.prepared_job()
        yield self.process("producer", "producer", job, self.records_on(self.topics.replay, job.partitions))
        if last >= 1:
            yield self.process("processor", "processors", job, self.handled(job))
        if last >= 2:
            yield self.process("sink", "sink", job, lambda: self.store.aggregate_progress(job).accounted)

    def end_to_end(self) -> Measured:
        """Run the whole account as `crm-replay run` does; the ledger has to balance."""
        sandbox.forget(self.connections, self.account)
        accounted = [0]

        class View(PlainView):
            def progress(self, done: int, *_rest: object) -> None:
                accounted[0] = done

            def note(self, text: str) -> None:
                """Discard the text: a line takes time."""

        meter = Meter(lambda: {**self.server_pids, **workers_of(os.getpid())}, lambda: accounted[0]).start()
        result = run_account(self.account, self.options, self.connections, View())
        meter.stop()
        if not (result.ledger.balanced and result.ledger.accounted >= self.rows):
            raise ReplayError("the end-to-end run is out of balance", result.job.error or "")
        rate, growth = meter.steady_rate(self.rows), meter.growth_mib(self.rows)
        tables = {"reference_rows": sum(map(self._reference_rows, self.topics.references))}
        return Measured("end_to_end", result.ledger.accounted, result.seconds, rate, meter.costs(), growth, tables)

    def _reference_rows(self, topic: str) -> int:
        """Return how many rows of the CRM a reference topic holds; every processor keeps all of them in memory."""
        return sum(kafka_admin.end_offsets(self.kafka, topic, kafka_admin.REFERENCE_PARTITIONS))

    def enrich(self) -> Measured:
        """Take the links out of the association logs that `end_to_end` has left, and have them added again."""
        logs = self.database[ACTIVITY_LOGS]
        mine = {
            "company_sso_id": self.account,
            "category": {"$in": ["deal", "company", "ticket", "task"]},
            "action": {"$in": ["link", "unlink", "won", "resolved", "completed"]},
            "metadata.linked_entity_id": {"$exists": True},
        }
        links = ("crm_person_id", "linked_entity_type", "linked_entity_id", "linked_entity_name")
        logs.update_many(mine, {"$unset": {f"metadata.{name}": "" for name in links}})
        meter = Meter(lambda: {**self.server_pids, "enrich": os.getpid()}).start()
        result = enrich_account(self.account, EnrichOptions(), self.connections, PlainView())
        meter.stop()
        patched = result.outcomes[Outcome.PATCHED]
        if not patched:
            raise ReplayError("the enrichment has patched nothing", "are there association rows? take more --rows")
        return Measured("enrich", patched, result.seconds, None, meter.costs())

    def verify(self, replay: Measured, *, again: bool = False) -> Measured:
        """Verify the result of `end_to_end`, which has to be equal. `again`: it has been proved before."""
        meter = Meter(lambda: {**self.server_pids, "verify": os.getpid()}).start()
        report = verify_account(self.account, VerifyOptions(from_scratch=not again), self.connections, PlainView())
        seconds = meter.stop()
        if again and report.tally.unchanged != report.tally.rows:
            raise ReplayError("unchanged rows were transformed again", "report this")
        if not report.equal:
            raise ReplayError("the check of the replay finds it wrong", f"crm-replay verify --account {self.account}")
        measured = Measured("verify_again" if again else "verify", replay.rows, seconds, None, meter.costs())
        shares = {
            "share_of_replay_time": round(seconds / replay.seconds, 3),
            "share_of_replay_cpu": round(measured.cpu_s / replay.cpu_s, 3),
        }
        return replace(measured, more=shares)

    def table_load(self, contacts: int) -> Measured:
        """Load a compacted topic of contacts as a worker does at its start."""
        admin = kafka_admin.client(self.kafka)
        self._delete(admin, CONTACTS_TOPIC)
        new = NewTopic(CONTACTS_TOPIC, kafka_admin.REFERENCE_PARTITIONS, 1, config={"cleanup.policy": "compact"})
        admin.create_topics([new])[CONTACTS_TOPIC].result(kafka_admin.ANSWER_TIMEOUT_S)
        producer = Producer({**self.kafka, "linger.ms": 50, "queue.buffering.max.messages": contacts + 1})
        for person in range(contacts):
            contact = Contact(self.account, str(person), f"customer-{person:024d}", 1_700_000_000_000_000 + person)
            producer.produce(CONTACTS_TOPIC, self.codec.encode(contact), str(person))
            producer.poll(0)
        producer.flush()
        # In a process of its own, so that its memory is the table's.
        code = (
            "import sys, json, resource, time\n"
            "from processors.lookups.tables import ReferenceTables\n"
            "from schemas.process.registry import codec_for\n"
            "kafka, topic, codec = json.loads(sys.argv[1]), sys.argv[2], codec_for(sys.argv[3])\n"
            "before = resource.getrusage(resource.RUSAGE_SELF)\n"
            "tables = ReferenceTables(kafka, {'contacts': topic}, codec)\n"
            "tables.load(600.0)\n"
            "after = resource.getrusage(resource.RUSAGE_SELF)\n"
            "cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime\n"
            "print(json.dumps([tables.sizes()['contacts'], tables.load_s, cpu, after.ru_maxrss / 1024]))\n"
            "tables.close()\n"
        )
        known = [json.dumps(dict(self.kafka)), CONTACTS_TOPIC, self.connections.schema_registry_url]
        argv = [*python_module("x")[:1], "-c", code, *known]
        answer = subprocess.run(argv, check=True, capture_output=True, text=True, env=child_environment())  # noqa: S603
        size, seconds, cpu_s, peak = json.loads(answer.stdout)
        self._delete(admin, CONTACTS_TOPIC)
        if size != contacts:
            raise ReplayError(f"the table has {size:,} of {contacts:,} contacts")
        return Measured("table_load", contacts, seconds, None, {"worker": Cost(round(cpu_s, 2), round(peak, 1))})

    def _delete(self, admin: Any, topic: str) -> None:
        if topic in admin.list_topics(timeout=kafka_admin.ANSWER_TIMEOUT_S).topics:
            admin.delete_topics([topic])[topic].result(kafka_admin.ANSWER_TIMEOUT_S)
            while topic in admin.list_topics(timeout=kafka_admin.ANSWER_TIMEOUT_S).topics:
                time.sleep(0.1)


def require_stages(stages: Iterable[str]) -> tuple[str, ...]:
    """Return the stages to measure, each once; all but the named-only ones if none is given. Raises BadInputError."""
    wanted = tuple(dict.fromkeys(stages)) or STAGES
    if unknown := [stage for stage in wanted if stage not in (*STAGES, *NAMED_ONLY)]:
        raise BadInputError(f"there is no stage {unknown[0]}", f"give one of {', '.join((*STAGES, *NAMED_ONLY))}")
    return wanted


def bench(
    say: Callable[[str], None],
    *,
    rows: int,
    contacts: int,
    wanted: Collection[str],
    repeats: int,
    shape: str,
    options: RunOptions,
    accounts: int = 20,
    of_environment: bool = False,
) -> list[Measured]:
    """Measure the `wanted` stages, each `repeats` times, print a JSON line for each, and return those with a rate.

    `accounts` are those of the stage of that name. `of_environment`: databases and topics are made on the servers that
    the environment names, else on embedded ones.
    """
    measured: list[Measured] = []
    if "transform" in wanted:
        for _ in range(repeats):
            print(json.dumps({"stage": "transform", **transform.run(TRANSFORM_SECONDS)}), flush=True)  # noqa: T201
    if "accounts" in wanted:
        with sandbox.servers(say, of_environment=of_environment) as servers:
            for many in bench_accounts.measure(servers, accounts, options.home):
                print(json.dumps(many.as_dict()), flush=True)  # noqa: T201
    if "live" in wanted:
        with sandbox.servers(say, of_environment=of_environment) as servers:
            for line in live.measure(servers, options.home, say):
                print(json.dumps(line), flush=True)  # noqa: T201
    if set(wanted) - {"transform", *NAMED_ONLY}:
        with sandbox.servers(say, of_environment=of_environment) as servers:
            own = sandbox.own_databases(servers, f"{NAME}_{shape}")
            prepared = _prepare(own, rows, shape, options)
            for number in range(repeats):
                for result in _measure(prepared, wanted, contacts):
                    measured.append(replace(result, more={"warm": number > 0, **result.more}))
                    print(json.dumps(measured[-1].as_dict()), flush=True)  # noqa: T201
                if "limits" in wanted:
                    for limit in limits.measure(
                        own, prepared.database, prepared.account, options.partitions, GENERATED_TABLE
                    ):
                        print(json.dumps(limit.as_dict()), flush=True)  # noqa: T201
            prepared.database.client.close()
    return measured


def versus(
    say: Callable[[str], None],
    peer: Peer,
    *,
    rows: int,
    repeats: int,
    options: RunOptions,
    of_environment: bool = False,
) -> list[dict[str, Any]]:
    """Measure the whole on the peer's rows, then the peer; return how many times as fast this is, by the peer's ways.

    A JSON line is printed for each measurement and each comparison.
    """
    ours: list[Measured] = []
    with sandbox.servers(say, of_environment=of_environment) as servers:
        own = sandbox.own_databases(servers, f"{NAME}_versus")
        database = connect(own)
        try:
            migrations.up(database)
        finally:
            database.client.close()
        mapping = options.home / "bench" / "versus.yaml"
        peer.load(own, rows, mapping)
        bench = Bench(own, bench_versus.ACCOUNT, rows, replace(options, mapping_path=str(mapping)))
        for number in range(bench_versus.WARM_UPS + repeats):  # what the other one is given, too
            result = replace(bench.end_to_end(), more={"warm": number >= bench_versus.WARM_UPS})
            print(json.dumps(result.as_dict()), flush=True)  # noqa: T201
            if number >= bench_versus.WARM_UPS:
                ours.append(result)
        bench.database.client.close()
    lines = bench_versus.compared([result.rows_per_s for result in ours], peer.measure(rows, repeats))
    for line in lines:
        print(json.dumps(line), flush=True)  # noqa: T201
    return lines


def _measure(prepared: Bench, wanted: Iterable[str], contacts: int) -> Iterator[Measured]:
    if "table_load" in wanted:
        yield prepared.table_load(contacts)
    for result in prepared.stages_alone(wanted):
        if result.stage in wanted:
            yield result
    if {"end_to_end", "enrich", "verify", "limits"} & {*wanted}:
        yield (replay := prepared.end_to_end())
        if "enrich" in wanted:
            yield prepared.enrich()
        if "verify" in wanted:
            yield prepared.verify(replay)
            yield prepared.verify(replay, again=True)


def _prepare(connections: Connections, rows: int, shape: str, options: RunOptions) -> Bench:
    dsn = connections.crm_audit_database_url
    with generating(rows) as report:
        made = generate_crm(dsn, Plan(rows, 1, SEED, shape), progress=report)
    ((account, generated),) = made.accounts.items()
    database = connect(connections)
    try:
        migrations.up(database)
        seed_contacts(database, dsn, accounts=[account])
    finally:
        database.client.close()
    return Bench(connections, account, generated, replace(options, mapping_path=GENERATED_MAPPING))
