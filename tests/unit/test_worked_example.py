"""CONTRIBUTING's worked example works: applied to a copy of the tree, its rule decides wherever rules do."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.checks.file_rows import FileLookups, event_of
from ops.cli.transform import outcome_line
from processors.encoding.transform import Transformer
from schemas.source import mapping
from tests.support.golden import Case
from tests.support.sources import PACKAGES, ROOT

HEADING = "### A worked example\n"
EXPLAINED = """
import json, sys
from ops.checks.explain.lineage import steps
from ops.checks.file_rows import FileLookups, event_of
from schemas.source import mapping
event = event_of(json.loads(sys.argv[1]), "the row")
told = steps(event, mapping.load(None), "A", FileLookups("A", None, {}))
print(*((step.rule, step.verdict, step.text) for step in told))
"""


def blocks(language: str) -> list[str]:
    """Return the example's blocks of a language."""
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split(HEADING)[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def golden() -> Case:
    """Return the golden case."""
    (case,) = blocks("json")
    return Case(**json.loads(case))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of a copy of the tree that the example has been applied to."""
    root = tmp_path_factory.mktemp("worked_example")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    (case,) = blocks("json")
    (root / "tests/golden/transform/load-test.json").write_text(case, "utf-8")
    (diff,) = blocks("diff")
    applied = subprocess.run(
        ["git", "apply", "-"], cwd=root, input=diff, text=True, capture_output=True, timeout=60, check=False
    )
    assert applied.returncode == 0, f"the diff on the page is not one of today's decide.py: {applied.stderr}"
    return root


def in_copy(root: Path, *arguments: str) -> str:
    """Return what a Python process says that imports from the copy."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_the_rule_the_row_becomes_something_else(golden: Case) -> None:
    event = event_of(golden.row, "the row")
    without = outcome_line(event, Transformer(mapping.load(None), "A"), FileLookups("A", None, {}))
    assert json.loads(without)["outcome"] != golden.outcome["outcome"]


def test_with_it_the_golden_case_passes(copy: Path) -> None:
    said = in_copy(
        copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/golden/test_transform.py", "-k", "load-test"
    )
    assert "2 passed" in said


def test_explain_tells_of_it_without_an_edit(copy: Path, golden: Case) -> None:
    assert "('rehearsal', 'skip', 'load test True')" in in_copy(copy, "-c", EXPLAINED, json.dumps(golden.row))


def test_it_is_three_edits_of_the_product() -> None:
    (diff,) = blocks("diff")
    edited = re.findall(r"^\+\+\+ b/(\S+)$", diff, re.MULTILINE)
    assert sorted(edited) == [
        "processors/encoding/core.py",
        "processors/rules/decide.py",
        "processors/rules/rehearsals.py",
    ]
