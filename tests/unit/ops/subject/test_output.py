"""The file that a certificate or an export goes to."""

from pathlib import Path

import pytest

from ops.cli.subject import _writer
from schemas.errors import BadInputError


def test_a_file_is_there_only_if_all_was_written(tmp_path: Path) -> None:
    file = tmp_path / "certificate.json"

    def refused() -> None:
        with _writer(str(file)) as out:
            out.write("{")
            raise BadInputError("a run is in progress", "purge when it has ended")

    with pytest.raises(BadInputError, match="a run is in progress"):
        refused()
    assert not file.exists()
    with _writer(str(file)) as out:
        out.write("{}")
    assert file.read_text() == "{}"
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadInputError, match="exists already"), _writer(str(file)):
        pass
    assert file.read_text() == "{}"
