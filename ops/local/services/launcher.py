"""Starts one server so that it outlives its starter. A script for `detached.start`; needs the standard library only.

usage: python -I -S launcher.py '{"argv": [...], "process_file": ..., "log": ..., "cwd": ..., "uid": ..., "gid": ...}'

The server's own process records its id and start mark *before* it becomes the server. So even if the starter is killed
at any point, the next `up` or `down` knows of every running server.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def start_mark(pid: int) -> str | None:
    """Return the identity of this process among those with the same id; None if it has ended (a zombie has).

    On Linux the boot and the clock tick it was forked in: `exec` changes neither. A process that is killed ends thread
    by thread, and until the last one has ended it holds its ports and its files.
    """
    if sys.platform != "linux":
        return _start_mark_by_ps(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold spaces and parentheses
    first_thread, threads = fields[0], int(fields[17])  # a zombie's own is counted too
    return None if first_thread in "ZX" and threads <= 1 else f"{boot}/{fields[19]}"


def _start_mark_by_ps(pid: int) -> str | None:
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _become(spec: dict[str, Any]) -> None:
    os.setsid()
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    process_file = Path(spec["process_file"])
    partial = process_file.with_suffix(".partial")
    partial.write_text(json.dumps({"pid": os.getpid(), "mark": start_mark(os.getpid())}))
    partial.replace(process_file)
    os.chdir(spec["cwd"])
    if spec["uid"] is not None:
        os.setgroups([])
        os.setgid(spec["gid"])
        os.setuid(spec["uid"])
    os.execv(spec["argv"][0], spec["argv"])  # noqa: S606 - no shell is the point


def main() -> int:
    """Start the server; 0 once it has been exec'ed, else 1 with the reason on standard output."""
    spec = json.loads(sys.argv[1])
    reader, writer = os.pipe()  # closed by a successful exec: an end of file without data means success
    if os.fork() == 0:
        try:
            _become(spec)
        except OSError as error:
            os.write(writer, f"{error.filename or spec['argv'][0]}: {error.strerror}".encode())
        os._exit(127)
    os.close(writer)
    with os.fdopen(reader) as answer:
        problem = answer.read()
    print(problem, end="")  # noqa: T201 - this is how it answers
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
