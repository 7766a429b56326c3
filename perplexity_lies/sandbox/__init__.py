"""Runs code that a checkpoint wrote, shut in: bubblewrap where it works here, else namespaces of our own, else not at all.

    box = find_sandbox()                       # Sandbox(name="namespaces", ...); raises MissingError where there is none
    run_programs(box, [Program(...)], advance)        # [Judgement(result="passed", seconds=0.09)]

Each program gets two processes (see `inside`): one with the completion, one with the test. Both have no network, no files
but the standard library and an empty folder, no environment, no child processes, and limits on time, memory and files.
"""

from __future__ import annotations

import functools
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from perplexity_lies.errors import MissingError
from perplexity_lies.sandbox.confine import (
    FILE_BYTES,
    FOLDER_BYTES,
    MEMORY_BYTES,
    OPEN_FILES,
    hidden_folders,
    library_links,
    readable_folders,
)

STARTING_S = 30.0
"""Seconds that both processes may take to start on a busy machine, beside the time limit."""
LONGEST_VERDICT = 1 << 16
SANDBOX_FOLDER = Path(__file__).parent
KINDS = ("bubblewrap", "namespaces")

TRIAL_PROGRAM = """def leaks():
    import os, socket
    found = []
    def tried(name, attempt):
        try:
            attempt()
        except Exception:
            return
        found.append(name)
    tried("network", lambda: socket.create_connection(("127.0.0.1", 9), 1))
    tried("socket", lambda: socket.socket())
    tried("fork", os.fork)
    tried("files", lambda: os.listdir(%r))
    tried("harness", lambda: __import__("perplexity_lies"))
    tried("processes", lambda: os.listdir("/proc"))
    tried("writing", lambda: open("/left", "w"))
    tried("root", lambda: os.setuid(0) if os.getuid() else 1 / 0)
    return found + sorted(set(os.environ) - {"LC_CTYPE", "PWD"})
"""


