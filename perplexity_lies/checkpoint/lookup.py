"""Find a checkpoint by name, check its files, fingerprint it: `resolve("builtin:teacher")` gives a `Checkpoint`.

`resolve` reads every byte once and loads nothing: no torch, no transformers, no code of the checkpoint. It runs in one
direction: locate the directory, read the small files (`small_files`), check them (`preflight`), check and hash the weights
(`weights`). Whether every tensor has its place in the model class only the loader can say.

The fingerprint covers tensors, tokenizer files and config, not names, places or times: renaming, touching or resharding
keeps it, one flipped bit changes it. The weights behind an endpoint cannot be seen; its fingerprint covers the address, the
server's own description of the model and the tokenizer.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from perplexity_lies.checkpoint import preflight, small_files, weights
from perplexity_lies.checkpoint.client import Patience, ServedModel, look_up, parse_address
from perplexity_lies.checkpoint.small_files import SmallFiles, digest_parts, read_small_files
from perplexity_lies.checkpoint.token_ids import check_token_ids
from perplexity_lies.checkpoint.weight_files import SAFETENSORS, find_weight_files
from perplexity_lies.errors import CheckpointError, MissingError, UsageError, nearest
from perplexity_lies.record.manifest import CheckpointFacts

LOCAL, HUB, BUILTIN, ENDPOINT = "local", "hub", "builtin", "endpoint"

EMBEDDED = Path(__file__).parents[1] / "embedded"
BUILTINS = ("teacher", "student")

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[^@\s]+))?")
HUB_TOKENIZER = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
HUB_FILES = ("*.safetensors", *HUB_TOKENIZER)
HUB_SKIP = ("original/*", "consolidated*", "onnx/*")
"""Second copies of the weights, in other layouts."""

LOOK_UP = Patience(attempts=3, timeout_s=30.0)
"""Patience with an address as it was typed: a typing error should not take a minute to be reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(CheckpointFacts):
    """A checkpoint whose files can be used as far as files can tell: its facts, and where it is."""

    path: Path | None
    """Directory of its files; for an endpoint that of its tokenizer, None where that is not known."""
    served: ServedModel | None = None
    """For an endpoint: who answers."""

    def describe(self) -> CheckpointFacts:
        """What a manifest keeps: everything but the place on this machine."""
        names = (field.name for field in dataclasses.fields(CheckpointFacts))
        return CheckpointFacts(**{name: getattr(self, name) for name in names})


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory has a config and weights, by file names alone."""
    names = (SAFETENSORS, f"{SAFETENSORS}.index.json")
    return (directory / "config.json").is_file() and any((directory / file).is_file() for file in names)


def _checkpoints_in(directory: Path) -> list[str]:
    """Paths of subdirectories that are checkpoints, for an error message."""
    if not directory.is_dir():
        return []
    return sorted(str(entry) for entry in directory.iterdir() if entry.is_dir() and is_checkpoint(entry))


def _missing_directory(name: str, path: Path) -> MissingError:
    near = _checkpoints_in(path.parent) or _checkpoints_in(Path.cwd())
    close = difflib.get_close_matches(str(path), near, n=1, cutoff=0.5)
    mend = [f"did you mean {close[0]}?"] if close else []
    return MissingError(
        f"checkpoint {name!r} does not exist",
        found=(f"no directory {path}", *([f"checkpoints near it: {', '.join(near[:5])}"] if near else [])),
        mend=(*mend, "a directory, a hub id ORG/NAME[@REVISION], builtin:teacher or builtin:student"),
    )


def _locate_builtin(name: str) -> Path:
    word = name.removeprefix("builtin:")
    if word not in BUILTINS:
        raise UsageError(
            f"checkpoint {name!r} is not built in{nearest(word, BUILTINS)}",
            found="builtin:teacher, builtin:student",
            mend="builtin:teacher",
        )
    if not is_checkpoint(EMBEDDED / word):
        raise MissingError(
            f"checkpoint {name!r} is not in this installation",
            found=f"no checkpoint at {EMBEDDED / word}",
            mend="install the package again, or make it: make embedded-pair, then give build/embedded-pair/" + word,
        )
    return EMBEDDED / word


def _locate_hub(name: str, repository: str, revision: str | None, *, files: tuple[str, ...]) -> Path:
    """Directory of the snapshot in the hub's cache, downloaded first if needed. Raises MissingError where that fails."""
    asked = f"checkpoint {name!r} is neither a directory here nor to be had from the hub"
    command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    try:
        from httpx import HTTPError
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingError(asked, found=str(error), mend='pip install "perplexity-lies[torch]"') from error
    patterns, skip = list(files), list(HUB_SKIP)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=skip))
    except (OSError, ValueError, HTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        unreachable = MissingError(
            asked,
            found=(f"no directory {repository}", f"{type(error).__name__}: {reason}"),
            mend=(f"where there is a network: {command}", "a local directory: give its path, beginning with ./ or /"),
        )
    try:
        # Without the hub's list of files: a commit that the cache holds whole needs none.
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError) as error:
        raise unreachable from error


