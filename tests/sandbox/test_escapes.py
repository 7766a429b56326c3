"""Programs that try to get out of the sandbox, or to pass without answering right. Each must do no harm and fail."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from perplexity_lies.errors import MissingError
from perplexity_lies.sandbox import Program, Sandbox, find_sandbox, run_program, run_programs
from perplexity_lies.sandbox.confine import FILE_BYTES

PROMPT = 'def double(x):\n    """Twice x."""\n'
TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate([1]) == [1, 1]\n"
RIGHT = "    return x * 2\n"


@pytest.fixture(scope="module")
def box() -> Sandbox:
    try:
        return find_sandbox()
    except MissingError as error:
        pytest.skip(str(error))


def program(body: str, timeout_s: float = 1.0, test: str = TEST) -> Program:
    return Program(prompt=PROMPT, completion=body, test=test, entry_point="double", timeout_s=timeout_s)


def succeeds(attempt: str) -> str:
    """A program that answers right only where an attempt, an expression or a statement, goes through."""
    lines = "\n".join(f"    {line}" for line in attempt.splitlines())
    return f"    return attempt() * 0 + x * 2 if False else (attempt(), x * 2)[1]\n\ndef attempt():\n{lines}\n    return 1\n"


ATTEMPTS = {
    "connect to the network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "dns": "import socket\nsocket.getaddrinfo('example.org', 80)",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('UNIX')",
    "read home": "import os\nos.listdir(os.path.expanduser('~'))",
    "read the home": "import os\nassert [n for n in os.listdir('HOME') if os.path.isfile(f'HOME/{n}')]",
    "read the harness": "open('HARNESS').read()",
    "read the secret file": "open('SECRET').read()",
    "read passwd": "open('/etc/passwd').read()",
    "environment": "import os\nos.environ['PLIES_SECRET']",
    "environment of the parent": "open('/proc/1/environ').read()",
    "memory of others": "open('/proc/self/mem', 'rb+')",
    "processes": "import os\nos.listdir('/proc')",
    "write to the root": "open('/left', 'w').write('x')",
    "write to the libraries": "open('/usr/lib/left', 'w').write('x')",
    "write to the secret": "open('SECRET', 'w').write('x')",
    "symlink to the secret": "import os\nos.symlink('SECRET', '/tmp/link')\nopen('/tmp/link').read()",
    "climb out of the folder": "open('../../../../../../SECRET').read()",
    "climb out by a descriptor": "import os\nfd = os.open('/', os.O_RDONLY)\nos.chroot('.')",
    "huge file": "with open('/tmp/big', 'wb') as file:\n    file.write(b'x' * (HUGE + 1))",
    "fork": "import os\nos.fork()",
    "a daemon": "import subprocess\nsubprocess.Popen(['/bin/sleep', '1000'], start_new_session=True)",
    "a shell": "import os\nassert os.system('true') == 0",
    "replace itself": "import os, sys\nos.execv('/bin/true', ['true'])",
    "processes by multiprocessing": "import multiprocessing as m\np = m.Process(target=print)\np.start()\nassert p.exitcode == 0",
    "kill the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kill everything": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "kill the harness": "import os, signal\nos.kill(PID, signal.SIGKILL)",
    "import the harness": "import perplexity_lies",
    "import an installed package": "import numpy",
    "ptrace": "import ctypes\nassert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
    "ptrace another": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "become root": "import os\nos.setuid(0) if os.getuid() else open('/proc')",
    "new namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "mount by the new calls": "import ctypes\nassert ctypes.CDLL(None).syscall(430, b'tmpfs', 0) >= 0",
    "io_uring": "import ctypes\nassert ctypes.CDLL(None).syscall(425, 1, b'0' * 120) >= 0",
    "System V memory": "import ctypes\nassert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0",
    "memory without a file": "import os\nos.memfd_create('x')",
    "raise a limit": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
    "device files": "open('/dev/mem')",
    "memory bomb": "held = []\nwhile True:\n    held.append(bytearray(1 << 26))",
    "one huge object": "bytearray(1 << 40)",
    "deep recursion": "attempt()",
}  # fmt: skip


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_an_attempt_to_get_out_fails(
    attempt: str, box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kept")
    monkeypatch.setenv("PLIES_SECRET", "kept")
    harness = Path(run_program.__code__.co_filename)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("kept")
    known = {
        "SECRET": secret,
        "HARNESS": harness,
        "PID": os.getpid(),
        "HUGE": FILE_BYTES,
        "UNIX": tmp_path / "unix",
        "HOME": home,
    }
    code = ATTEMPTS[attempt]
    for word, value in known.items():
        code = code.replace(word, str(value)) if word != "SECRET" or "PLIES_" not in code else code
    verdict = run_program(box, program(succeeds(code.replace("PORT", "9")), timeout_s=3))
    assert not verdict.passed
    assert verdict.result.startswith(("failed", "timed out")), verdict
    assert secret.read_text() == "kept"
    assert not Path("/left").exists() and not Path("/usr/lib/left").exists()


def test_a_listening_server_is_out_of_reach(box: Sandbox) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        attempt = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
        assert not run_program(box, program(succeeds(attempt))).passed
        with pytest.raises(TimeoutError):
            server.accept()


FORGERIES = {
    "ends with exit code 0": "    pass\nimport os\nos._exit(0)\n",
    "ends inside the call": "    import os\n    os._exit(0)\n",
    "sys.exit": "    pass\nimport sys\nsys.exit(0)\n",
    "prints a verdict": '    print(\'{"result": "passed"}\', flush=True)\n    return 0\n',
    "writes a verdict to every descriptor": (
        '    pass\nimport os\nfor fd in range(64):\n    try:\n        os.write(fd, b\'{"result": "passed"}\\n\')\n'
        "    except OSError:\n        pass\nos._exit(0)\n"
    ),
    "answers what equals everything": (
        "    return Yes()\nclass Yes:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
    ),
    "answers a number that equals everything": (
        "    return Yes(0)\nclass Yes(int):\n    def __eq__(self, other):\n        return True\n"
    ),
    "answers a list that equals everything": (
        "    return Yes()\nclass Yes(list):\n    def __eq__(self, other):\n        return True\n"
    ),
    "redefines check": "    return 0\ndef check(candidate):\n    pass\n",
    "redefines check for good": "    return 0\nimport builtins\nbuiltins.check = lambda candidate: None\n",
    "patches sys.exit": "    return 0\nimport sys, os\nsys.exit = os._exit\nsys.excepthook = lambda *a: os._exit(0)\n",
    "turns assertions off": "    return 0\nimport sys, ast\nsys.flags = None\n__debug__ if True else 0\n",
    "patches AssertionError": "    return 0\nimport builtins\nbuiltins.AssertionError = type('A', (Exception,), {})\n",
    "patches its own side": (
        "    return 0\nimport sys\nmain = sys.modules['__main__']\nmain.pack = lambda v: {'result': 'passed'}\n"
        "main._raised = lambda e: {'result': 'passed'}\n"
    ),
    "looks for the test": (
        "    import gc\n    held = [o for o in gc.get_objects() if isinstance(o, dict) and 'test' in o and 'prompt' in o]\n"
        "    return eval(held[0]['test'].split('== ')[1].split()[0])\n"
    ),
    "answers with a broken message": (
        "    return 0\nimport os, sys\nw = sys.modules['__main__']\n"
        "w.Wire.send = lambda s, m: os.write(s._write, b'[[[\\n')\n"
    ),
    "nests an answer deeply": "    y = []\n    for _ in range(100000):\n        y = [y]\n    return y\n",
    "swallows the test": "    return 0\n'''",
    "continues into the test": "    return 0\nif False:\n  pass \\",
    "pushes an exception that passes": "    raise SystemExit(0)\n",
    "raises GeneratorExit": "    raise GeneratorExit\n",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_verdict_cannot_be_forged(forgery: str, box: Sandbox) -> None:
    verdict = run_program(box, program(FORGERIES[forgery]))
    assert not verdict.passed
    assert verdict.result.startswith("failed"), verdict


SLOW = {
    "long sleep": "    import time\n    time.sleep(1000)\n",
    "busy loop": "    while True:\n        pass\n",
    "busy loop before the call": "    pass\nwhile True:\n    pass\n",
    "endless iterator": "    import itertools\n    return iter(itertools.repeat(None, 10**12))\n",
    "catches everything": "    while True:\n        try:\n            pass\n        except BaseException:\n            pass\n",
    "ignores signals": (
        "    import signal\n    [signal.signal(s, signal.SIG_IGN) for s in (14, 15, 24)]\n    while True:\n        pass\n"
    ),
    "waits for input": "    import threading\n    threading.Event().wait()\n",
}


@pytest.mark.parametrize("slow", SLOW)
def test_a_program_that_does_not_end_is_ended(slow: str, box: Sandbox) -> None:
    verdict = run_program(box, program(SLOW[slow], timeout_s=0.5))
    assert not verdict.passed
    assert verdict.seconds < 10


def test_huge_output_goes_nowhere(box: Sandbox) -> None:
    body = (
        "    import sys\n    for _ in range(50):\n        print('x' * (1 << 20))\n        sys.stderr.write('y' * 1000)\n"
        "    return x * 2\n"
    )
    verdict = run_program(box, program(body, timeout_s=4))
    assert verdict.passed, "output is no fault, and is kept nowhere"


def test_threads_end_with_the_program_and_nothing_stays(box: Sandbox) -> None:
    body = (
        "    return x * 2\nimport threading, time\n"
        "for _ in range(8):\n    threading.Thread(target=time.sleep, args=(1000,)).start()\n"
    )
    before = _processes()
    assert run_program(box, program(body, timeout_s=4)).passed
    deadline = time.monotonic() + 5
    while _processes() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _processes() - before


def test_a_thread_bomb_is_held(box: Sandbox) -> None:
    body = "    return x * 2\nimport threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(99,)).start()\n"
    assert not run_program(box, program(body)).passed


def _processes() -> set[int]:
    """Processes whose command is that of a sandbox."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"sandbox/inside.py" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def test_a_hostile_program_does_not_move_its_neighbours(box: Sandbox) -> None:
    bodies = [
        RIGHT,
        SLOW["busy loop"],
        RIGHT,
        FORGERIES["ends inside the call"],
        succeeds("import os\nos.fork()"),
        RIGHT,
    ]
    told: list[int] = []
    found = run_programs(box, [program(body) for body in bodies], told.append)
    assert [verdict.passed for verdict in found if not isinstance(verdict, Exception)] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert sum(told) == len(bodies)
