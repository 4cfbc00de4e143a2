"""The parent's side of a worker process: started on the first request, stopped (SIGSTOP) between requests."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class WorkerFailed(Exception):
    """A worker ended, timed out or reported an error; the message is one sentence."""


class WorkerProcess:
    """Sends requests to a worker; after a failure the next request starts a new process.

    Args:
        log: the file for the worker's standard error.
    """

    def __init__(self, name: str, threads: int, log: Path) -> None:
        self.name, self.threads, self.log = name, threads, log
        self._process: subprocess.Popen[bytes] | None = None

    def request(self, seconds: float, /, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer.

        Args:
            seconds: timeout.

        Raises:
            WorkerFailed: no answer, or an error.
        """
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        process.send_signal(signal.SIGCONT)
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = _read_line(process.stdout.fileno(), seconds)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self.close()
            raise WorkerFailed(f"no answer within {seconds:.0f} s") from None
        if not line:
            raise WorkerFailed(self._exit_reason())
        process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            threads = str(self.threads)
            names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", f"{__package__}.worker", self.name, threads],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=os.environ | dict.fromkeys(names, threads) | {"PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C reaches only the parent, which then ends its workers
                )
        return self._process

    def _exit_reason(self) -> str:
        """How the process ended, and the last line of its log."""
        assert self._process is not None
        code = self._process.wait()
        self.close()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        written = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return f"its process ended with {how}" + (f": {written[-1].strip()[:200]}" if written else "")


def _read_line(descriptor: int, seconds: float) -> bytes:
    """A line, or b"" at the end of the stream; raises TimeoutError after ``seconds``."""
    end = time.monotonic() + seconds
    parts: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not parts or not parts[-1].endswith(b"\n"):
            if not selector.select(max(0.0, end - time.monotonic())):
                raise TimeoutError
            part = os.read(descriptor, 1 << 16)
            if not part:
                return b""
            parts.append(part)
    return b"".join(parts)
