"""The arrows between the packages hold: schemas <- producer, processors, sink <- ops.control <- ops.local and ops.cli.

Read from the sources, so that a module nobody imports in the tests counts as well.
"""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "producer", "processors", "sink", "ops")
STAGES = {"producer", "processors", "sink"}

# Libraries that talk to a server, or know how: none of them in a module that decides with values.
CLIENT_LIBRARIES = {"aiokafka", "confluent_kafka", "faust", "httpx", "mode", "psycopg", "pymongo", "socket", "requests"}

# Modules that are pure by the contract (style.md's tree), and those that say so of themselves in their first lines.
PURE = {
    "schemas.codec",
    "schemas.errors",
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
    "processors.rules.transform",
    "processors.rules.watermark",
    "sink.documents",
    "ops.jobs.guards",
    "ops.jobs.jobs",
    "ops.local.generator.history",
    "ops.local.generator.pieces",
    "ops.local.generator.plain",
    "ops.local.generator.psych",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    return {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports_in(source: str, module: str, is_package: bool, modules: Collection[str] = ()) -> Iterator[str]:
    """Yield the full name of everything a source imports, wherever in it that stands.

    `from package import module` is an import of that module, if it is one of `modules`, and not of the package itself.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join((*above, *filter(None, [node.module])))
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from names
            if not all(name in modules for name in names):
                yield base


SOURCES = sources()
IMPORTS = {
    module: set(imports_in(path.read_text("utf-8"), module, path.name == "__init__.py", SOURCES))
    for module, path in SOURCES.items()
}


def ours(module: str) -> set[str]:
    """Return the modules and packages of ours that a module imports."""
    return {name for name in IMPORTS[module] if name.split(".")[0] in PACKAGES}


def side_of(name: str) -> str:
    """Return the package by which the arrows are drawn; ops has three."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "ops" and len(parts) > 1 else parts[0]


MAY_IMPORT = {
    "schemas": {"schemas"},
    "producer": {"schemas", "producer"},
    "processors": {"schemas", "processors"},
    "sink": {"schemas", "sink"},
    "ops.jobs": {"schemas", *STAGES, "ops.kafka", "ops.jobs"},
    "ops.control": {"schemas", *STAGES, "ops.kafka", "ops.jobs", "ops.control"},
}


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 40
    assert {side_of(module) for module in SOURCES} >= {*MAY_IMPORT, "ops.local", "ops.cli"}
    assert "schemas.records" in ours("schemas.codec")


@pytest.mark.parametrize("side", MAY_IMPORT)
def test_imports_point_one_way(side: str) -> None:
    wrong = {
        f"{module} imports {name}"
        for module in SOURCES
        if side_of(module) == side
        for name in ours(module)
        if side_of(name) not in MAY_IMPORT[side]
    }
    assert not wrong


def test_nothing_imports_a_main_module() -> None:
    wrong = {f"{module} imports {name}" for module in SOURCES for name in ours(module) if "__main__" in name.split(".")}
    assert not wrong


def test_nothing_but_the_tests_imports_the_tests() -> None:
    wrong = {module for module, names in IMPORTS.items() if any(name.split(".")[0] == "tests" for name in names)}
    assert not wrong


def test_nothing_imports_the_command_line() -> None:
    wrong = {
        module
        for module in SOURCES
        if side_of(module) != "ops.cli" and module != "ops.__main__"
        if any(side_of(n) == "ops.cli" for n in ours(module))
    }
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
    assert {"processors.rules.transform", "producer.cursor", "sink.documents", "schemas.codec"} <= set(PURE_HERE)


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
