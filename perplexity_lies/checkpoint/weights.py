"""Weight files on disk: list their tensors, check and hash their bytes. `weight_files` finds them.

    tensors = read_tensors("./student", files)        names, dtypes, shapes, places; reads headers only
    digest_tensors("./student", tensors)              "sha256:..."; reads every byte once, refuses NaN and Inf

Parses safetensors itself (https://github.com/huggingface/safetensors, "Format": 8-byte little-endian header length, JSON
header, one buffer without holes), since a checkpoint is checked before anything is loaded and without torch. Pickle files
are found and hashed, never unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from perplexity_lies.checkpoint.small_files import AGAIN, refuse_lfs_pointer
from perplexity_lies.digests import sha256_text
from perplexity_lies.errors import CheckpointError

CHUNK_BYTES = 1 << 24
"""Read at a time; a multiple of every item size."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
QUIET_S = 2.0
"""No progress bar before this many seconds."""

ZIP_START = b"PK\x03\x04"

DTYPES_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "I64 U64 F64 C64",
}
DTYPE_BITS = {dtype: bits for bits, dtypes in DTYPES_BY_BITS.items() for dtype in dtypes.split()}
NOT_FINITE = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "C64": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}
"""dtype -> (unsigned type of its width, bits set in NaN and Inf alone): the exponent (IEEE 754); in E4M3, without Inf, all."""
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `file[start:stop]` holds its bytes, row-major, little-endian."""

    name: str
    dtype: str
    """As the header says it: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def _broken(name: str, path: Path, what: str, *found: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {name!r} has {what}", found=tuple(f"{path.name}: {f}" for f in found), mend=AGAIN
    )