def _locate_local(name: str, path: Path) -> Path:
    if not path.exists():
        raise _missing_directory(name, path)
    if not path.is_dir():
        holds = (
            "that directory" if is_checkpoint(path.parent) else "the directory that holds config.json and the weights"
        )
        raise CheckpointError(
            f"checkpoint {name!r} is a file, not a directory",
            found=f"{path.stat().st_size:,} bytes",
            mend=f"give {holds}: {path.parent}",
        )
    return path


def _locate(name: str, files: tuple[str, ...]) -> tuple[str, Path, str]:
    """(kind, directory, revision) of the checkpoint `name`; from the hub only `files`, glob patterns, are fetched."""
    if not name.strip():
        raise UsageError("checkpoint '' names nothing", mend="a directory, ORG/NAME[@REVISION] or builtin:teacher")
    if name.startswith("builtin:"):
        return BUILTIN, _locate_builtin(name), ""
    path = Path(name).expanduser()
    hub = HUB_ID.fullmatch(name)
    # `runs/studnet` where runs/ is a directory here is a misspelt path, not a repository.
    if name.startswith((".", "/", "~")) or path.exists() or hub is None or path.parent.is_dir():
        return LOCAL, _locate_local(name, path), ""
    path = _locate_hub(name, hub["id"], hub["revision"], files=files)
    return HUB, path, path.name


def _check_directory(name: str, path: Path) -> None:
    """Raises CheckpointError for a directory that is something else: an adapter, GGUF, a folder of checkpoints."""
    if (adapter := small_files.read_object(name, path / "adapter_config.json")) is not None:
        base = adapter.get("base_model_name_or_path", "BASE")
        named = base if isinstance(base, str) and HUB_ID.fullmatch(base) else "BASE"  # it goes into a command to type
        both = is_checkpoint(path)
        config = shlex.quote(str(path / "adapter_config.json"))
        whole = [f"if the weights beside it are whole and meant: mv {config} {config}.old"] if both else []
        raise CheckpointError(
            f"checkpoint {name!r} is a PEFT adapter, not a whole checkpoint"
            + (", or has one beside whole weights" if both else ""),
            found=f"adapter_config.json, for the base {base}",
            mend=(
                "merge it: python -c \"import peft, transformers as t; p = '" + str(path) + "'; "
                "peft.AutoPeftModelForCausalLM.from_pretrained(p).merge_and_unload().save_pretrained('merged')"
                f"; t.AutoTokenizer.from_pretrained('{named}').save_pretrained('merged')\"",
                "then give ./merged",
                *whole,
            ),
        )
    if (path / "config.json").is_file():
        return
    if list(path.glob("*.gguf")):
        find_weight_files(name, path, allow_pickle=False)
    inside = _checkpoints_in(path)
    raise CheckpointError(
        f"checkpoint {name!r} has no config.json",
        found=(
            f"in {path}: {small_files.listing(path)}",
            *([f"checkpoints in it: {', '.join(inside[:5])}"] if inside else []),
        ),
        mend=f"give {inside[-1]}" if inside else "give a directory that save_pretrained wrote, or hf download fetched",
    )


