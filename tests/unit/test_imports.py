"""The arrows between the rooms hold: a room imports what its row of the table allows, which is always further up.

Read from the sources, so that a module nobody imports in the tests counts as well.
"""

import ast
from pathlib import Path

import pytest

from tests.support.sources import IMPORTS, PACKAGES, ROOT, SOURCES, imports_in, module_name

# Libraries that talk to a server, or know how: none of them in a module that decides with values.
CLIENT_LIBRARIES = {"aiokafka", "confluent_kafka", "faust", "httpx", "mode", "psycopg", "pymongo", "socket", "requests"}

# Modules that are pure by the contract (style.md's tree), and those that say so of themselves in their first lines.
PURE = {
    "schemas.codec",
    "schemas.collections",
    "schemas.errors",
    "schemas.identity",
    "schemas.job",
    "schemas.source.mapping",
    "schemas.source.person",
    "schemas.records",
    "schemas.topics",
    "schemas.vocabulary",
    "producer.cursor",
    "processors.rules.actors",
    "processors.rules.associations",
    "processors.rules.categories",
    "processors.rules.changes",
    "processors.rules.contacts",
    "processors.rules.decide",
    "processors.rules.watermark",
    "sink.documents",
    "ops.jobs.guards",
    "ops.jobs.jobs",
    "ops.local.generator.history",
    "ops.local.generator.pieces",
    "ops.local.generator.plain",
    "ops.local.generator.psych",
}


def ours(module: str) -> set[str]:
    """Return the modules and packages of ours that a module imports."""
    return {name for name in IMPORTS[module] if name.split(".")[0] in PACKAGES}


CONTRACT = ("schemas", "schemas.source", "schemas.process")
TOPOLOGY = ("processors.rules", "processors.encoding", "processors.lookups")
FIVE = (*CONTRACT, "producer", *TOPOLOGY, "processors", "processors.feed", "sink", "sink.feed")
JOBS = (*FIVE, "ops.progress", "ops.kafka", "ops.jobs")

# What each room may import, from the contract to the commands. A row names rows above it only, so there is no circle.
# A room is a package, or one module beside them; a module is in the room with the longest name that fits its own.
ROOMS: dict[str, tuple[str, ...]] = {
    "schemas": (),
    "schemas.source": ("schemas",),
    "schemas.process": ("schemas",),
    "producer": CONTRACT,
    "processors.rules": ("schemas", "schemas.source"),
    "processors.encoding": ("schemas", "schemas.source", "processors.rules"),
    "processors.lookups": CONTRACT,
    "processors": (*CONTRACT, *TOPOLOGY),
    "processors.feed": (*CONTRACT, *TOPOLOGY, "processors"),
    "sink": CONTRACT,
    "sink.feed": (*CONTRACT, "sink"),
    "ops": (),
    "ops.rate": (),
    "ops.progress": (*CONTRACT, "ops.rate"),
    "ops.kafka": (*FIVE, "ops.progress"),
    "ops.jobs": (*FIVE, "ops.kafka"),
    "ops.control": (*FIVE, "ops.rate", "ops.kafka", "ops.jobs"),
    "ops.enrich": JOBS,
    "ops.subject": JOBS,
    "ops.checks": FIVE,
    "ops.checks.verify": (*JOBS, "ops.checks"),
    "ops.runner": (*JOBS, "ops.enrich", "ops.checks.verify"),  # a run enriches, and its end names what is wrong
    "ops.repair": (*JOBS, "ops.checks.verify", "ops.runner"),
    "ops.feed": (*JOBS, "ops.runner"),
    "ops.dead_letters": (*JOBS, "ops.runner", "ops.feed"),
    "ops.checks.preflight": (*JOBS, "ops.checks"),
    "ops.checks.dry_run": (*JOBS, "ops.checks", "ops.checks.verify"),
    "ops.checks.seam": (*JOBS, "ops.checks"),
    "ops.checks.explain": (*JOBS, "ops.checks", "ops.checks.verify", "ops.feed", "ops.dead_letters"),
    "ops.checks.nightly": (
        *JOBS,
        "ops.checks",
        "ops.checks.preflight",
        "ops.checks.verify",
        "ops.dead_letters",
        "ops.subject",
    ),
    "ops.checks.rollout": (*JOBS, "ops.checks"),
    "ops.local": (*FIVE, "ops.kafka"),
    "ops.bench": (*JOBS, "ops.enrich", "ops.checks", "ops.checks.verify", "ops.runner", "ops.feed", "ops.local"),
}
ROOMS["ops.cli"] = tuple(ROOMS)  # everything; and nothing imports it


def room_of(name: str) -> str:
    """Return the room of a module, or of what is taken out of it."""
    parts = name.split(".")
    while (room := ".".join(parts)) not in ROOMS:
        parts.pop()
    return room


def allowed(module: str) -> set[str]:
    """Return the rooms that a module may import: its own, and those of its row; wiring imports its package's."""
    room = room_of(module)
    if module.endswith(".__main__"):
        return {*CONTRACT, *(name for name in ROOMS if f"{name}.".startswith(f"{room}."))}
    return {room, *ROOMS[room]}