def _parse_header(name: str, path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """(header, byte at which the tensors begin)."""
    start = file.read(8)
    if size == 0:
        raise _broken(name, path, "an empty weights file", "0 bytes")
    if start.startswith(ZIP_START):
        raise _broken(
            name, path, "a pickle under the name of a safetensors file", "begins with PK (a torch.save archive)"
        )
    if size < 8:
        raise _broken(name, path, "truncated weights", f"{size} bytes, less than the 8 that tell the header's length")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise _broken(name, path, "a corrupt weights header", f"begins with {start!r}, which is no safetensors header")
    if 8 + length > size:
        raise _broken(name, path, "truncated weights", f"{size} bytes, but its header alone says {8 + length}")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise _broken(name, path, "a corrupt weights header", f"not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _broken(name, path, "a corrupt weights header", f"a JSON {type(header).__name__}, expected an object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _stored_tensor(name: str, path: Path, tensor: str, entry: object, buffer: int) -> StoredTensor:
    """One entry of a header, checked. `buffer`: byte at which the tensors begin."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            well_formed = all(type(extent) is int and extent >= 0 for extent in shape) and 0 <= start <= stop
        case _:
            well_formed = False
    if not well_formed:
        raise _broken(name, path, "a corrupt weights header", f"{tensor} is described as {str(entry)[:100]}")
    if dtype not in DTYPE_BITS:
        raise _broken(name, path, "weights of an unknown dtype", f"{tensor} has dtype {dtype!r}")
    if (stop - start) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise _broken(
            name,
            path,
            "a corrupt weights header",
            f"{tensor} of shape {shape} and dtype {dtype} needs {math.prod(shape) * DTYPE_BITS[dtype] // 8} bytes, "
            f"its offsets span {stop - start}",
        )
    return StoredTensor(tensor, dtype, tuple(shape), path, buffer + start, buffer + stop)


def _read_file(name: str, path: Path) -> list[StoredTensor]:
    """Tensors of one safetensors file. Raises CheckpointError where header and file size do not agree."""
    refuse_lfs_pointer(name, path)
    size = path.stat().st_size
    with path.open("rb") as file:
        header, buffer = _parse_header(name, path, file, size)
    tensors = [_stored_tensor(name, path, tensor, entry, buffer) for tensor, entry in header.items()]
    end = buffer
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            raise _broken(
                name, path, "a corrupt weights header", f"{tensor.name} begins at byte {tensor.start}, not {end}"
            )
        end = tensor.stop
    if end > size:
        cut = sum(tensor.stop > size for tensor in tensors)
        found = f"{size:,} bytes, its header promises {end:,}; {cut} of {len(tensors)} tensors are cut off"
        raise _broken(name, path, "truncated weights", found)
    if end < size:
        raise _broken(
            name, path, "weights with bytes that no tensor owns", f"{size:,} bytes, its header accounts for {end:,}"
        )
    return tensors


def read_tensors(name: str, files: Sequence[Path]) -> list[StoredTensor]:
    """Every tensor of safetensors `files`, sorted by name; reads headers only.

    Raises CheckpointError for a truncated, corrupt or empty file and for a tensor that is stored twice.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for tensor in _read_file(name, path):
            if tensor.name in tensors:
                both = f"in {tensors[tensor.name].file.name} and in {path.name}"
                raise CheckpointError(
                    f"checkpoint {name!r} stores a tensor twice", found=f"{tensor.name} {both}", mend=AGAIN
                )
            tensors[tensor.name] = tensor
    if not tensors:
        found = f"{', '.join(path.name for path in files)}: a header without tensors"
        raise CheckpointError(f"checkpoint {name!r} has weights files that hold nothing", found=found, mend=AGAIN)
    return [tensors[key] for key in sorted(tensors)]


def stored_dtype(tensors: Sequence[StoredTensor]) -> str:
    """The dtype that holds most numbers (`bfloat16`, ...); integer and packed dtypes only where there is no floating one."""
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    most = max(sorted(elements), key=lambda dtype: (dtype in DTYPE_NAMES, elements[dtype]))
    return DTYPE_NAMES.get(most, most.lower())


@contextlib.contextmanager
def _meter(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal, not before `QUIET_S`; yields what advances it by bytes."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    began_s = time.monotonic()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(title, total=total_bytes)

    def advance(count: int) -> None:
        bar.advance(task, count)
        if time.monotonic() - began_s > QUIET_S:
            bar.start()  # does nothing where it has started

    try:
        yield advance
    finally:
        bar.stop()


def _chunks(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    file.seek(start)
    while start < stop:
        chunk = file.read(min(CHUNK_BYTES, stop - start))
        if not chunk:
            raise OSError(None, "the file became shorter while it was read", getattr(file, "name", ""))
        start += len(chunk)
        yield chunk


def _count_not_finite(chunk: bytes, dtype: str) -> int:
    """Number of NaN and Inf in `chunk`; 0 for a dtype that has none."""
    if dtype not in NOT_FINITE:
        return 0
    unsigned, mask = NOT_FINITE[dtype]
    bits = np.frombuffer(chunk, dtype=unsigned)
    return int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask))


def digest_tensors(name: str, tensors: Sequence[StoredTensor]) -> str:
    """`sha256:...` over (name, dtype, shape, bytes) of `tensors` in the order of their names; reads every byte once.

    File names, times, metadata and the cut into shards do not enter. Raises CheckpointError naming tensors that hold
    NaN or Inf.
    """
    digest = hashlib.sha256()
    bad: list[tuple[StoredTensor, int]] = []
    handles = {path: path.open("rb") for path in {tensor.file for tensor in tensors}}
    try:
        with _meter(f"hashing {name}", sum(tensor.stop - tensor.start for tensor in tensors)) as advance:
            for tensor in sorted(tensors, key=lambda tensor: tensor.name):
                digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode() + b"\n")
                not_finite = 0
                for chunk in _chunks(handles[tensor.file], tensor.start, tensor.stop):
                    digest.update(chunk)
                    not_finite += _count_not_finite(chunk, tensor.dtype)
                    advance(len(chunk))
                if not_finite:
                    bad.append((tensor, not_finite))
    finally:
        for handle in handles.values():
            handle.close()
    if bad:
        lines = [f"{tensor.name} {list(tensor.shape)}: {n:,} of {tensor.elements:,} numbers" for tensor, n in bad[:3]]
        more = [f"and {len(bad) - 3} more tensors of {len(tensors)}"] if len(bad) > 3 else []
        raise CheckpointError(
            f"checkpoint {name!r} has weights that are NaN or Inf",
            found=(*lines, *more),
            mend="training diverged, or the copy is damaged: take an earlier checkpoint, or copy it again",
        )
    return f"sha256:{digest.hexdigest()}"


def _check_pickle(name: str, path: Path) -> int:
    """Size in bytes of a torch.save file: a whole zip archive or, before torch 1.6, a bare pickle. Raises CheckpointError."""
    refuse_lfs_pointer(name, path)
    size = path.stat().st_size
    if size == 0:
        raise _broken(name, path, "an empty weights file", "0 bytes")
    with path.open("rb") as file:
        start = file.read(4)
    if start != ZIP_START and start[0] != pickle.PROTO[0]:
        raise _broken(name, path, "weights that torch.save did not write", f"begins with {start!r}")
    if start == ZIP_START and not zipfile.is_zipfile(path):
        raise _broken(name, path, "truncated weights", f"{size:,} bytes of a zip archive without its end")
    return size


def digest_files(name: str, files: Sequence[Path]) -> str:
    """`sha256:...` over the bytes of `files` (pickle weights), whatever their names and order.

    Raises CheckpointError for files that torch.save did not write or not to the end.
    """
    digests = []
    sizes = [_check_pickle(name, path) for path in files]
    with _meter(f"hashing {name}", sum(sizes)) as advance:
        for path, size in zip(files, sizes, strict=True):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for chunk in _chunks(file, 0, size):
                    digest.update(chunk)
                    advance(len(chunk))
            digests.append(digest.hexdigest())
    return f"sha256:{sha256_text(''.join(sorted(digests)))}"
