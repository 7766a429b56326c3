"""Which files hold a checkpoint's weights: those that transformers loads, each trusted by what it is, not by its name.

    found = find_weight_files("./student", Path("./student"), allow_pickle=False)
    found.files                                 what is loaded, hashed and measured: (model.safetensors,)
    found.unread                                weights that lie beside them and are not: ("pytorch_model.bin",)

transformers takes the first of: model.safetensors, its index of shards, pytorch_model.bin, its index of shards. Refused here:
two sets that might differ (an old model.safetensors beside the shards of a later save), where the first would be taken without
a word; and a file whose content is not what its name says.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perplexity_lies.checkpoint.small_files import AGAIN, listing, refuse_lfs_pointer
from perplexity_lies.checkpoint.weights import MAX_HEADER_BYTES, ZIP_START, digest_tensors, read_tensors
from perplexity_lies.errors import CheckpointError

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")

TRAINER_STATE = ("optimizer", "scheduler", "training_args", "rng_state", "scaler", "trainer_state")
"""How the names of pickle files begin that a trainer leaves and that hold no weights."""
SHARD = re.compile(r"(pytorch_)?model-\d+-of-\d+\.(safetensors|bin)")
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Shards of a distributed training run, which transformers would load before anything else."""

logger = logging.getLogger(__name__)

TRUST = "if you trust whoever made it: the same command with --allow-pickle"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """The weights of one checkpoint directory."""

    files: tuple[Path, ...]
    pickled: bool
    unread: tuple[str, ...]
    """Names of other weights files in the directory, which are not measured."""


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors: eight bytes of a length that fits the file, then a JSON object."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= min(MAX_HEADER_BYTES, size - 8)


def is_pickle(path: Path) -> bool:
    """Whether a file begins as torch.save or pickle write it: a zip archive, or a pickle of protocol 2 to 5."""
    with path.open("rb") as file:
        start = file.read(4)
    return not is_safetensors(path) and (start == ZIP_START or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5"))


def _names(paths: Iterable[Path | str], most: int = 5) -> str:
    names = sorted(path if isinstance(path, str) else path.name for path in paths)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _named_by(name: str, index: Path) -> tuple[str, ...]:
    """Names of the files in a `*.index.json`, sorted. Raises CheckpointError where it cannot be read or names no shard."""
    refuse_lfs_pointer(name, index)
    try:
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {name!r} has an index of shards that cannot be read",
            found=f"{index.name}: {type(error).__name__}: {error}; expected a JSON object with a weight_map",
            mend=AGAIN,
        ) from error
    outside = [file for file in files if not isinstance(file, str) or Path(file).name != file]
    if outside or not files:
        kind = "names files outside the directory" if outside else "has an empty index of shards"
        found = f"{index.name} names {len(files)} files, of which {len(outside)} cannot be used: "
        raise CheckpointError(f"checkpoint {name!r} {kind}", found=found + ", ".join(map(str, outside[:5])), mend=AGAIN)
    return tuple(files)


def _shards(name: str, index: Path) -> tuple[Path, ...]:
    """The files that an index names. Raises CheckpointError where one is absent or its name tells of another format."""
    named = _named_by(name, index)
    absent = [file for file in named if not (index.parent / file).is_file()]
    if absent:
        found = f"{index.name} names {len(named)} files, of which {len(absent)} cannot be used: {_names(absent)}"
        raise CheckpointError(f"checkpoint {name!r} misses shards", found=found, mend=AGAIN)
    suffix = ".safetensors" if index.name.startswith(SAFETENSORS) else ".bin"
    other = [file for file in named if not file.endswith(suffix)]
    if other:  # transformers reads all of them by the suffix of the first
        raise CheckpointError(
            f"checkpoint {name!r} has an index that names files of another kind",
            found=f"{index.name} names {_names(other)}; expected names that end in {suffix}",
            mend=(AGAIN, f"or give the shards names that end in {suffix}, there and in the index"),
        )
    return tuple(index.parent / file for file in named)


