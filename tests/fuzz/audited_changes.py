"""Mutated `audited_changes` through every reader and the whole transformation: `python -m tests.fuzz.audited_changes`.

Three promises are checked on each text: nothing is raised (a text is read, or it is Unreadable); the short way gives
what libyaml's way gives; and no text takes over 100 ms. Texts come from the sample rows and from generated Psych-like
ones, mutated by characters, lines, indentation, YAML's own tokens, and by splicing two of them. A seed makes a run
repeatable.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from ops.checks.file_rows import FileLookups
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformed, Transformer
from processors.rules.decide import Refused
from schemas.codec import Codec
from schemas.records import AuditEvent
from schemas.source import mapping
from schemas.source.audited_changes import Columns, Unreadable, read
from schemas.source.audited_changes.direct import read_directly
from schemas.source.audited_changes.limits import UnreadableError
from schemas.source.audited_changes.nodes import read_yaml
from schemas.source.person import placed_candidates, record_key
from schemas.vocabulary import DeadLetterCause

CPU_S_MAX = 0.1
DECLARED = {DeadLetterCause.UNDECODABLE_CHANGES, DeadLetterCause.DOCUMENT_TOO_LARGE}
TOKENS = (
    "---", "...", "- ", "- - ", "? ", ": ", ":", "  ", " ", "\n", "\n\n", "\n  ", "\t", "\r\n", "#", " # ", "&1 ",
    "*1", "! ''", "! ':a: b'", "! '12'", "! \"x\"", "! |-\n", "!ruby/object:ActiveRecord::Type::Time::Value\n",
    "!ruby/object:ActiveSupport::TimeZone\n", "  utc: 2000-01-01 02:30:00.000000000 Z\n",
    "{\"p\":\"Zm9v\",\"h\":{\"iv\":\"aXY=\",\"at\":\"YXQ=\"}}",
    "&a ", "*a", "!", "! ", "!!str ", "!!python/object/apply:os.system ", "!binary |-\n  iVBO\n", "!binary ",
    "!ruby/object:Set\n", "!ruby/object:BigDecimal 18:0.1e1", "!ruby/object:BigDecimal ",
    "!ruby/object:ActiveSupport::TimeWithZone\n", "!ruby/sym x",
    "!ruby/hash:ActiveSupport::HashWithIndifferentAccess", "!ruby/range", "!ruby/class 'X'", "|", "|-", "|2-\n",
    "|+\n", ">", ">-\n", "{", "}", "[", "]", "{}", "[]", "{a: 1}", "[1, [2]]", ",", "'", "''", "\"", "\\\"", "\\n",
    "\\x41", "\\ud83d", "\\", "<<", "<<: ", "<<: *1\n", "%TAG ! tag:x\n", "@", "`", "~", "null", "yes", "No", "on",
    ".nan", ".inf", "-.INF", "1_000", "1,000", "0x1F", "0b11", "017", "0o17", "1:30", "1:30.5", "10:20:30:40", "1e3",
    "1.5e+400", "2.5e-07", ".", "+.", "2023-02-30", "2024-2-9", "2024-01-31 17:30:00.123456789 Z",
    "2024-01-31 24:00:00 Z", "2024-01-31 17:30:00 +07:00", "-0001-01-01 00:00:00 Z", ":a", ":'a b'",
    "crm_person_id: 50001\n", "crm_person_id:\n- 1\n- 2\n", "\u2028", "\x85", "\xa0", "\ufeff", "\x00", "\x07",
    "\U0001f600", "\xe9", "9223372036854775807", "9223372036854775808", "123456789012345678901234567890",
)  # fmt: skip


class Finding(NamedTuple):
    """A text that breaks a promise."""

    what: str
    text: str


def seeds() -> list[str]:
    """Return the sample's texts: YAML and JSON."""
    return [
        text
        for name in ("audits_yaml.jsonl", "audits_jsonb.jsonl")
        for line in files("ops.local").joinpath(f"sample/{name}").read_text("utf-8").split("\n")
        if line and (text := json.loads(line)["audited_changes"])
    ]


def generated(rng: random.Random) -> str:
    """Return a small document of the forms that Psych writes, without regard to what is valid where."""
    lines = ["---"]
    for _ in range(rng.randint(1, 4)):
        key = rng.choice(
            ("name", "crm_person_id", "yes", "n", ":sym", "1", "a b", '"q"', "! ''", "! ':a: b'", "additional_fields")
        )
        form = rng.randrange(6)
        if form == 0:
            lines.append(f"{key}: {_scalar(rng)}")
        elif form == 1:
            lines += [f"{key}:", f"- {_scalar(rng)}", f"- {_scalar(rng)}"]
        elif form == 2:
            lines += [f"{key}:", f"- - {_scalar(rng)}", f"  - {_scalar(rng)}", "-"]
        elif form == 3:
            lines += [f"{key}:", f"  {_scalar(rng)}: {_scalar(rng)}", f"  inner: {_scalar(rng)}"]
        elif form == 4:
            lines += [f"{key}:", "-", f"- a: {_scalar(rng)}", "  b:", f"  - {_scalar(rng)}"]
        else:
            lines += [f"{key}: |", f"  {_scalar(rng)}", "", f"  {_scalar(rng)}"]
    return "\n".join(lines) + "\n"


