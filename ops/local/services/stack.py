"""The servers together: started in parallel, known by files, ended in parallel.

Files are written in an order that makes a crash harmless: a server's process id before it runs, its readiness once it
has responded. A process that is recorded as running but not as ready was left by an `up` that died: the
next `up` ends it and starts another.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ops.local.services import detached, ports
from ops.local.services.debezium import DebeziumServer
from ops.local.services.detached import Process
from ops.local.services.fetching import CancelledError, Say, ToolCache, locked
from ops.local.services.kafka import KafkaServer
from ops.local.services.layout import AnyService, Extra, Home, Service, ServiceSettings
from ops.local.services.mongodb import MongoServer
from ops.local.services.ports import Ports
from ops.local.services.postgres import PostgresServer
from ops.local.services.registry import RegistryServer
from ops.local.services.server import Server, Surroundings
from schemas.errors import BadInputError, ReplayError
from schemas.process.connections import Connections
from schemas.process.waiting import Deadline
from schemas.secrets import shown

_KINDS: Mapping[AnyService, type[Server]] = {
    kind.service: kind for kind in (KafkaServer, PostgresServer, MongoServer, DebeziumServer, RegistryServer)
}
_PROBE_AGAIN_S = 0.1
_STILL_THERE_S = 60.0  # for a server that is on file as ready: busy is not dead
_PORT_TRIES = 3
_STOP_UNREADY_S = 5.0  # a broker stopped while it starts may hang, and has no data yet


def _quiet(_text: str) -> None:
    """Discard the text."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The addresses of the running embedded servers; empty for one that does not run."""

    kafka_bootstrap_servers: str = ""
    crm_audit_database_url: str = ""
    mongodb_url: str = ""
    kafka_connect_url: str = ""
    schema_registry_url: str = ""  # never a default: records framed with its ids need it as long as they exist

    def environment(self) -> dict[str, str]:
        """Return the addresses as environment variables for a child process."""
        found = {service.variable: url for service in Service if (url := self.url(service))}
        extras = {Extra.DEBEZIUM: self.kafka_connect_url, Extra.REGISTRY: self.schema_registry_url}
        return found | {extra.variable: url for extra, url in extras.items() if url}

    def url(self, service: Service) -> str:
        """Return one server's address."""
        url: str = getattr(self, service.setting)
        return url

    def fill(self, given: Connections) -> Connections:
        """Return `given` with each address that it lacks taken from here: the environment wins."""
        missing = {
            service.setting: url
            for service in Service
            if not getattr(given, service.setting) and (url := self.url(service))
        }
        return given.model_copy(update=missing)


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What is known of one server. `problem` is why a state is not `running`, for the operator."""

    service: AnyService
    state: Literal["running", "stopped", "not answering", "environment"]
    url: str = ""
    pid: int | None = None
    log: Path | None = None
    problem: str = ""


def from_environment() -> frozenset[Service]:
    """Return the servers whose address the user has set: none of these is started here."""
    given = Connections()
    return frozenset(service for service in Service if getattr(given, service.setting))


def endpoints(home: Path | None = None) -> Endpoints | None:
    """Return the addresses of the servers that run and were ready; None if none does. Cheap: no server is queried."""
    place = Home.at(home)
    chosen, around = Ports(place.ports), _look_around(place)
    urls = {
        service.variable.lower(): (server := _KINDS[service](around)).url(_known(server, chosen))
        for service in (*Service, *Extra)
        if (process := Process.read(place.process_file(service))) and Process.read(place.ready_file(service)) == process
    }
    return Endpoints(**urls) if urls else None


def connections(home: Path | None = None) -> Connections:
    """Return the settings of the environment, completed with the running embedded servers of `home`."""
    return (endpoints(home) or Endpoints()).fill(Connections())


def _look_around(place: Home, say: Say = _quiet) -> Surroundings:
    """Return surroundings for queries and stops: they fetch nothing."""
    tools = ToolCache(place.path, logs=place.logs, say=say, cancel=threading.Event())
    return Surroundings(place, ServiceSettings.load(), tools, say)


def _known(server: Server, chosen: Ports) -> dict[str, int]:
    """Return the ports of its last start; 0 for one that is not on file."""
    return {name: chosen.get(name) or 0 for name in server.port_names}


def up(
    home: Path | None = None,
    *,
    only: Iterable[Service] = (),
    extras: Iterable[Extra] = (),
    settings: ServiceSettings | None = None,
    say: Say = _quiet,
    cancel: threading.Event | None = None,
) -> Endpoints:
    """Start what does not run yet and return the addresses, once every server has answered. Safe to repeat.

    `only` limits it to some servers (default: all); one whose address is in the environment is never started. `extras`
    are started after them. If one cannot be started, or `cancel` is set, those started by this call are stopped again.
    Raises BadInputError.
    """
    place = Home.at(home)
    settings = settings if settings is not None else ServiceSettings.load()
    cancel = cancel if cancel is not None else threading.Event()
    wanted = [service for service in Service if service in (frozenset(only) or frozenset(Service))]
    wanted = [service for service in wanted if service not in from_environment()]
    extras = tuple(extra for extra in extras if not os.environ.get(extra.variable))
    if not wanted and not extras:
        return endpoints(place.path) or Endpoints()
    try:
        place.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"cannot make the directory {place.path}: {error.strerror}", "set CRM_REPLAY_HOME to one you can write"
        ) from None
    tools = ToolCache(settings.cache_directory, logs=place.logs, say=say, cancel=cancel)
    around = Surroundings(place, settings, tools, say)
    with locked(place.lock, cancel=cancel, waiting=lambda: say("waiting for another crm-replay services command")):
        chosen = Ports(place.ports)
        starts = [_Start(_KINDS[service](around), around, chosen) for service in wanted]
        if starts:
            _all_or_none(starts, cancel)
        if extras:
            _start_extras(extras, around, chosen, cancel, also_undo=starts)
    found = endpoints(place.path)
    if found is None:
        raise BadInputError("the servers ended right after their start", f"see {place.logs}")
    return found


def down(home: Path | None = None, *, say: Say = _quiet, delete_data: bool = False) -> list[AnyService]:
    """Stop the servers of `home` and return which were running. Safe to repeat; the data stays.

    `delete_data` removes the data and the logs as well.
    """
    place = Home.at(home)
    around = _look_around(place, say)
    servers = [_KINDS[service](around) for service in Service]
    extras = [_KINDS[extra](around) for extra in Extra]
    with contextlib.ExitStack() as holding:
        if place.path.is_dir():  # else it was deleted, perhaps under running servers
            waiting = "waiting for another crm-replay services command"
            holding.enter_context(locked(place.lock, cancel=around.tools.cancel, waiting=lambda: say(waiting)))
        stopped_extras = [_stop(server, place, say) for server in extras]  # first: they write down what they hold
        with ThreadPoolExecutor(len(servers)) as pool:
            stopped = list(pool.map(lambda server: _stop(server, place, say), servers))
        if delete_data:
            for server in (*servers, *extras):
                server.delete_data()
                shutil.rmtree(place.directory(server.service), ignore_errors=True)
            shutil.rmtree(place.logs, ignore_errors=True)
            place.ports.unlink(missing_ok=True)
    ran = zip((*servers, *extras), (*stopped, *stopped_extras), strict=True)
    return [server.service for server, has_run in ran if has_run]


def status(home: Path | None = None) -> list[ServiceStatus]:
    """Return what each server is doing now; the embedded ones are queried.

    Those of `Extra` are among them from their start until they are stopped.
    """
    place = Home.at(home)
    external = from_environment()
    chosen, around = Ports(place.ports), _look_around(place)

    def look(service: AnyService) -> ServiceStatus:
        if isinstance(service, Service) and service in external:
            return ServiceStatus(service, "environment", url=shown(str(getattr(Connections(), service.setting))))
        process = Process.read(place.process_file(service))
        if process is None:
            return ServiceStatus(service, "stopped", log=place.log(service) if place.log(service).exists() else None)
        server = _KINDS[service](around)
        known = _known(server, chosen)
        problem = server.problem(known)
        state: Literal["running", "not answering"] = "running" if problem is None else "not answering"
        return ServiceStatus(service, state, server.url(known), process.pid, place.log(service), problem or "")

    looked_at = [*Service, *(extra for extra in Extra if place.process_file(extra).exists())]
    with ThreadPoolExecutor(len(looked_at)) as pool:
        return list(pool.map(look, looked_at))


def _stop(server: Server, place: Home, say: Say) -> bool:
    """End one server if it runs, and forget its process; whether it ran."""
    service = server.service
    process = Process.read(place.process_file(service))
    was_ready = process is not None and Process.read(place.ready_file(service)) == process
    lost = [found for words in server.traces() for found in detached.with_arguments(*words) if found != process]
    for one in [process, *lost]:
        if one is None:
            continue
        timeout_s = server.stop_timeout_s if was_ready or one is not process else _STOP_UNREADY_S
        try:
            in_time = detached.stop(one, number=server.stop_signal, timeout_s=timeout_s)
        except PermissionError:
            raise BadInputError(
                f"{service.value} (process {one.pid}) was started by another user", "stop it as that user"
            ) from None
        if not in_time and timeout_s != _STOP_UNREADY_S:
            say(f"{service.value}: did not end within {timeout_s:.0f} s and was killed; log: {place.log(service)}")
    place.ready_file(service).unlink(missing_ok=True)
    place.process_file(service).unlink(missing_ok=True)
    return process is not None or bool(lost)


class _Start:
    """The start of one server, in a thread of its own."""

    def __init__(self, server: Server, around: Surroundings, chosen: Ports) -> None:
        self.server = server
        self.started = False  # by us: to be stopped again if another one fails
        self._around = around
        self._home = around.home
        self._chosen = chosen
        self._service = server.service

    def run(self) -> None:
        """Return once it answers. Raises BadInputError, or CancelledError if it was cancelled."""
        if self._already_runs():
            return
        _stop(self.server, self._home, self._around.say)  # left by an `up` that died, or it hangs
        self.server.prepare()
        for attempt in range(_PORT_TRIES):
            self._stop_if_cancelled()
            known = self._choose_ports()
            log = self._home.log(self._service)
            log_start = log.stat().st_size if log.exists() else 0
            command = self.server.command(known)
            self._stop_if_cancelled()
            began = time.monotonic()
            self.started = True
            process = detached.start(command, process_file=self._home.process_file(self._service), log=log)
            if self._wait(process, known, log, log_start, last_try=attempt == _PORT_TRIES - 1):
                break
        self.server.welcome(known)
        process.write(self._home.ready_file(self._service))
        self._around.say(f"{self._service.value}: ready after {time.monotonic() - began:.1f} s")

    def _already_runs(self) -> bool:
        process = Process.read(self._home.process_file(self._service))
        if process is None or Process.read(self._home.ready_file(self._service)) != process:
            return False
        known = _known(self.server, self._chosen)
        wanted = self._around.settings.port(self._service)
        if wanted is not None and wanted != known[self.server.port_names[0]]:
            raise BadInputError(
                f"{self._service.value} runs on port {known[self.server.port_names[0]]}, not on {wanted}",
                "stop it first: crm-replay services down",
            )
        deadline = Deadline(_STILL_THERE_S)
        while process.alive:
            if self.server.problem(known) is None:
                return True
            self._stop_if_cancelled()
            if not deadline.wait(_PROBE_AGAIN_S):
                self._around.say(f"{self._service.value}: does not respond any more; it is restarted")
                return False
        return False

    def _choose_ports(self) -> dict[str, int]:
        first, *others = self.server.port_names
        wanted = self._around.settings.port(self._service)
        known = {first: self._chosen.choose(first, wanted=wanted, variable=self._service.port_variable)}
        return known | {name: self._chosen.choose(name) for name in others}

    def _wait(self, process: Process, known: dict[str, int], log: Path, log_start: int, *, last_try: bool) -> bool:
        """Return True once it answers, False if its port was taken and another one can be tried."""
        timeout_s = self._around.settings.start_timeout_s
        deadline = Deadline(timeout_s)
        name = self._service.value
        while True:
            if not process.alive:
                summary = detached.last_lines(log, since_byte=log_start)
                lost_port = self._around.settings.port(self._service) is None and not all(
                    ports.is_free(port) for port in known.values()
                )
                if lost_port and not last_try:
                    return False
                raise BadInputError(f"{name} ended while it was starting: {summary}", f"all of its log: {log}")
            problem = self.server.problem(known)
            if problem is None and process.alive:
                return True
            self._stop_if_cancelled()
            if not deadline.wait(_PROBE_AGAIN_S):
                summary = detached.last_lines(log, since_byte=log_start)
                raise BadInputError(
                    f"{name} did not answer within {timeout_s:.0f} s ({problem}); its log ends: {summary}",
                    f"all of its log: {log}; CRM_REPLAY_START_TIMEOUT_S gives it longer",
                )

    def _stop_if_cancelled(self) -> None:
        if self._around.tools.cancel.is_set():
            raise CancelledError(f"the start of {self._service.value} was given up")

    def undo(self) -> None:
        """Stop it if this call has started it."""
        if self.started:
            _stop(self.server, self._home, self._around.say)


def _start_extras(
    extras: tuple[Extra, ...],
    around: Surroundings,
    chosen: Ports,
    cancel: threading.Event,
    *,
    also_undo: list["_Start"],
) -> None:
    """Start what needs the other servers; if that fails, undo `also_undo` as well."""
    given = (endpoints(around.home.path) or Endpoints()).fill(Connections())
    try:
        given.require("kafka_bootstrap_servers")
        here = replace(around, kafka=given.kafka_bootstrap_servers)
        _all_or_none([_Start(_KINDS[extra](here), here, chosen) for extra in extras], cancel)
    except BaseException:
        with ThreadPoolExecutor(max(1, len(also_undo))) as stopping:
            list(stopping.map(_Start.undo, also_undo))
        raise


def _all_or_none(starts: list[_Start], cancel: threading.Event) -> None:
    """Run all starts at once. On the first failure, or an interrupt, give up the others and undo all of them."""
    problems: list[BaseException] = []

    def run(start: _Start) -> None:
        try:
            start.run()
        except BaseException as error:  # handed over to the caller's thread below
            problems.append(error)
            cancel.set()

    pool = ThreadPoolExecutor(len(starts))
    try:
        tasks = [pool.submit(run, start) for start in starts]
        for task in tasks:
            task.result()
    except BaseException as error:  # an interrupt of the thread that waits
        problems.insert(0, error)
        cancel.set()
    pool.shutdown()
    if not problems:
        return
    with ThreadPoolExecutor(len(starts)) as stopping:
        list(stopping.map(_Start.undo, starts))
    real = next((error for error in problems if not isinstance(error, CancelledError)), None)
    if real is None:
        raise BadInputError("interrupted", "the servers that had been started until then were stopped again")
    if isinstance(real, ReplayError | KeyboardInterrupt | SystemExit):
        raise real
    if isinstance(real, OSError):
        raise BadInputError(f"the servers could not be started: {real}", "see that the disk can be written") from real
    raise real