def broken() -> set[tuple[str, str]]:
    """Return every module with each room that it imports against the table."""
    return {
        (module, room_of(name)) for module in SOURCES for name in ours(module) if room_of(name) not in allowed(module)
    }


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 40
    assert {room_of(module) for module in SOURCES} == set(ROOMS)
    assert "schemas.records" in ours("schemas.codec")


def test_a_row_of_the_table_names_rows_above_it_only() -> None:
    above: set[str] = set()
    for room, names in ROOMS.items():
        assert set(names) <= above, room
        above.add(room)


def test_each_room_imports_what_its_row_allows() -> None:
    assert {f"{module} imports {room}" for module, room in broken()} == set()


def users_of(library: str) -> set[str]:
    """Return the modules that import a library."""
    return {module for module, names in IMPORTS.items() if any(name.split(".")[0] == library for name in names)}


def test_only_the_commands_know_the_command_line_s_library() -> None:
    assert {module for module in users_of("typer") if room_of(module) != "ops.cli"} == set()


def test_only_the_commands_draw_on_a_terminal() -> None:
    """But for `ops.progress`: its bar is one of the two forms of `RunView`, which runs report to from below the CLI."""
    assert {module for module in users_of("rich") if room_of(module) != "ops.cli"} == {"ops.progress"}


def test_only_commands_and_measurements_know_the_embedded_servers_and_the_sample() -> None:
    """`ops.local` and `ops.bench` are not in the image."""
    workbench = {"ops.local", "ops.bench"}
    users = {module for module in SOURCES if workbench & {room_of(name) for name in ours(module)}}
    assert {room_of(module) for module in users} <= {*workbench, "ops.cli"}


def test_nothing_imports_a_main_module() -> None:
    wrong = {f"{module} imports {name}" for module in SOURCES for name in ours(module) if "__main__" in name.split(".")}
    assert not wrong


def test_nothing_but_the_tests_imports_the_tests() -> None:
    wrong = {module for module, names in IMPORTS.items() if any(name.split(".")[0] == "tests" for name in names)}
    assert not wrong


def test_no_test_module_is_imported() -> None:
    """What several of them need is in `tests/support`, in `tests/fixtures`, or in a module beside them."""
    sources = sorted((ROOT / "tests").rglob("*.py"))
    tests = {module_name(path): path for path in sources}
    wrong = {
        f"{module} imports {name}"
        for module, path in tests.items()
        for name in imports_in(path.read_text("utf-8"), module, path.name == "__init__.py", tests)
        if any(part.startswith("test_") for part in name.split(".")) and name.startswith("tests.")
    }
    assert len(tests) > 200
    assert not wrong


def says_it_is_pure(path: Path) -> bool:
    """Tell whether the module's own first lines promise it: a sentence that begins with `Pure`."""
    doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    sentences = doc.replace("\n", " ").split(". ")
    return any(
        sentence.strip().startswith(("Pure.", "Pure:", "Pure,")) or sentence.strip() == "Pure" for sentence in sentences
    )


PURE_HERE = sorted(
    {module for module in PURE if module in SOURCES} | {m for m, path in SOURCES.items() if says_it_is_pure(path)}
)


def test_the_rules_are_among_the_pure_modules() -> None:
    assert {"processors.rules.decide", "producer.cursor", "sink.documents", "schemas.codec"} <= set(PURE_HERE)


@pytest.mark.parametrize("module", PURE_HERE)
def test_pure_modules_import_no_client_library(module: str) -> None:
    assert not {name for name in IMPORTS[module] if name.split(".")[0] in CLIENT_LIBRARIES}


@pytest.mark.parametrize("module", PURE_HERE)
def test_pure_modules_import_no_module_that_does_input_and_output(module: str) -> None:
    """One step further: what a pure module imports of ours imports no client library either."""
    reached, left = set(), {module}
    while left:
        name = left.pop()
        reached.add(name)
        left |= {found for found in ours(name) if found in SOURCES and found not in reached}
    touching = {name for name in reached if any(i.split(".")[0] in CLIENT_LIBRARIES for i in IMPORTS[name])}
    assert not touching


@pytest.mark.parametrize(
    ("module", "is_package", "source", "imported"),
    [
        ("a.b", False, "import x.y", {"x.y"}),
        ("a.b", False, "from x import y as z", {"x", "x.y"}),
        ("a.b", False, "from . import c", {"a", "a.c"}),
        ("a.b", True, "from .c import d", {"a.b.c", "a.b.c.d"}),
        ("a.b.c", False, "def f():\n    from ..d import e", {"a.d", "a.d.e"}),
    ],
)
def test_the_reader_of_imports_finds_all_forms(module: str, is_package: bool, source: str, imported: set[str]) -> None:
    assert set(imports_in(source, module, is_package)) == imported


def test_a_module_taken_out_of_a_package_is_not_the_package() -> None:
    assert set(imports_in("from a import b", "x", False, {"a", "a.b"})) == {"a.b"}
    assert set(imports_in("from a import b, c", "x", False, {"a", "a.b"})) == {"a", "a.b", "a.c"}


def test_only_the_environment_says_how_records_are_framed() -> None:
    """A codec is made by `schemas.process.registry.codec_for`: one made without it reads no registry's frames."""
    made_bare = [
        module
        for module, path in SOURCES.items()
        if not module.startswith("schemas.")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Codec"
    ]
    assert made_bare == []