def _scalar(rng: random.Random) -> str:
    form = rng.randrange(5)
    if form == 0:
        return str(rng.randint(-(10 ** rng.randint(1, 22)), 10 ** rng.randint(1, 22)))
    if form == 1:
        return "".join(rng.choice("0123456789:.-+_,eExbTZ ") for _ in range(rng.randint(1, 12)))
    if form == 2:
        inner = "".join(rng.choice("ab '\"\\:#-nyé\n") for _ in range(rng.randint(0, 8)))
        return f"'{inner}'" if rng.random() < 0.5 else f'"{inner}"'
    if form == 3:
        return rng.choice(TOKENS)
    return "".join(rng.choice("abcyesnotruff ~:#=-") for _ in range(rng.randint(1, 9)))


def mutated(rng: random.Random, texts: list[str]) -> str:
    """Return a text with one to four mutations."""
    text = generated(rng) if rng.random() < 0.3 else rng.choice(texts)
    for _ in range(rng.randint(1, 4)):
        form = rng.randrange(8)
        at = rng.randint(0, len(text))
        if form == 0:
            text = text[:at] + rng.choice(TOKENS) + text[at:]
        elif form == 1:
            text = text[:at] + text[at + rng.randint(1, 6) :]
        elif form == 2:
            text = text[:at] + chr(rng.choice((rng.randint(9, 126), rng.randint(0, 0x2FFF)))) + text[at + 1 :]
        elif form == 3:
            other = rng.choice(texts)
            text = text[:at] + other[rng.randint(0, len(other)) :]
        else:
            lines = text.split("\n")
            row = rng.randrange(len(lines))
            if form == 4:
                lines.insert(rng.randrange(len(lines)), lines[row])
            elif form == 5:
                del lines[row]
            elif form == 6:
                lines[row] = " " * rng.randint(0, 4) + lines[row].lstrip(" ")
            else:
                lines[row] += rng.choice(TOKENS)
            text = "\n".join(lines)
    return text


class Fuzzer:
    """Holds what every text is run against."""

    def __init__(self) -> None:
        """The sample CRM's mapping."""
        self._mapping = mapping.load(None)
        self._transformer = Transformer(self._mapping, "fuzz")
        self._lookups = FileLookups("fuzz", None, {})
        self._rows = RowEncoder(Transformer(self._mapping, "fuzz"), self._lookups, Codec(), fast=True)

    def finding(self, text: str, is_json: bool, number: int) -> Finding | None:
        """Return what is wrong with how `text` is handled, None if nothing is."""
        spent = 0.0
        for _ in range(3):  # once, unless it was slow: the machine can have been, but not three times
            began = time.thread_time()
            try:
                wrong = self._wrong(text, is_json, number)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong is not None:
                return Finding(wrong, text)
            spent = time.thread_time() - began
            if spent <= CPU_S_MAX:
                return None
        return Finding(f"took {spent * 1000:.0f} ms", text)

    def _wrong(self, text: str, is_json: bool, number: int) -> str | None:
        result = read(text, is_json)
        if not is_json and (direct := read_directly(text)) is not None:
            try:
                values, refused = read_yaml(text, frozenset())
            except UnreadableError as error:
                return f"the short way reads what libyaml does not: {error}"
            if refused or repr(values or {}) != repr(direct):
                return f"the short way reads {direct!r}, libyaml {values!r}"
        action = ("create", "update", "destroy")[number % 3]
        event = AuditEvent(
            number + 1, 0, 0, "Crm::Deal", 1, "Crm::Person", 7, "User", 1, "", action, text, is_json, 1, "", ""
        )
        rule = self._mapping.person
        first = next(iter(placed_candidates(event, rule, result.values if isinstance(result, Columns) else {})))
        if (key := record_key(event, rule)) != first:
            return f"the record key is {key}, the first person {first}"
        outcome = self._transformer.transform(event, self._lookups)
        fast = self._rows.document(event)
        if fast != (documents.encode(outcome.document) if isinstance(outcome, Transformed) else outcome):
            return "the fast way gives something else"
        if isinstance(outcome, Transformed):
            return None if isinstance(result, Columns) else "unreadable, and yet a document"
        if isinstance(outcome, Refused) and outcome.cause in DECLARED and isinstance(result, Unreadable):
            return None
        return f"an outcome that was not declared: {outcome}"


def texts(count: int, seed: int) -> Iterator[tuple[str, bool]]:
    """Yield `count` mutated texts, and whether each is read as JSON."""
    rng = random.Random(seed)
    sources = seeds()
    for _ in range(count):
        yield mutated(rng, sources), rng.random() < 0.1


def main() -> int:
    """Run, print findings and the rate; 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=int, default=10, help="stop after this many")
    options = parser.parse_args()
    fuzzer = Fuzzer()
    found = 0
    began = time.monotonic()
    number = 0
    for number, (text, is_json) in enumerate(texts(options.count, options.seed), start=1):
        if (finding := fuzzer.finding(text, is_json, number)) is not None:
            found += 1
            print(f"text {number}: {finding.what}\n{finding.text!r}", flush=True)  # noqa: T201 - a command
            if found >= options.findings:
                break
        if number % 100_000 == 0:
            print(f"{number} texts, {number / (time.monotonic() - began):.0f}/s, {found} findings", flush=True)  # noqa: T201
    print(f"seed {options.seed}: {number} texts, {found} findings")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