def _same_tensors(name: str, one: Sequence[Path], other: Sequence[Path]) -> bool:
    """Whether two sets of safetensors hold the same tensors; reads all bytes of both where their headers agree."""
    try:
        ours, theirs = read_tensors(name, one), read_tensors(name, other)
    except CheckpointError:
        return False
    if [(t.name, t.dtype, t.shape) for t in ours] != [(t.name, t.dtype, t.shape) for t in theirs]:
        return False
    return digest_tensors(name, ours) == digest_tensors(name, theirs)


def _two_sets(name: str, single: Path, others: Iterable[str], what: str, drop: str) -> CheckpointError:
    """The error for a `single` file beside `others`; `what` these are, and `drop`, the command that leaves only the first."""
    return CheckpointError(
        f"checkpoint {name!r} has two sets of weights, and nothing says which is meant",
        found=(f"{single.name}, which would be loaded", f"{what}: {_names(others)}"),
        mend=(
            f"if {single.name} is meant: {drop}",
            f"if the shards are, with their index: mv {shlex.quote(str(single))} {shlex.quote(f'{single}.old')}",
        ),
    )


def _one_set(name: str, directory: Path, file: str) -> tuple[Path, ...]:
    """`file`, or the shards that its index names; empty where `directory` has neither. Raises CheckpointError for two sets."""
    single, index = directory / file, directory / f"{file}.index.json"
    if not single.is_file():
        return _shards(name, index) if index.is_file() else ()
    if not index.is_file():
        return (single,)
    named = [other for other in _named_by(name, index) if other != file]
    here = [directory / other for other in named if (directory / other).is_file()]
    if not named or (len(here) == len(named) and _same_tensors(name, [single], here)):
        return (single,)
    what = f"{index.name}, which names {len(named)} other files, {len(named) - len(here)} of them absent"
    raise _two_sets(name, single, named, what, "rm " + " ".join(shlex.quote(str(path)) for path in (index, *here)))


def _beside(directory: Path, taken: Sequence[Path]) -> list[str]:
    """Names of other weights files, links to nothing and the state of a trainer left out."""
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.suffix in SUFFIXES
        and path.is_file()
        and path not in taken
        and not (path.suffix != ".safetensors" and path.name.startswith(TRAINER_STATE))
    )


def _refuse_stray_shards(name: str, taken: Sequence[Path], beside: Sequence[str]) -> None:
    """Raises CheckpointError for numbered shards of the kind of `taken` that no index names: another save's, or the newer one's.

    Shards that hold the same tensors once more are let through.
    """
    stray = [file for file in beside if SHARD.fullmatch(file) and file.endswith(taken[0].suffix)]
    directory = taken[0].parent
    if not stray or _same_tensors(name, taken, [directory / file for file in stray]):
        return
    places = " ".join(shlex.quote(str(directory / file)) for file in stray)
    if len(taken) == 1 and not SHARD.fullmatch(taken[0].name):
        raise _two_sets(name, taken[0], stray, "shards that no index names", f"rm {places}")
    raise CheckpointError(
        f"checkpoint {name!r} has shards that its index does not name",
        found=(f"the index names {_names(taken)}", f"beside them lie {_names(stray)}"),
        mend=(f"if they are of another save: rm {places}", "else copy the index that was saved with them"),
    )


def _refuse_unusual(name: str, directory: Path, named: object) -> None:
    """Raises CheckpointError where transformers would load something else than the files that this module finds."""
    if named not in (None, SAFETENSORS):
        raise CheckpointError(
            f"checkpoint {name!r}: config.json names a weights file of its own",
            found=f"transformers_weights: {json.dumps(named)[:100]}",
            mend=f"take transformers_weights out of config.json and name the file {SAFETENSORS}",
        )
    shards = [path.name for path in directory.iterdir() if DISTRIBUTED.match(path.name)]
    if shards:
        raise CheckpointError(
            f"checkpoint {name!r} is a training run's distributed checkpoint",
            found=_names(shards),
            mend="save it whole: model.save_pretrained('whole'), tokenizer.save_pretrained('whole'); then give ./whole",
        )


