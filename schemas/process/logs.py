"""The log of every process: one JSON object a line, bound to job and account, without personal data.

Code logs through `logging`; `configure` sets the format. Personal data is kept out twice: no content of a row is passed
to a logger, and `scrub` removes what a library's message may contain (addresses, numbers, credentials, values in a
server's error). `CRM_REPLAY_LOG_FORMAT=text` is for a shell.
"""

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog

from schemas.compiled import COMPILED, hot_paths
from schemas.errors import BadInputError, ReplayError
from schemas.secrets import without_secrets

FORMAT_VARIABLE, LEVEL_VARIABLE = "CRM_REPLAY_LOG_FORMAT", "CRM_REPLAY_LOG_LEVEL"
FORMATS = ("json", "text")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
TEXT_MAX = 2_000  # characters of one value: a line is read by people and stored at a price
# These log whole commands, documents and messages at DEBUG, and what an operator needs at WARNING.
CHATTY = ("aiokafka", "faust", "mode", "httpx", "httpcore", "urllib3", "opentelemetry", "asyncio")
NEVER_BELOW_INFO = ("pymongo", "psycopg", "aiokafka", "faust", "httpx", "httpcore")
# Fields with a row's content; our code passes none, and none is logged.
PERSONAL_KEYS = frozenset(
    ("payload", "fields", "changes", "audited_changes", "comment", "document", "value", "name", "full_name", "email",
     "phone", "username", "from", "to", "remote_address")
)  # fmt: skip
# The message of these contains the invalid value, which may be personal.
WITHHELD = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)

PERCENT = "%(?:25){0,2}"  # percent-encoded once or several times
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)\b(password|passwd|pwd|secret|token|api[_-]?key)(: +)(?!\[)\S+"), r"\1\2[secret]"),
    (re.compile(rf"(?<![\w.+%-])[\w.+%-]{{1,256}}(?:@|{PERCENT}40)[\w-]{{1,64}}(?:\.[\w-]{{1,64}})+"), "[email]"),
    (re.compile(rf"(?<![\w/:.-])(?:(?:\+|{PERCENT}2[Bb])\d|0(?=[1-9]))(?:[\d ().-]|{PERCENT}2\d){{7,}}\d"), "[phone]"),
    # A URL's query, as HTTP clients log it: it names people, percent-encoded, in any parameter.
    (re.compile(r"\?[\w.%\[\]-]+=[^\s\"'<>]*"), "?[query]"),
    (re.compile(r"(?i)\bKey \(([^)]*)\)=\(.*?\)(?= |$|\.)"), r"Key (\1)=([value])"),
    (re.compile(r"(?i)\bdup key: \{.*\}"), "dup key: {[value]}"),
    (re.compile(r"(?is)\b(DETAIL|CONTEXT|full error|op|errInfo)\b\s*[:=].*"), r"\1: [withheld]"),
)  # fmt: skip

_bound: dict[str, object] = {}  # of this process: the same for all of its threads


def scrub(text: str) -> str:
    """Return a text without addresses, phone numbers, credentials and the values in a server's error."""
    length = len(text)
    if length > TEXT_MAX:  # at a word boundary: the rules do not match a truncated address
        text = text[:TEXT_MAX].rsplit(None, 1)[0]
    text = without_secrets(text)
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text if length <= TEXT_MAX else f"{text}… ({length:,} characters)"


def describe(error: BaseException) -> str:
    """Return an exception's type and message, without personal data."""
    name = type(error).__name__
    if isinstance(error, ReplayError):
        return f"{name}: {scrub(str(error))}"
    return f"{name}: [withheld]" if isinstance(error, WITHHELD) else f"{name}: {scrub(str(error))}"


def bind(**context: object) -> None:
    """Add fields to every later line of this process; one that is None or empty is removed."""
    for name, value in context.items():
        if value in (None, ""):
            _bound.pop(name, None)
        else:
            _bound[name] = value


def configure(process: str, *, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Log to `stream` (default: standard error), with format and level from the environment.

    Raises BadInputError for an unknown format or level.
    """
    form = environ.get(FORMAT_VARIABLE) or "json"
    level = environ.get(LEVEL_VARIABLE) or "INFO"
    if form not in FORMATS:
        raise BadInputError(f"{FORMAT_VARIABLE}={form}", f"one of {', '.join(FORMATS)}")
    if level not in LEVELS:
        raise BadInputError(f"{LEVEL_VARIABLE}={level}", f"one of {', '.join(LEVELS)}")
    bind(process=process, worker=environ.get("CRM_REPLAY_WORKER"))
    stream = stream or sys.stderr
    json_lines = structlog.processors.JSONRenderer(ensure_ascii=not is_utf8(stream))
    renderer: Any = json_lines if form == "json" else _text
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _clean, renderer],
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            ],
        )
    )
    root = logging.getLogger()
    for present in root.handlers[:]:
        root.removeHandler(present)
    root.addHandler(handler)
    root.setLevel(level)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level) if level != "DEBUG" else logging.INFO)
    for name in NEVER_BELOW_INFO:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger(name).level))
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda raised: _uncaught(
        raised.exc_type, raised.exc_value or raised.exc_type(), raised.exc_traceback
    )
    if hot_paths() != COMPILED:
        logging.getLogger(__name__).info("hot paths: %s", hot_paths())


def is_utf8(stream: TextIO) -> bool:
    """Return whether a stream can encode every character; one without an encoding (in memory) can."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an uncaught exception: Python's default prints its message, which may be personal."""
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("ended by %s", describe(error), exc_info=(kind, error, trace))


def _clean(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the process's context; remove personal data; an exception becomes its type, message and frames."""
    raised = event.pop("exc_info", None)
    found: dict[str, Any] = {"time": event.pop("time", None), "level": event.pop("level", None)}
    found["event"] = scrub(str(event.pop("event", "")))
    found |= _bound
    if (trace_id := event.pop("trace_id", None)) is not None:
        found["trace_id"] = trace_id  # not scrubbed: its digits could match as a phone number
    for name, value in event.items():
        found[name] = "[withheld]" if name in PERSONAL_KEYS else _scrubbed(value)
    if raised:
        error = raised[1] if isinstance(raised, tuple) else raised if isinstance(raised, BaseException) else None
        error = error or sys.exc_info()[1]
        if error is not None:
            found["error"] = describe(error)
            found["where"] = _places(error.__traceback__)
            if (cause := error.__cause__) is not None:
                found["cause"] = describe(cause)
    return found


def _scrubbed(value: Any) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        return {
            str(name): "[withheld]" if str(name) in PERSONAL_KEYS else _scrubbed(inner) for name, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_scrubbed(inner) for inner in value]
    return describe(value) if isinstance(value, BaseException) else scrub(str(value))


def _places(trace: TracebackType | None) -> list[str]:
    """Return file, line and function of each frame, the innermost last; no source text, no local values."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)[-12:]]


def _text(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """Return a human-readable line."""
    time, level, text = event.pop("time", ""), str(event.pop("level", "")), event.pop("event", "")
    event.pop("logger", None)
    rest = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("job_id", "account"))
    return f"{time} {level:<7} {text}  {rest}".rstrip()


def last_event(line: str) -> str:
    """Return the readable part of a line of a process's log: the event of a JSON line, any other line unchanged."""
    if not line.startswith("{"):
        return line
    try:
        found = json.loads(line)
    except ValueError:
        return line
    return str(found.get("event", line)) if isinstance(found, dict) else line
