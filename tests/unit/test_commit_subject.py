"""The form of a commit's subject, as the hook checks it."""

import pytest

from tests.support.commit_subject import complaint_about


@pytest.mark.parametrize("subject", ["sink: count each row once", "processors, sink: say which partition is held up"])
def test_a_subject_names_its_area_and_says_what_is_done(subject: str) -> None:
    assert complaint_about(f"{subject}\n\nWhy.\n") is None


@pytest.mark.parametrize(
    ("subject", "wrong"),
    [
        ("count each row once", "another form"),
        ("Sink: count each row once", "another form"),
        ("sink: count each row once.", "another form"),
        ("sink: " + "x" * 80, "86 characters: 72 at most"),
        ("", "another form"),
    ],
)
def test_any_other_is_refused(subject: str, wrong: str) -> None:
    assert wrong in (complaint_about(subject) or "")
