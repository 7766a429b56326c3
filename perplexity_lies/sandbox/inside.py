"""What runs inside the sandbox. Two processes, each shut in by itself, that speak over two pipes:

    candidate   has prompt and completion; answers calls of the entry point with plain data
    checker     has the test; calls the entry point through the pipe, and alone can write a verdict

The program under test never sees the test, the verdict's pipe, or the checker's memory: it can pass only by answering
right. What it returns is rebuilt from plain data, so that an object that claims to equal everything is no answer.

    python -I -S inside.py ROLE HOW ROOT PARENT READ WRITE VERDICT CPU_S      with a JSON job on stdin
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
import time
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

LONGEST_LINE = 16 << 20
SMALL = 1 << 53
PLAIN_KINDS: tuple[Any, ...] = (tuple, set, frozenset, deque)


class NotPlain(Exception):
    """A value that is no plain data."""


class TimedOut(BaseException):
    """The time limit of a program."""


def pack(value: Any) -> Any:
    """A value as JSON that `unpack` rebuilds: types by tag, numbers exactly. Raises NotPlain for objects."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        plain = int.__index__(value)
        return plain if -SMALL < plain < SMALL else {"int": hex(plain)}
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if isinstance(value, list):
        return [pack(one) for one in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(one)] for key, one in dict.items(value)]}
    for kind in PLAIN_KINDS:
        if isinstance(value, kind):
            return {kind.__name__: [pack(one) for one in kind.__iter__(value)]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: bytes(value).hex()}
    if type(value) is complex:
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if type(value) is Fraction:
        return {"Fraction": [hex(value.numerator), hex(value.denominator)]}
    if type(value) is Decimal:
        return {"Decimal": str(value)}
    if type(value) is range:
        return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
    if type(value).__name__ in ("dict_keys", "dict_values"):
        return {type(value).__name__: [pack(one) for one in value]}
    if hasattr(value, "__next__"):
        return {"iterator": [pack(one) for one in value]}
    raise NotPlain(f"{type(value).__name__} is no plain data")


