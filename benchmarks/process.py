"""Peers as processes: started, asked, stopped while they are not asked."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Seconds after which a peer that says nothing is ended: compiling a training step takes torch.compile a minute or two.
PATIENCE = 400.0


class Peer:
    """A worker process. It runs while it is asked, and is stopped between: its threads that wait in loops, and whatever
    it does in the background, would take processors from the peer whose turn it is."""

    def __init__(self, name: str, threads: int, environment: Mapping[str, str] | None = None) -> None:
        self.name, self.threads = name, threads
        # Inductor's own pool of compiling processes would go on beside us.
        self.environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.imported = 0

    def ask(self, **command: Any) -> dict[str, Any]:
        """The worker's answer; an error among others, if it died or said nothing for too long."""
        if self.process is None or self.process.poll() is not None:
            if "repeat" in command or "peak" in command:
                return {"error": "the process ended"}
            started = self.start()
            if "error" in started:
                return started
        assert self.process is not None and self.process.stdin is not None
        self._signal("SIGCONT")
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, OSError):
            return {"error": "the process ended"}
        answer = self._answer()
        self._signal("SIGSTOP")
        return answer

    def start(self) -> dict[str, Any]:
        """A fresh process, until it has imported its peer."""
        self.close()
        command = [sys.executable, "-m", "benchmarks.worker", self.name, str(self.threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
            bufsize=0,
            cwd=Path(__file__).resolve().parents[1],
        )
        answer = self._answer()
        self.imported = answer.get("imported", 0)
        self._signal("SIGSTOP")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        line, end = b"", time.monotonic() + PATIENCE
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.close()
                return {"error": f"no answer in {PATIENCE:.0f} s"}
            part = self.process.stdout.read(1 << 16)
            if not part:
                self.process.wait()
                return {"error": "the process ended"}
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, name: str) -> None:
        if self.process is not None and hasattr(signal, name) and self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(getattr(signal, name))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None