class SandboxError(Exception):
    """The sandbox itself failed: this says nothing about the program."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A way to shut programs in that was tried out on this machine."""

    name: str
    """`bubblewrap` or `namespaces`."""

    def describe(self) -> dict[str, str | int]:
        """For a run's manifest."""
        return {
            "sandbox": self.name, "python": sys.version.split()[0], "memory_bytes": MEMORY_BYTES,
            "file_bytes": FILE_BYTES, "folder_bytes": FOLDER_BYTES, "open_files": OPEN_FILES, "processes": 1,
            "network": "none", "packages": "standard library",
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is judged: prompt + completion is the program, `test` defines `check`, which gets the entry point."""

    prompt: str
    completion: str
    test: str
    entry_point: str
    timeout_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a program."""

    result: str
    """`passed`, `timed out`, or `failed: ` and why."""
    seconds: float
    """From start to end, starting included."""

    @property
    def passed(self) -> bool:
        return self.result == "passed"


def _command(kind: str, script: Path) -> list[str]:
    """How Python is started inside a sandbox of this kind."""
    python = [sys.executable, "-I", "-S"]
    if kind == "namespaces":
        return [*python, str(script)]
    library = os.path.dirname(os.__file__)
    folders = [f"{sys.base_prefix}/lib"] if not sys.base_prefix.startswith("/usr") else []
    real = os.path.realpath(sys.executable)
    binds = [(folder, folder) for folder in (*readable_folders(library), *folders, real)]
    return [
        shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv",
        "--cap-drop", "ALL",
        *(word for source, target in binds for word in ("--ro-bind", source, target)),
        *(word for link, to in library_links() for word in ("--symlink", to, link)),
        *(word for hidden in hidden_folders(library) for word in ("--size", "4096", "--tmpfs", hidden, "--remount-ro", hidden)),
        "--ro-bind", str(SANDBOX_FOLDER), "/sandbox", "--size", str(FOLDER_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp",
        "--remount-ro", "/",
        real, "-I", "-S", "/sandbox/inside.py",
    ]  # fmt: skip


def run_program(box: Sandbox, program: Program) -> Judgement:
    """Judge one program. Raises SandboxError where a process could not be shut in, which is no verdict."""
    begun = time.monotonic()
    calls, answers, verdict = os.pipe(), os.pipe(), os.pipe()
    ends = {"candidate": (calls[0], answers[1], -1), "checker": (answers[0], calls[1], verdict[1])}
    job = {field: getattr(program, field) for field in ("prompt", "completion", "entry_point", "timeout_s")}
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="plies-sandbox-", ignore_cleanup_errors=True) as root:
        os.chmod(root, 0o755)
        try:
            for role, mine in ends.items():
                told = [role, box.name, root, str(os.getpid()), *map(str, mine), str(int(program.timeout_s) + 2)]
                started = subprocess.Popen(
                    [*_command(box.name, SANDBOX_FOLDER / "inside.py"), *told],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    pass_fds=[end for end in mine if end >= 0], env={}, cwd="/", start_new_session=True,
                )  # fmt: skip
                processes.append(started)
                whole = job if role == "candidate" else {**job, "test": program.test}
                assert started.stdin is not None
                with suppress(BrokenPipeError), started.stdin as stdin:
                    stdin.write(json.dumps(whole).encode())
            for end in (*calls, *answers, verdict[1]):
                os.close(end)
            text = _read(verdict[0], begun + program.timeout_s + STARTING_S)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            os.close(verdict[0])
        if not text:
            raise SandboxError(_why(processes))
        for process in processes:
            assert process.stderr is not None
            process.stderr.close()
    return Judgement(str(json.loads(text)["result"]), time.monotonic() - begun)


def _why(processes: Sequence[subprocess.Popen[bytes]]) -> str:
    """What the processes said on stderr, the last of it."""
    said = []
    for process in processes:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        with process.stderr as stream:
            said.append((stream.read(4000) or b"").decode(errors="replace").strip())
    return next((text.splitlines()[-1] for text in said if text), "a process of the sandbox ended without a verdict")


def _read(end: int, until: float) -> bytes:
    """What the checker writes, to its end or to a deadline."""
    held = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(end, selectors.EVENT_READ)
        while b"\n" not in held and len(held) < LONGEST_VERDICT:
            if not waiting.select(max(0.0, until - time.monotonic())):
                return b""
            more = os.read(end, 4096)
            if not more:
                break
            held += more
    return held


def run_programs(
    box: Sandbox, programs: Sequence[Program], advance: Callable[[int], None]
) -> list[Judgement | SandboxError]:
    """Judge programs on all cores, in their order; `advance(1)` after each. A failure of the sandbox stands in its place."""

    def one(program: Program) -> Judgement | SandboxError:
        try:
            return run_program(box, program)
        except SandboxError as error:
            return error
        finally:
            advance(1)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(one, programs))


def _try_out(kind: str) -> str:
    """Why this kind of sandbox is not used here; empty where a program in it could do no harm."""
    if kind == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    probe = Program(
        prompt="", completion=TRIAL_PROGRAM % str(SANDBOX_FOLDER), entry_point="leaks", timeout_s=10,
        test="def check(candidate):\n    found = candidate()\n    assert not found, found",
    )  # fmt: skip
    try:
        result = run_program(Sandbox(kind), probe).result
    except (SandboxError, OSError) as error:
        return str(error)[:200]
    return "" if result == "passed" else f"the trial program could still do this: {result[:200]}"


@functools.lru_cache(maxsize=1)
def _sandboxes() -> tuple[str, tuple[str, ...]]:
    """The kind that works, or an empty text, and why the kinds before it do not."""
    reasons: list[str] = []
    for kind in KINDS:
        why = _try_out(kind)
        if not why:
            return kind, tuple(reasons)
        reasons.append(f"{kind}: {why}")
    return "", tuple(reasons)


def find_sandbox() -> Sandbox:
    """The sandbox of this machine, tried out with a program that attempts to get out.

    Raises MissingError, with each kind's reason, where none holds: code is then never run.
    """
    kind, reasons = _sandboxes()
    if not kind:
        raise MissingError(
            "code of a checkpoint cannot be run here: no sandbox holds", found=reasons,
            mend=("apt-get install bubblewrap", "the same without --run-code: the rest of the suite is measured"),
        )  # fmt: skip
    return Sandbox(kind)