def unpack(value: Any) -> Any:
    """The value that `pack` packed."""
    if isinstance(value, list):
        return [unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    ((name, held),) = value.items()
    rebuild = {
        "int": lambda: int(held, 16),
        "float": lambda: float.fromhex(held),
        "dict": lambda: {unpack(key): unpack(one) for key, one in held},
        "tuple": lambda: tuple(unpack(held)),
        "set": lambda: set(unpack(held)),
        "frozenset": lambda: frozenset(unpack(held)),
        "deque": lambda: deque(unpack(held)),
        "bytes": lambda: bytes.fromhex(held),
        "bytearray": lambda: bytearray.fromhex(held),
        "complex": lambda: complex(*map(float.fromhex, held)),
        "Fraction": lambda: Fraction(*(int(part, 16) for part in held)),
        "Decimal": lambda: Decimal(held),
        "range": lambda: range(*(int(part, 16) for part in held)),
        "dict_keys": lambda: dict.fromkeys(unpack(held)).keys(),
        "dict_values": lambda: dict(enumerate(unpack(held))).values(),
        "iterator": lambda: iter(unpack(held)),
    }
    return rebuild[name]()


class Wire:
    """Lines of JSON over two descriptors."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._held = read, write, bytearray()

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._write, data) :]

    def receive(self) -> Any:
        """The next message; raises EOFError where the other side is gone or says too much."""
        while b"\n" not in self._held[-65536:]:
            more = os.read(self._read, 65536)
            if not more or len(self._held) > LONGEST_LINE:
                raise EOFError("the program ended, or said too much, before it answered")
            self._held += more
        line, _, rest = bytes(self._held).partition(b"\n")
        self._held = bytearray(rest)
        return json.loads(line)


def as_candidate(job: dict[str, Any], wire: Wire) -> None:
    """Run prompt and completion, then answer calls until the checker is gone."""
    wire.send({"up": True})
    wire.receive()
    scope: dict[str, Any] = {}
    try:
        exec(compile(job["prompt"] + job["completion"] + "\n", "<string>", "exec"), scope)
        function = scope[job["entry_point"]]
    except BaseException as error:
        wire.send(_raised(error))
        return
    wire.send({"ready": True})
    while True:
        call = wire.receive()
        args, named = unpack(call["args"]), unpack(call["named"])
        try:
            answer = {"answer": pack(function(*args, **named)), "args": pack(args)}
        except BaseException as error:
            answer = _raised(error)
        wire.send(answer)


def _raised(error: BaseException) -> dict[str, str]:
    return {"raised": type(error).__name__, "text": str(error)[:300]}


def _raise(answer: dict[str, str]) -> NoReturn:
    """The program's exception, as far as Python itself has it."""
    kind = getattr(builtins, str(answer["raised"]), None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise RuntimeError(f"{answer['raised']}: {answer['text']}")
    try:
        error = kind(answer["text"])
    except TypeError:
        error = RuntimeError(f"{answer['raised']}: {answer['text']}")
    raise error


def _restore(given: tuple[Any, ...], after: Any) -> None:
    """Give the checker's own arguments the changes that the program made to them in place."""
    for mine, theirs in zip(given, after, strict=True):
        if isinstance(mine, list) and isinstance(theirs, list):
            mine[:] = theirs
        elif isinstance(mine, dict | set) and type(mine) is type(theirs):
            mine.clear()
            mine.update(theirs)


def checked_verdict(job: dict[str, Any], wire: Wire) -> str:
    """The verdict in evalscope's words: `passed`, `timed out`, `failed: ...`."""
    begun = time.monotonic()

    def proxy(*args: Any, **named: Any) -> Any:
        wire.send({"args": pack(list(args)), "named": pack(named)})
        answer = wire.receive()
        if "raised" in answer:
            _raise(answer)
        value = unpack(answer["answer"])
        _restore(args, unpack(answer["args"]))
        return value

    def ring(*_: Any) -> None:
        raise TimedOut

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, job["timeout_s"])
    try:
        wire.send({"start": True})
        whole = f"{job['prompt']}{job['completion']}\n{job['test']}\ncheck({job['entry_point']})"
        compile(whole, "<string>", "exec")
        ready = wire.receive()
        if "raised" in ready:
            _raise(ready)
        scope: dict[str, Any] = {}
        exec(compile(job["prompt"], "<string>", "exec"), scope)
        scope[job["entry_point"]] = proxy
        exec(compile(f"{job['test']}\ncheck({job['entry_point']})", "<string>", "exec"), scope)
    except TimedOut:
        return "timed out"
    except BaseException as error:
        return f"failed: {str(error)[:300]}" if time.monotonic() - begun < job["timeout_s"] else "timed out"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "passed" if time.monotonic() - begun < job["timeout_s"] else "timed out"


def as_checker(job: dict[str, Any], wire: Wire, verdict: int) -> None:
    """Wait until the candidate is shut in, then check it; only this process holds `verdict`."""
    try:
        wire.receive()
    except (EOFError, ValueError):
        return
    keep = os.write
    keep(verdict, json.dumps({"result": checked_verdict(job, wire)}).encode() + b"\n")


def enter_role() -> None:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import confine  # type: ignore[import-not-found]

    sys.path.pop(0)
    role, how, root, parent, read, write, verdict, cpu_s = sys.argv[1:9]
    job = json.load(sys.stdin)
    try:
        confine.refuse_machine()
        confine.die_with_parent()
        if how == "namespaces":
            if os.getppid() != int(parent):
                os._exit(1)
            was_root = confine.enter_namespaces()
            if child := os.fork():
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
            from pathlib import Path

            confine.enter_root(Path(root), os.path.dirname(os.__file__))
            confine.drop_powers(was_root=was_root)
            confine.die_with_parent()
            if child := os.fork():
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
            confine.die_with_parent()
        else:
            confine.drop_powers(was_root=False)
        os.chdir("/tmp")
        confine.limit(int(cpu_s))
        confine.filter_calls()
    except (confine.CannotConfine, OSError) as error:
        print(f"cannot be shut in: {error}", file=sys.stderr)
        os._exit(97)
    os.dup2(1, 2)
    sys.argv[1:] = []
    wire = Wire(int(read), int(write))
    as_candidate(job, wire) if role == "candidate" else as_checker(job, wire, int(verdict))
    os._exit(0)


if __name__ == "__main__":
    enter_role()
