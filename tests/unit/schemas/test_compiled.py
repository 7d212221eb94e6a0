"""Hot paths are compiled where a C compiler is and interpreted where none is; never a part, never of other sources."""

import ast
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from schemas import compiled
from tests.support.sources import PACKAGES, ROOT, pins

SHOWN = """
from importlib import import_module
from schemas import compiled
print(compiled.hot_paths())
print(compiled.is_due())
print(*{import_module(name).__file__.endswith(".py") for name in compiled.MODULES})
"""
NO_COMPILER = f"interpreted ({compiled.NO_COMPILER})"
LIBRARY = Path(f"schemas/compiled_*__mypyc{compiled.SUFFIX}")
FIRST = next(iter(compiled.MODULES.values())).relative_to(ROOT)

needs_compiled = pytest.mark.skipif(
    compiled.hot_paths() != compiled.COMPILED, reason=f"hot paths are {compiled.hot_paths()}"
)


def shown(root: Path, **environ: str) -> tuple[str, bool]:
    """Return what a tree says of its hot paths, and whether all their modules are sources, or none is."""
    ran = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(root), *sys.path]!r}; {SHOWN}"],
        cwd=root,
        env={**os.environ, compiled.VARIABLE: "", **environ},
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    said, is_due, sources = ran.stdout.splitlines()
    not_due = said in (compiled.COMPILED, NO_COMPILER) or compiled.VARIABLE in said
    assert is_due == str(not not_due), "whether make setup compiles them"
    return said, {"True": True, "False": False}[sources]


def require_interpreted(root: Path) -> None:
    said, all_sources = shown(root)
    assert said.startswith("interpreted (")
    assert all_sources


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return the root of a copy of the packages, what is compiled included."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "web"))
    return tmp_path


@needs_compiled
def test_what_is_compiled_is_used(tree: Path) -> None:
    assert shown(tree) == ("compiled", False)


@needs_compiled
@pytest.mark.parametrize("value", ["0", "false", "no"])
def test_the_sources_are_used_where_the_environment_says_so(tree: Path, value: str) -> None:
    assert shown(tree, CRM_REPLAY_COMPILED=value) == (f"interpreted (CRM_REPLAY_COMPILED={value})", True)


@needs_compiled
def test_1_is_as_nothing_said(tree: Path) -> None:
    assert shown(tree, CRM_REPLAY_COMPILED="1") == ("compiled", False)


@needs_compiled
def test_what_is_compiled_of_other_sources_is_not_used(tree: Path) -> None:
    (tree / FIRST).write_text((tree / FIRST).read_text() + "\n")
    assert shown(tree) == ("interpreted (the sources have changed since they were compiled: make setup)", True)


@needs_compiled
@pytest.mark.parametrize("missing", [compiled.extension_of(FIRST), LIBRARY])
def test_where_a_part_is_missing_all_is_interpreted(tree: Path, missing: Path) -> None:
    (found,) = tree.glob(str(missing))
    found.unlink()
    require_interpreted(tree)


@needs_compiled
def test_an_extension_of_another_build_is_not_used(tree: Path) -> None:
    """It loads its own library, whatever lies beside it."""
    extension = compiled.extension_of(tree / FIRST)
    name = compiled.library_name().encode()
    assert name in extension.read_bytes()
    extension.write_bytes(extension.read_bytes().replace(name, name[::-1]))
    assert shown(tree)[1]


@needs_compiled
def test_a_library_that_cannot_be_loaded_is_not_used(tree: Path) -> None:
    library = tree / "schemas" / f"{compiled.library_name()}__mypyc{compiled.SUFFIX}"
    library.write_bytes(b"of another kind of machine")
    said, all_sources = shown(tree)
    assert said.startswith("interpreted (the compiled library cannot be loaded")
    assert all_sources


