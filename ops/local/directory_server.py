"""A user directory for development and tests: the HTTP interface of the real one, over users from a file.

It can be made to be slow, to fail, to answer nonsense, to leave users out, or to report them deactivated: in Python by
`behave`, from anywhere by `PUT /behaviour` with the same names as JSON.
"""

import json
import threading
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from schemas.errors import BadInputError

PATH = "/private/users"
BEHAVIOUR_PATH = "/behaviour"
EMAILS_MAX = 200  # a request; more is a client that does not batch
_NAMESPACE = uuid.UUID("7d5b0c3e-6a52-4a1e-9b57-1f3f5f8f0c11")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the directory answers."""

    delay_s: float = 0.0
    status: int = HTTPStatus.OK  # any other is sent instead of an answer
    nonsense: bool = False  # 200, and a body that is no answer
    left_out: tuple[str, ...] = ()  # emails it does not know
    deactivated: tuple[str, ...] = ()  # emails of users who may not sign in any more


def sso_id_of(company_sso_id: str, email: str) -> str:
    """Return the SSO id that this directory gives a user: the same one every time."""
    return str(uuid.uuid5(_NAMESPACE, f"{company_sso_id}\n{email.lower()}"))


class DirectoryServer:
    """Serves from a thread, at `url`, inside a `with` block."""

    def __init__(self, emails: Iterable[str], host: str = "127.0.0.1", port: int = 0) -> None:
        """`emails` are the users it knows, in every company; port 0 is a free one."""
        self._emails = frozenset(email.lower() for email in emails)
        self._lock = threading.Lock()
        self._behaviour = Behaviour()
        self._requests: list[tuple[str, ...]] = []
        self._stopping = threading.Event()
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            raise BadInputError(f"port {port} on {host}: {error.strerror}", "choose another one with --port") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="user-directory", daemon=True
        )

    @property
    def url(self) -> str:
        """What USER_DIRECTORY_URL has to be."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def requests(self) -> list[tuple[str, ...]]:
        """The emails of every request so far, failed ones included."""
        with self._lock:
            return list(self._requests)

    @property
    def behaviour(self) -> Behaviour:
        """How it answers now."""
        with self._lock:
            return self._behaviour

    def behave(self, **changes: Any) -> None:
        """Change how it answers, from the next request on. Raises TypeError for a name Behaviour does not have."""
        changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
        with self._lock:
            self._behaviour = replace(self._behaviour, **changes)

    def note(self, emails: tuple[str, ...]) -> Behaviour:
        """Remember a request, and return how to answer it."""
        with self._lock:
            self._requests.append(emails)
            return self._behaviour

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the server stops."""
        self._stopping.wait(seconds)

    def answer(self, company_sso_id: str, emails: Iterable[str], behaviour: Behaviour) -> dict[str, Any]:
        """Return the body: the users it knows, in the order of the request."""
        left_out = {email.lower() for email in behaviour.left_out}
        deactivated = {email.lower() for email in behaviour.deactivated}
        return {
            "data": [
                {
                    "email": email,
                    "sso_id": sso_id_of(company_sso_id, email),
                    "status": "deactivated" if email.lower() in deactivated else "active",
                }
                for email in emails
                if email.lower() in self._emails and email.lower() not in left_out
            ]
        }

    def __enter__(self) -> Self:
        """Start serving."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; delayed requests are released."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], directory: DirectoryServer) -> None:
        self.directory = directory
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing about clients that disconnect: slow answers are there to cause time-outs."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Answer a query about users, or show how it is answered."""
        directory = self.server.directory
        url = urlsplit(self.path)
        if url.path == BEHAVIOUR_PATH:
            self._send(HTTPStatus.OK, asdict(directory.behaviour))
            return
        query = parse_qs(url.query)
        company_sso_id = "".join(query.get("company_sso_id", []))
        emails = tuple(email for part in query.get("emails", []) for email in part.split(",") if email)
        if url.path != PATH:
            self._send(HTTPStatus.NOT_FOUND, {"message": f"only {PATH} and {BEHAVIOUR_PATH} are here"})
        elif not company_sso_id or not emails or len(emails) > EMAILS_MAX:
            self._send(HTTPStatus.BAD_REQUEST, {"message": f"company_sso_id and 1 to {EMAILS_MAX} emails are needed"})
        else:
            behaviour = directory.note(emails)
            if behaviour.delay_s:
                directory.pause(behaviour.delay_s)
            if behaviour.status != HTTPStatus.OK:
                self._send(HTTPStatus(behaviour.status), {"message": "told to fail"})
            elif behaviour.nonsense:
                self._send(HTTPStatus.OK, ["nonsense"])
            else:
                self._send(HTTPStatus.OK, directory.answer(company_sso_id, emails, behaviour))

    def do_PUT(self) -> None:
        """Change the behaviour."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.server.directory.behave(**json.loads(body))
        except (ValueError, TypeError):
            names = ", ".join(asdict(Behaviour()))
            self._send(HTTPStatus.BAD_REQUEST, {"message": f"a JSON object with some of {names} is needed"})
        else:
            self._send(HTTPStatus.OK, asdict(self.server.directory.behaviour))

    def _send(self, status: HTTPStatus, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the method it replaces
        """Log no request: the URLs have emails in them."""


def read_emails(path: str) -> list[str]:
    """Return the emails in a file of users, lines as in users.jsonl. Raises BadInputError naming the broken line."""
    found: list[str] = []
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        email = json.loads(line)["email"]
                    except (ValueError, TypeError, KeyError):
                        raise BadInputError(
                            f"{path}, line {number}: no JSON object with an email", "one user a line, as in users.jsonl"
                        ) from None
                    if email:
                        found.append(str(email))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: {error}", "name a readable file with --users") from None
    return found
