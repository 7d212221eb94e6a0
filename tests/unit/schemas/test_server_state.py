"""Which of MongoDB's error codes are an outage."""

import pytest
from pymongo import helpers_shared

from schemas.server_state import is_outage, is_server_state
from sink.writer import REFUSED_FOR_A_DOCUMENT


class AnsweredError(Exception):
    def __init__(self, code: int | None) -> None:
        super().__init__("a server's error")
        self.code = code


def test_what_the_driver_itself_writes_again_is_an_outage() -> None:
    assert all(is_outage(AnsweredError(code)) for code in helpers_shared._RETRYABLE_ERROR_CODES)


@pytest.mark.parametrize("code", [*sorted(REFUSED_FOR_A_DOCUMENT), 1, 8, 20, 61, 66, 121, 257, 388, 11000, 17280, None])
def test_what_may_be_about_the_document_is_not(code: int | None) -> None:
    assert not is_server_state(AnsweredError(code))
    assert not is_server_state({"index": 0, "code": code})


def test_who_is_not_let_in_has_to_be_let_in_by_an_operator() -> None:
    assert not is_outage(AnsweredError(13))
    assert is_server_state({"index": 0, "code": 13})
