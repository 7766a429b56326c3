"""Shuts this process in: namespaces, a root of its own, limits, a filter of system calls. Standard library only.

Runs in a fresh `python -I -S`, never in the harness: nothing here can be undone. Linux, kernel 5.12 or newer.
The filter allows threads and no child processes, so that the limit on memory of one process is the limit of all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from pathlib import Path

MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
FOLDER_BYTES = 16 << 20
OPEN_FILES = 64
PROCESSES = 64
"""Threads, in fact: the filter allows no process."""

SHARED_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
PACKAGE_FOLDERS = ("site-packages", "dist-packages")

MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MS_NOEXEC = 4096, 16384, 1 << 18, 2, 4, 8
RDONLY, NOSUID, NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH, MOUNT_SETATTR = -100, 0x8000, 2, 442
NEWUSER = 0x10000000
NAMESPACES = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""Mounts, processes, network, System V memory, host name, cgroup."""
PDEATHSIG, NO_NEW_PRIVS, SECCOMP, CAPBSET_DROP, SIGKILL = 1, 38, 22, 24, 9

SAME_NUMBER = (425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442, 447)
"""io_uring, the new mount calls, pidfds, memfd_secret: one number on every architecture."""
CLONE3 = 435
ARCHITECTURES = {
    # name: (audit number, clone, pivot_root, capset, what is refused)
    "x86_64": (0xC000003E, 56, 155, 126, (
        41, 57, 58, 59, 322, 101, 165, 166, 155, 161, 272, 308, 250, 248, 249, 321, 298, 323, 29, 30, 64, 68, 240,
        310, 311, 246, 320, 175, 313, 176, 304, 135, 319, 62, 133, 259, 169, 163, 103, 126,
    )),
    "aarch64": (0xC00000B7, 220, 41, 91, (
        198, 221, 281, 117, 40, 39, 41, 51, 97, 268, 219, 217, 218, 280, 241, 282, 194, 196, 190, 186, 180,
        270, 271, 104, 294, 105, 273, 106, 265, 92, 279, 129, 33, 142, 89, 116, 91,
    )),
}  # fmt: skip
"""socket, fork, vfork, exec, ptrace, mount, chroot, unshare, setns, keys, bpf, perf, userfaultfd, System V and POSIX queues,
memory of others, kernel modules, file handles, personality, memfd, kill, mknod, reboot, acct, syslog, capset."""

_libc = ctypes.CDLL(None, use_errno=True)


class CannotConfine(Exception):
    """This machine does not let a process be shut in; the text says which step."""


def _must(step: str, returned: int) -> None:
    if returned != 0:
        raise CannotConfine(f"{step}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: Path | str, kind: str, flags: int, data: str = "") -> None:
    names = [text.encode() for text in (source, str(target), kind)]
    _must(f"mount {target}", _libc.mount(*names, ctypes.c_ulong(flags), data.encode() or None))


def _fixed(target: Path | str) -> None:
    """Make a mount and those below it read-only, without devices and set-user-id files."""
    attributes = struct.pack("QQQQ", RDONLY | NOSUID | NODEV, 0, 0, 0)
    path = str(target).encode()
    _must(
        f"read-only {target}",
        _libc.syscall(MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))),
    )


def readable_folders(library: str) -> list[str]:
    """What a program may read: shared libraries, and the standard library of Python at `library`."""
    folders = [folder for folder in SHARED_LIBRARIES if os.path.isdir(folder) and not os.path.islink(folder)]
    return folders if any(library.startswith(f"{folder}/") for folder in folders) else [*folders, library]


def hidden_folders(library: str) -> list[str]:
    """Folders of installed packages among those: a program sees the standard library alone."""
    places = [Path(library), *Path("/usr/lib").glob("python3*"), *Path("/usr/lib64").glob("python3*")]
    found = (place / name for place in places for name in PACKAGE_FOLDERS)
    return sorted({str(folder) for folder in found if folder.is_dir()})


def library_links() -> list[tuple[str, str]]:
    """(link, where it points) of the folders of shared libraries that are links."""
    return [(folder, os.readlink(folder)) for folder in SHARED_LIBRARIES if os.path.islink(folder)]