@needs_compiled
@pytest.mark.parametrize("cut", [compiled.extension_of(FIRST), LIBRARY])
@pytest.mark.parametrize("left", [0, 40, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_not_used(tree: Path, cut: Path, left: float) -> None:
    """Loaded, it would end the process by a signal."""
    (found,) = tree.glob(str(cut))
    found.write_bytes(found.read_bytes()[: int(left if left >= 1 else found.stat().st_size * left)])
    require_interpreted(tree)


@needs_compiled
@pytest.mark.parametrize(
    "unreadable", [compiled.extension_of(FIRST), Path(f"schemas/compiled_*__mypyc{compiled.SUFFIX}")]
)
def test_a_file_that_cannot_be_read_is_not_used(tree: Path, unreadable: Path) -> None:
    (found,) = tree.glob(str(unreadable))
    found.unlink()
    found.mkdir()
    require_interpreted(tree)


@needs_compiled
def test_the_extension_of_a_module_that_is_no_longer_named_is_not_used(tree: Path) -> None:
    """Python prefers an extension to a source; after a change of the list, what is built for it is of old sources."""
    named = tree / "schemas/compiled.txt"
    module = str(FIRST).removesuffix(".py").replace("/", ".")
    named.write_text(named.read_text().replace(f"{FIRST}\n", ""))
    code = f"import sys; sys.path[:0] = {[str(tree), *sys.path]!r}; import {module} as m; print(m.__file__)"
    command = [sys.executable, "-S", "-c", code]
    ran = subprocess.run(command, cwd=tree, text=True, capture_output=True, check=True, timeout=60)
    assert ran.stdout.strip() == str(tree / FIRST)
    assert compiled.extension_of(tree / FIRST) in built_in(tree)  # for the next installation to delete


def built_in(tree: Path) -> list[Path]:
    found = runpy.run_path(str(tree / "schemas/compiled.py"))["built"]()
    return [Path(path) for path in found]


def wheel(root: Path, environ: Mapping[str, str]) -> Path:
    """Return where the files of a wheel are that is built of a copy of the tree."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "node_modules")
        shutil.copytree(ROOT / package, root / "tree" / package, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "tree")
    build = ["-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, *build, "-w", str(root), str(root / "tree")], cwd=root, env=environ, check=True, timeout=280
    )
    (made,) = root.glob("*.whl")
    zipfile.ZipFile(made).extractall(root / "installed")
    return root / "installed"


@pytest.mark.slow
def test_without_a_compiler_the_package_is_installed_all_the_same(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "CC"} | {"PATH": str(tmp_path)}
    installed = wheel(tmp_path, environ)
    assert not [*installed.rglob("*.so")]
    said = f"interpreted ({compiled.NO_COMPILER})"
    assert shown(installed, CC=str(tmp_path / "no-compiler")) == (said, True)


@pytest.mark.slow
@pytest.mark.skipif(compiled.NO_COMPILER in compiled.hot_paths(), reason=compiled.NO_COMPILER)
def test_with_a_compiler_the_package_has_them_compiled(tmp_path: Path) -> None:
    installed = wheel(tmp_path, os.environ)
    assert len([*installed.rglob("*.so")]) == len(compiled.MODULES) + 1
    assert shown(installed) == ("compiled", False)


def test_the_compiler_is_the_one_of_the_lock_file_and_so_is_what_its_code_runs_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = pins("requirements.lock")
    assert f"mypy=={locked['mypy']}" in project["build-system"]["requires"]
    assert f"librt=={locked['librt']}" in project["project"]["dependencies"]
    assert {"librt", "mypy-extensions"} <= pins("requirements.runtime.lock").keys()


def test_each_package_with_compiled_modules_has_the_finder_installed_first() -> None:
    for package in {name.split(".")[0] for name in compiled.MODULES} - {"schemas"}:
        first = ast.parse((ROOT / package / "__init__.py").read_text()).body[1]
        assert isinstance(first, ast.Import)
        assert first.names[0].name == "schemas"


def test_what_is_named_is_there_and_sorted() -> None:
    named = (ROOT / "schemas/compiled.txt").read_text().splitlines()
    assert named == sorted(named)
    assert all((ROOT / name).is_file() for name in named)
