"""PostgreSQL with logical decoding on, for the loopback address only, without passwords.

It refuses to run as root. Root's server therefore runs as `postgres` or `nobody`, and if that user cannot reach the
home directory (a checkout below /root) its data lives in /var/lib/crm-replay instead; `up` reports it. Committed data
survives a kill and a power cut.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psycopg

from ops.local.services import ports as loopback
from ops.local.services import tools
from ops.local.services.detached import Command, User
from ops.local.services.layout import Service
from ops.local.services.server import DataDirectory, Server, Surroundings, environment
from schemas.errors import BadInputError
from schemas.process.waiting import Deadline

DATABASE = "crm"
SUPERUSER = "postgres"
USERS_FOR_ROOT = ("postgres", "nobody")
PLACE_FOR_ROOT = Path("/var/lib/crm-replay")  # reachable by every user, and kept over a reboot
_BACKENDS_END_S = 20.0

SETTINGS = {
    "listen_addresses": loopback.HOST,
    "unix_socket_directories": "",
    "wal_level": "logical",  # a CDC connector can be put in front of it
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",  # loading millions of rows by COPY is not slowed by checkpoints
    "jit": "off",
    "log_line_prefix": "%m [%p] ",
}


class PostgresServer(Server):
    """One PostgreSQL on the loopback address, with the database `crm`."""

    service = Service.POSTGRES
    port_names = ("postgres",)
    stop_signal = signal.SIGINT  # "fast": SIGTERM would wait until the last client disconnects

    def __init__(self, around: Surroundings) -> None:
        """Nothing is looked for or created yet."""
        super().__init__(around)
        self._user: User | None = None
        self._bin = Path()
        self._data = DataDirectory(self._root / "data", self._root / "data.json")

    def prepare(self) -> None:
        """Find or fetch the server, make the cluster if it is not complete."""
        self._user = _user_for_root() if os.geteuid() == 0 else None
        self._root.mkdir(parents=True, exist_ok=True)
        place = self._place()
        self._data = DataDirectory(place / "data", self._root / "data.json")
        made_by = self._data.made_by()
        found = tools.find_postgres(self._around.tools, major=int(made_by) if made_by else None)
        self._bin = self._reachable(found, place)
        if made_by is None:
            self._initialise(tools.postgres_major(found))
        self._clear_stale_lock()

    def command(self, ports: Mapping[str, int]) -> Command:
        """Return how to start it; all settings are on the command line."""
        settings = {**SETTINGS, "port": str(ports["postgres"])}
        if sys.platform != "linux":
            settings["dynamic_shared_memory_type"] = "posix"
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        argv = [str(self._bin / "postgres"), "-D", str(self._data.path), *options]
        return Command(argv, cwd=self._data.path, env=environment(LC_ALL="C"), user=self._user)

    def problem(self, ports: Mapping[str, int]) -> str | None:
        """Check its data directory, which must be ours."""
        if not loopback.accepts(ports["postgres"]):
            return "its port is closed"
        try:
            with psycopg.connect(_dsn(ports["postgres"], "postgres"), connect_timeout=3) as db:
                row = db.execute("SELECT current_setting('data_directory')").fetchone()
        except psycopg.OperationalError as error:
            return " ".join(str(error).split())
        ours = {(place / "data").resolve() for place in (self._root, self._outside())}
        return None if row is not None and Path(row[0]).resolve() in ours else "another PostgreSQL answers on its port"

    def url(self, ports: Mapping[str, int]) -> str:
        """Return the URL of the database `crm`."""
        return _dsn(ports["postgres"], DATABASE)

    def welcome(self, ports: Mapping[str, int]) -> None:
        """Create the database `crm` if it does not exist."""
        with psycopg.connect(_dsn(ports["postgres"], "postgres"), autocommit=True) as db:
            if db.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                db.execute(f"CREATE DATABASE {DATABASE}")

    def traces(self) -> list[tuple[str, str]]:
        """Return the option with its data directory, in both places it may be."""
        return [("-D", str(place / "data")) for place in (self._root, self._outside())]

    def delete_data(self) -> None:
        """Remove the cluster, and its files outside of the home."""
        for place in (self._root, self._outside()):
            DataDirectory(place / "data", self._root / "data.json").wipe()
        shutil.rmtree(self._outside(), ignore_errors=True)

    def _place(self) -> Path:
        """Return the directory for data (and programs) that the server's user can reach."""
        if self._user is None or _reaches(self._user, self._root):
            return self._root
        outside = self._outside()
        outside.mkdir(parents=True, exist_ok=True)
        for directory in (outside.parent, outside):
            directory.chmod(0o755)  # with any umask
        if not _reaches(self._user, outside):
            raise BadInputError(
                f"PostgreSQL does not run as root, and its user {self._user.name} can enter neither {self._root} nor "
                f"{outside}",
                "set CRM_REPLAY_HOME to a directory that every user can enter, or CRM_AUDIT_DATABASE_URL to a server",
            )
        self._around.say(f"postgres: user {self._user.name} cannot enter {self._root}; its data is in {outside}")
        return outside

    def _outside(self) -> Path:
        return PLACE_FOR_ROOT / self._around.home.short_id

    def _reachable(self, bin_directory: Path, place: Path) -> Path:
        """Return the bin directory, copied to `place` if the server's user cannot reach it (a cache below /root)."""
        if self._user is None or _reaches(self._user, bin_directory, program="postgres"):
            return bin_directory
        root = bin_directory.parent.parent  # of the wheel: its libraries lie beside the package
        libraries = root.with_name(f"{root.name}.libs")
        target = place / "programs"
        if not (target / root.name / bin_directory.relative_to(root) / "postgres").exists():
            partial = place / "programs.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(root, partial / root.name)
            if libraries.is_dir():
                shutil.copytree(libraries, partial / libraries.name)
            partial.chmod(0o755)
            partial.rename(target)
        return target / root.name / bin_directory.relative_to(root)

    def _initialise(self, major: int | None) -> None:
        data = self._data.path
        self._data.wipe()
        data.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(data, self._user.uid, self._user.gid)
        making = ["-D", str(data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        answer = _run(self._user, [str(self._bin / "initdb"), *making], cwd=data)
        if answer.returncode != 0:
            summary = " | ".join(line for line in answer.stderr.splitlines() if line.strip())[-500:]
            raise BadInputError(f"PostgreSQL could not make its data directory {data}: {summary}", "see the message")
        self._data.complete(str(major))  # which flushes it, once

    def _clear_stale_lock(self) -> None:
        """Remove what a killed server left behind, so that it can be started again.

        Called when no server of ours runs. Its children may still be at work (they end once they see that the
        postmaster is gone), and its lock file may name the process id of something else by now, which PostgreSQL
        would take for itself.
        """
        lock = self._data.path / "postmaster.pid"
        if not lock.exists():
            return
        deadline = Deadline(_BACKENDS_END_S)
        while any(_processes_in(self._data.path)):
            if deadline.passed or self._around.tools.cancel.wait(0.05):
                raise BadInputError(
                    f"processes of an earlier PostgreSQL still work in {self._data.path}",
                    f"end these process ids: {', '.join(map(str, _processes_in(self._data.path)))}",
                )
        lock.unlink(missing_ok=True)


def _dsn(port: int, database: str) -> str:
    return f"postgresql://{SUPERUSER}@{loopback.HOST}:{port}/{database}"


def _user_for_root() -> User:
    """Return the account that root's PostgreSQL runs as."""
    for name in USERS_FOR_ROOT:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return User(name, found.pw_uid, found.pw_gid)
    raise BadInputError(
        f"PostgreSQL does not run as root, and there is no user {' or '.join(USERS_FOR_ROOT)} to run it as",
        "run this as another user, add a user postgres, or set CRM_AUDIT_DATABASE_URL to a server of yours",
    )


def _run(user: User | None, argv: Sequence[str], *, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command as this user (None: as we are) to its end."""
    return subprocess.run(  # noqa: S603 - our own arguments
        argv,
        cwd=cwd,
        env=environment(LC_ALL="C"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
    )


def _reaches(user: User, directory: Path, *, program: str | None = None) -> bool:
    """Whether the user can enter the directory, and run `program` in it: tried, because of access lists."""
    script = 'cd "$1" && { [ -z "$2" ] || [ -x "./$2" ]; }'
    return _run(user, ["/bin/sh", "-c", script, "sh", str(directory), program or ""], cwd=Path("/")).returncode == 0


def _processes_in(directory: Path) -> Iterator[int]:
    """Yield the ids of the processes whose working directory is this one: PostgreSQL's all work in its data."""
    if sys.platform != "linux":
        return
    place = directory.resolve()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == place:
                yield int(entry.name)