def enter_namespaces() -> bool:
    """Leave the machine's namespaces for new ones; True where root did it, who then has a uid to drop."""
    if os.geteuid() == 0 and _libc.unshare(NAMESPACES) == 0:
        return True
    uid, gid = os.geteuid(), os.getegid()
    _must("unshare", _libc.unshare(NAMESPACES | NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError as error:
            raise CannotConfine(f"{name}: {error.strerror}") from error
    return False


def enter_root(root: Path, library: str) -> None:
    """Make `root`, an empty folder, the root: libraries to read, /tmp to write, nothing else."""
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in readable_folders(library):
        inside = root / folder.lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        _mount(folder, inside, "", MS_BIND | MS_REC)
        _fixed(inside)
    for link, to in library_links():
        (root / link.lstrip("/")).symlink_to(to)
    for folder in hidden_folders(library):
        if (root / folder.lstrip("/")).is_dir():
            _mount("tmpfs", root / folder.lstrip("/"), "tmpfs", RDONLY | MS_NOSUID | MS_NODEV, "size=4k,mode=755")
    (root / "tmp").mkdir()
    (root / "old").mkdir()
    settings = f"size={FOLDER_BYTES},nr_inodes=256,mode=1777"
    _mount("tmpfs", root / "tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, settings)
    pivot_root = ARCHITECTURES[platform.machine()][2]
    _must("pivot_root", _libc.syscall(pivot_root, str(root).encode(), str(root / "old").encode()))
    os.chdir("/")
    _must("umount", _libc.umount2(b"/old", MNT_DETACH))
    os.rmdir("/old")
    attributes = struct.pack("QQQQ", RDONLY, 0, 0, 0)
    _must("read-only /", _libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", 0, attributes, ctypes.c_size_t(32)))


def die_with_parent() -> None:
    """The kernel kills this process when its parent ends."""
    _must("prctl", _libc.prctl(PDEATHSIG, SIGKILL, 0, 0, 0))


def drop_powers(*, was_root: bool) -> None:
    """No capability, no way to gain one; a uid of its own where root started this."""
    for capability in range(64):
        _libc.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    if was_root:
        uid = (
            20_000 + os.getpid() % 40_000 if os.getpid() > 1 else 20_000 + int.from_bytes(os.urandom(2), "big") % 40_000
        )
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _must("capset", _libc.syscall(ARCHITECTURES[platform.machine()][3], header, none))
    _must("no_new_privs", _libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))


def limit(cpu_s: int) -> None:
    """Limits of this process, which cannot be raised again."""
    limits = {
        resource.RLIMIT_CPU: cpu_s, resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES, resource.RLIMIT_NPROC: PROCESSES, resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0,
    }  # fmt: skip
    for name, most in limits.items():
        hard = resource.getrlimit(name)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(name, (most, most))


def filter_calls() -> None:
    """Refuse system calls that a program judged here never needs (seccomp)."""
    audit, clone, _, _, refused = ARCHITECTURES[platform.machine()]
    allow, kill, refuse, unknown = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    steps = [(load, 0, 0, 4), (equal, 1, 0, audit), (end, 0, 0, kill), (load, 0, 0, 0)]
    if platform.machine() == "x86_64":
        steps += [(at_least, 0, 1, 0x40000000), (end, 0, 0, kill)]
    steps += [(equal, 0, 1, CLONE3), (end, 0, 0, unknown)]
    for number in (*refused, *SAME_NUMBER):
        steps += [(equal, 0, 1, number), (end, 0, 0, refuse)]
    steps += [
        (equal, 0, 3, clone),
        (load, 0, 0, 16),
        (any_bit, 1, 0, 0x00010000),
        (end, 0, 0, refuse),
        (end, 0, 0, allow),
    ]
    packed = b"".join(struct.pack("HBBI", *step) for step in steps)
    kept = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(kept))
    _must("seccomp", _libc.prctl(SECCOMP, 2, program, 0, 0))


def refuse_machine() -> None:
    """Raises CannotConfine where the machine is none that the filter knows."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        raise CannotConfine(f"no filter of system calls for {sys.platform} on {platform.machine()}")