def _pickles(directory: Path) -> list[Path]:
    found = (path for suffix in ("bin", "pt", "pth", "ckpt") for path in directory.glob(f"*.{suffix}"))
    return sorted(path for path in found if path.is_file() and not path.name.startswith(TRAINER_STATE))


def _find_pickles(name: str, directory: Path, *, allow_pickle: bool) -> tuple[Path, ...]:
    """Files of pickled weights, empty where there are none. Raises CheckpointError where they are not allowed, or no pickle."""
    pickles = _pickles(directory)
    misnamed = [path for path in pickles if is_safetensors(path)]
    if misnamed:
        single = f"mv {shlex.quote(str(misnamed[0]))} {shlex.quote(str(directory / SAFETENSORS))}"
        raise CheckpointError(
            f"checkpoint {name!r} has its weights as pickle only by name: they are safetensors",
            found=f"{_names(misnamed)}: weights that torch.save did not write, and that begin as safetensors do",
            mend=(
                f"a single file: {single}; shards: name them *.safetensors, in their index too",
                "--allow-pickle cannot help here",
            ),
        )
    if pickles and not allow_pickle:
        raise CheckpointError(
            f"checkpoint {name!r} has its weights as pickle only, which runs code when it is loaded",
            found=_names(pickles),
            mend=(TRUST, "or save it as safetensors"),
        )
    return _one_set(name, directory, PICKLE)


def find_weight_files(name: str, directory: Path, *, allow_pickle: bool, named: object = None) -> WeightFiles:
    """The files that transformers would load from `directory`, safetensors before pickle.

    `named`: `transformers_weights` of config.json. Raises CheckpointError where there is none, a shard is missing, there are
    two sets, or there is only pickle and `allow_pickle` is false.
    """
    _refuse_unusual(name, directory, named)
    files, pickled = _one_set(name, directory, SAFETENSORS), False
    if not files:
        files, pickled = _find_pickles(name, directory, allow_pickle=allow_pickle), True
    if not files:
        raise _no_weights(name, directory, _pickles(directory))
    for path in files if not pickled else ():
        if is_pickle(path):
            raise CheckpointError(
                f"checkpoint {name!r} has a pickle under the name of a safetensors file",
                found=f"{path.name}: begins as torch.save writes; loading a pickle runs code",
                mend=(AGAIN, f"or, if it is to be trusted, name it {PICKLE} and add --allow-pickle"),
            )
    unread = _beside(directory, files)
    _refuse_stray_shards(name, files, unread)
    if unread:
        logger.warning("checkpoint %s: measured is %s; beside it, unread: %s", name, _names(files), _names(unread))
    return WeightFiles(files=files, pickled=pickled, unread=tuple(unread))


def _no_weights(name: str, directory: Path, pickles: Sequence[Path]) -> CheckpointError:
    found = f"in {directory}: {listing(directory)}"
    dangling = [path.name for path in directory.iterdir() if path.is_symlink() and not path.exists()]
    if dangling:
        return CheckpointError(
            f"checkpoint {name!r} has links to files that are gone", found=_names(dangling), mend=AGAIN
        )
    if list(directory.glob("*.gguf")):
        return CheckpointError(
            f"checkpoint {name!r} is GGUF, which is quantised for llama.cpp and is not read here",
            found=found,
            mend="use the repository it was converted from, with safetensors and config.json: hf download ORG/NAME",
        )
    stray = sorted(directory.glob("*.safetensors")) or list(pickles)
    if stray:
        wanted = SAFETENSORS if stray[0].suffix == ".safetensors" else PICKLE
        moved = f"mv {shlex.quote(str(stray[0]))} {shlex.quote(str(directory / wanted))}"
        return CheckpointError(
            f"checkpoint {name!r} has weights under names that say nothing",
            found=(found, f"expected {wanted}, or {wanted}.index.json and the shards it names"),
            mend=f"a single file: {moved}; shards: copy the index as well",
        )
    return CheckpointError(f"checkpoint {name!r} has no weights", found=(found, f"expected {SAFETENSORS}"), mend=AGAIN)