def _resolve_files(name: str, kind: str, path: Path, revision: str, *, pickle: bool, remote_code: bool) -> Checkpoint:
    _check_directory(name, path)
    files = read_small_files(name, path)
    preflight.check_config(files, trust_remote_code=remote_code)
    preflight.check_tokenizer(files)
    preflight.check_templates(files)
    found = find_weight_files(name, path, allow_pickle=pickle, named=files.config.get("transformers_weights"))
    tensors = [] if found.pickled else weights.read_tensors(name, found.files)
    preflight.check_shapes(files, tensors)
    if (rows := preflight.embedding_rows(files, tensors)) is not None:
        check_token_ids(files, rows)
    if tensors:
        weights_digest, dtype = weights.digest_tensors(name, tensors), weights.stored_dtype(tensors)
        parameters = sum(tensor.elements for tensor in tensors)
    else:
        weights_digest, dtype, parameters = weights.digest_files(name, found.files), "unknown", 0
    tokenizer = small_files.digest_tokenizer(files)
    config = small_files.digest_config(files, with_code=remote_code and bool(preflight.wanted_code(files)))
    return Checkpoint(
        name=name,
        path=path,
        kind=kind,
        revision=revision,
        weights_digest=weights_digest,
        tokenizer_digest=tokenizer,
        config_digest=config,
        digest=digest_parts([weights_digest.encode(), tokenizer.encode(), config.encode()]),
        model_type=files.config["model_type"],
        architecture=next(iter(files.config.get("architectures") or ()), ""),
        dtype=dtype,
        parameters=parameters,
        has_chat_template=preflight.has_chat_template(files),
        trust_remote_code=remote_code,
        allow_pickle=pickle,
        unread_weights=found.unread,
    )


def _served_files(name: str, served: ServedModel, tokenizer: str | None, *, remote_code: bool) -> SmallFiles | None:
    """Small files of a served model: in `tokenizer` as typed, or in the directory here by which the server names its model."""
    if tokenizer is None:
        near = Path(served.model).expanduser()
        return read_small_files(name, near) if near.is_dir() and small_files.tokenizer_paths(near) else None
    files = read_small_files(tokenizer, _locate(tokenizer, HUB_TOKENIZER + (("*.py",) if remote_code else ()))[1])
    preflight.check_tokenizer(files)
    preflight.check_templates(files)
    preflight.check_shapes(files, ())
    return files


def _resolve_served(name: str, served: ServedModel, tokenizer: str | None, *, remote_code: bool) -> Checkpoint:
    files = _served_files(name, served, tokenizer, remote_code=remote_code)
    digest = small_files.digest_tokenizer(files) if files else ""
    description = digest_parts([served.url.encode(), served.model.encode(), small_files.stable_json(served.entry)])
    return Checkpoint(
        name=name,
        path=files.directory if files else None,
        kind=ENDPOINT,
        weights_digest="",
        tokenizer_digest=digest,
        config_digest=description,
        digest=digest_parts([ENDPOINT.encode(), digest.encode(), description.encode()]),
        model_type=str(files.config.get("model_type", "unknown")) if files else "unknown",
        dtype="unknown",
        has_chat_template=preflight.has_chat_template(files) if files else False,
        trust_remote_code=remote_code,
        url=served.url,
        served_model=served.model,
        served=served,
    )


def resolve(
    name: str, *, allow_pickle: bool = False, trust_remote_code: bool = False, tokenizer: str | None = None
) -> Checkpoint:
    """Find, check and fingerprint a checkpoint. `name` is one of

        ./student                       a directory
        ORG/NAME, ORG/NAME@REVISION     a repository of the hub
        builtin:teacher, builtin:student
        http(s)://HOST:PORT/v1#MODEL    a served model; #MODEL may be left out where the server has one model

    `tokenizer`: directory or hub id of a served model's tokenizer; not needed where the server names its model by a
    directory of this machine. Reads every byte of the weights once, with a progress bar after two seconds.

    Raises MissingError where `name` is not there, CheckpointError where its files cannot be used (both exit code 3),
    UsageError where the string cannot name a checkpoint (exit code 2).
    """
    files = HUB_FILES + (("*.bin",) if allow_pickle else ()) + (("*.py",) if trust_remote_code else ())
    address = parse_address(name)
    try:
        if address is not None:
            return _resolve_served(name, look_up(address, LOOK_UP), tokenizer, remote_code=trust_remote_code)
        kind, path, revision = _locate(name, files)
        return _resolve_files(name, kind, path, revision, pickle=allow_pickle, remote_code=trust_remote_code)
    except PermissionError as error:
        raise CheckpointError(
            f"checkpoint {name!r} may not be read",
            found=f"permission denied: {error.filename}",
            mend=f"as the owner: chmod -R u+rX {error.filename}",
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {name!r} cannot be read",
            found=f"{error.strerror or type(error).__name__}: {error.filename}",
            mend="check the disk and the path, then the same command again",
        ) from error
