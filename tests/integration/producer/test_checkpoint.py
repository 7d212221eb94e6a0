"""The resume cursor on a real MongoDB."""

import contextlib
import logging
import socket
import threading
from datetime import UTC, datetime
from typing import Any

import pymongo
import pytest
from pymongo.uri_parser import parse_uri

from producer.checkpoint import Checkpoint, FencedError
from producer.cursor import IdRange
from schemas.collections import CHECKPOINTS
from schemas.errors import ReplayError, ServiceUnreachableError, worker_exit_code

pytestmark = pytest.mark.services

NOW = datetime(2024, 5, 6, tzinfo=UTC)
WHOLE = IdRange(0, first=0, cursor=2**40, last=2**62, rows=7, reach=2**41, gaps=((5, 9), (2**33, 2**33)), gaps_to=2**40)


def test_what_is_saved_is_loaded_by_the_same_run_only(mongo_database: Any) -> None:
    Checkpoint(mongo_database, "job", 1).save(WHOLE)
    Checkpoint(mongo_database, "job", 2).save(IdRange(0, 0, 1, 2))
    Checkpoint(mongo_database, "other", 1).save(IdRange(0, 0, 0, 2, late=True))
    [loaded] = Checkpoint(mongo_database, "job", 1).load()
    assert loaded == WHOLE
    assert {type(value) for value in (loaded.cursor, loaded.last, *loaded.gaps[1])} == {int}
    assert [document["_id"] for document in mongo_database[CHECKPOINTS].find().sort("_id")] == [
        "job:1:0",
        "job:2:0",
        "other:1:0",
    ]


def test_saving_again_replaces_and_gaps_are_kept_though_not_sent_again(mongo_database: Any) -> None:
    checkpoint = Checkpoint(mongo_database, "job", 1, now=lambda: NOW)
    checkpoint.save(WHOLE)
    mongo_database[CHECKPOINTS].update_one({}, {"$set": {"gaps": [[1, 1]]}})
    further = IdRange(0, 0, 2**50, 2**62, rows=9, reach=2**51, gaps=WHOLE.gaps, gaps_to=2**40)
    checkpoint.save(further)
    [document] = mongo_database[CHECKPOINTS].find()
    assert (document["cursor"], document["rows"], document["gaps"]) == (2**50, 9, [[1, 1]]), (
        "unchanged gaps are not sent"
    )
    assert (document["updated_at"], document["done"]) == (NOW, False)
    noted = IdRange(0, 0, 2**50, 2**62, rows=9, reach=2**51, gaps=(*WHOLE.gaps, (2**45, 2**46)), gaps_to=2**50)
    checkpoint.save(noted)
    assert Checkpoint(mongo_database, "job", 1).load() == [noted]


def test_a_server_that_is_gone_is_one_line() -> None:
    client: pymongo.MongoClient[Any] = pymongo.MongoClient("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=200)
    with client:
        checkpoint = Checkpoint(client["cdp"], "job", 1, outage_max_s=0.1)
        with pytest.raises(ServiceUnreachableError, match=r"^MongoDB does not answer \(loading the cursor\)"):
            checkpoint.load()
        with pytest.raises(ReplayError, match=r"\(saving the cursor\): check MONGODB_URL") as caught:
            checkpoint.save(WHOLE)
        assert worker_exit_code(caught.value) == 1, "an outage on the way is worth another start"


def test_an_outage_is_sat_out(mongo_database: Any, mongodb_url: str) -> None:
    """The server is away behind a door that opens while `save` is trying."""
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    port = door.getsockname()[1]
    server = parse_uri(mongodb_url)["nodelist"][0]
    away: pymongo.MongoClient[Any] = pymongo.MongoClient(
        f"mongodb://127.0.0.1:{port}/?directConnection=true", serverSelectionTimeoutMS=200, heartbeatFrequencyMS=500
    )
    opened = threading.Event()

    def open_door() -> None:
        tried.wait(30)
        door.listen()
        opened.set()
        while True:
            try:
                inside, _ = door.accept()
            except OSError:
                return
            outside = socket.create_connection(server)
            for source, target in ((inside, outside), (outside, inside)):
                threading.Thread(target=pipe, args=(source, target), daemon=True).start()

    tried = threading.Event()

    class Watched(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tried.set()

    logger, handler = logging.getLogger("producer.checkpoint"), Watched()
    logger.addHandler(handler)
    opener = threading.Thread(target=open_door, daemon=True)
    opener.start()
    try:
        with away:
            Checkpoint(away[mongo_database.name], "job", 1).save(WHOLE)
        assert opened.is_set(), "it was away at first"
        assert Checkpoint(mongo_database, "job", 1).load() == [WHOLE]
    finally:
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            door.shutdown(socket.SHUT_RDWR)
        door.close()
        opener.join(10)


def pipe(source: socket.socket, target: socket.socket) -> None:
    with source, target, contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)


def test_once_another_runner_has_taken_over_nothing_is_saved_under_a_lower_number(mongo_database: Any) -> None:
    former, present = (Checkpoint(mongo_database, "job", 1, fence) for fence in (1, 2))
    other_run = Checkpoint(mongo_database, "job", 2, 1)
    head, tail = IdRange(0, 0, 10, 100), IdRange(1, 100, 150, 200)
    for checkpoint in (former, other_run):
        checkpoint.take_over()
        checkpoint.save(head)
    present.take_over()
    assert present.load() == former.load() == [head]
    with pytest.raises(FencedError, match="number 1"):
        former.save(IdRange(0, 0, 20, 100))
    with pytest.raises(FencedError):
        former.save(tail)  # one that nobody has begun yet
    assert present.load() == [head]
    present.save(IdRange(0, 0, 20, 100))
    present.save(IdRange(1, 100, 100, 200))
    assert present.load() == [IdRange(0, 0, 20, 100), IdRange(1, 100, 100, 200)]
    other_run.save(IdRange(0, 0, 30, 100))
    assert other_run.load() == [IdRange(0, 0, 30, 100)]


def test_cursors_of_an_older_release_have_no_number_and_are_taken_over(mongo_database: Any) -> None:
    Checkpoint(mongo_database, "job", 1).save(WHOLE)
    mongo_database[CHECKPOINTS].update_one({}, {"$unset": {"fence": 1}})
    present = Checkpoint(mongo_database, "job", 1, 3)
    present.take_over()
    assert present.load() == [WHOLE]
    present.save(IdRange(0, 0, 1, 2))
    assert present.load() == [IdRange(0, 0, 1, 2)]
