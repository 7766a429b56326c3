"""From a string to a `Checkpoint`: where its files are, what they hash to, whether they can be a causal language model.

`resolve` is the only way in. It reads every byte once and loads nothing: no torch, no transformers, no code from the
checkpoint. The fingerprint is over the weights' tensors, the tokenizer's files and the config, never over names, places
or times, so that renaming, touching or resharding keeps it and one flipped bit changes it. Of a checkpoint behind an
endpoint only the address, the server's own description and the tokenizer can be hashed: its weights are not fingerprinted.
Knows nothing of engines: whether every tensor has its place in the model class is the loader's to say.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perplexity_lies.checkpoint.client import Patience, Served, look_up, parse_address
from perplexity_lies.checkpoint.preflight import (
    check_config,
    check_shapes,
    check_tokenizer,
    has_chat_template,
    needs_remote_code,
    read_config,
    tokenizer_files,
)
from perplexity_lies.checkpoint.weights import (
    SAFETENSORS,
    digest_files,
    digest_tensors,
    find_weight_files,
    listing,
    read_tensors,
    stored_dtype,
)
from perplexity_lies.errors import CheckpointError, MissingError, UsageError, nearest

LOCAL, HUB, BUILTIN, ENDPOINT = "local", "hub", "builtin", "endpoint"

EMBEDDED = Path(__file__).parents[1] / "embedded"
BUILTINS = ("teacher", "student")

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[^@\s]+))?")
HUB_TOKENIZER = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
HUB_FILES = ("*.safetensors", *HUB_TOKENIZER)
HUB_SKIP = ("original/*", "consolidated*", "onnx/*")
"""Second copies of the weights in other layouts."""

LOOK_UP = Patience(attempts=3, timeout_s=30.0)
"""With an address that was typed: a slip of the hand should not take a minute to be told."""

VOLATILE_KEYS = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "is_local"})
"""Keys that saving writes anew and that change nothing that is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights at a place and revision, found usable as far as files can tell."""

    name: str
    """As the user typed it."""
    path: Path | None
    """Its files; of an endpoint its tokenizer's, None where that is not known."""
    kind: str
    """`local`, `hub`, `builtin` or `endpoint`."""
    revision: str = ""
    """Commit of a hub snapshot; empty for a directory."""
    weights_digest: str
    """`sha256:...`, as the three below. Empty for an endpoint, whose weights nobody here can see."""
    tokenizer_digest: str
    config_digest: str
    """Over config, generation config and, where remote code is allowed, the checkpoint's own Python files."""
    digest: str
    """Over the three: the fingerprint."""
    model_type: str
    architecture: str
    """First of the config's `architectures`; empty where it lists none."""
    dtype: str
    """As stored, e.g. `bfloat16`; `unknown` for pickle."""
    parameters: int
    """Elements of the stored tensors, tied ones once; 0 for pickle, which is not opened to count."""
    has_chat_template: bool
    trust_remote_code: bool = False
    allow_pickle: bool = False
    served: Served | None = None
    """Of kind `endpoint`: who answers in the place of files."""

    def describe(self) -> dict[str, object]:
        """What a manifest keeps: everything but the place on this machine."""
        keys = (
            "name",
            "kind",
            "revision",
            "digest",
            "weights_digest",
            "tokenizer_digest",
            "config_digest",
            "model_type",
        )
        more = ("architecture", "dtype", "parameters", "has_chat_template", "trust_remote_code", "allow_pickle")
        found: dict[str, object] = {key: getattr(self, key) for key in (*keys, *more)}
        return found | ({"url": self.served.url, "served_model": self.served.model} if self.served else {})


def _sha256(parts: Iterable[bytes]) -> str:
    """Digest of byte strings, each led by its length, so that no two lists of parts collide by their joints."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def _canonical_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps({k: v for k, v in content.items() if k not in VOLATILE_KEYS}, sort_keys=True).encode()


def _digest_tokenizer(name: str, directory: Path) -> str:
    parts = []
    for path in tokenizer_files(directory):
        config = path.name == "tokenizer_config.json"
        parts += [path.name.encode(), _canonical_json(read_config(name, path)) if config else path.read_bytes()]
    return _sha256(parts)


def _digest_config(name: str, directory: Path, config: Mapping[str, Any], *, with_code: bool) -> str:
    generation = directory / "generation_config.json"
    parts = [_canonical_json(config), _canonical_json(read_config(name, generation)) if generation.is_file() else b""]
    for path in sorted(directory.glob("*.py")) if with_code else []:
        parts += [path.name.encode(), path.read_bytes()]
    return _sha256(parts)


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory has a config and weights, at a glance."""
    weights = (SAFETENSORS, f"{SAFETENSORS}.index.json")
    return (directory / "config.json").is_file() and any((directory / file).is_file() for file in weights)


def _checkpoints_in(directory: Path) -> list[str]:
    """Subdirectories that are checkpoints, as the user would type them."""
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
    """A snapshot in the hub's cache, downloaded where it is absent. Raises MissingError where that fails."""
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
        # A commit that lies whole in the cache needs no list of its files from the hub.
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
    """(kind, directory, revision) of what `name` names; `files` are fetched where it is the hub's."""
    if not name.strip():
        raise UsageError("checkpoint '' names nothing", mend="a directory, ORG/NAME[@REVISION] or builtin:teacher")
    if name.startswith("builtin:"):
        return BUILTIN, _locate_builtin(name), ""
    path = Path(name).expanduser()
    hub = HUB_ID.fullmatch(name)
    # `runs/student` where runs/ is a directory here is a path with a slip of the hand, not a repository.
    if name.startswith((".", "/", "~")) or path.exists() or hub is None or path.parent.is_dir():
        return LOCAL, _locate_local(name, path), ""
    path = _locate_hub(name, hub["id"], hub["revision"], files=files)
    return HUB, path, path.name


def _check_directory(name: str, path: Path) -> None:
    """What the directory is instead of a checkpoint. Raises CheckpointError."""
    if (path / "adapter_config.json").is_file():
        base = read_config(name, path / "adapter_config.json").get("base_model_name_or_path", "BASE")
        named = base if isinstance(base, str) and HUB_ID.fullmatch(base) else "BASE"  # it goes into a command to type
        raise CheckpointError(
            f"checkpoint {name!r} is a PEFT adapter, not a whole checkpoint",
            found=f"adapter_config.json, for the base {base}",
            mend=(
                "merge it: python -c \"import peft, transformers as t; p = '" + str(path) + "'; "
                "peft.AutoPeftModelForCausalLM.from_pretrained(p).merge_and_unload().save_pretrained('merged')"
                f"; t.AutoTokenizer.from_pretrained('{named}').save_pretrained('merged')\"",
                "then give ./merged",
            ),
        )
    if (path / "config.json").is_file():
        return
    if list(path.glob("*.gguf")):
        find_weight_files(name, path, allow_pickle=False)
    inside = _checkpoints_in(path)
    raise CheckpointError(
        f"checkpoint {name!r} has no config.json",
        found=(f"in {path}: {listing(path)}", *([f"checkpoints in it: {', '.join(inside[:5])}"] if inside else [])),
        mend=f"give {inside[-1]}" if inside else "give a directory that save_pretrained wrote, or hf download fetched",
    )


def _resolve(name: str, kind: str, path: Path, revision: str, *, pickle: bool, remote_code: bool) -> Checkpoint:
    _check_directory(name, path)
    config = read_config(name, path / "config.json")
    check_config(name, path, config, trust_remote_code=remote_code)
    check_tokenizer(name, path)
    files = find_weight_files(name, path, allow_pickle=pickle)
    if files[0].suffix == ".safetensors":
        tensors = read_tensors(name, files)
        check_shapes(name, path, config, tensors)
        weights, dtype = digest_tensors(name, tensors), stored_dtype(tensors)
        parameters = sum(tensor.elements for tensor in tensors)
    else:
        weights, dtype, parameters = digest_files(name, files), "unknown", 0
    tokenizer = _digest_tokenizer(name, path)
    code = remote_code and needs_remote_code(path, config)
    configuration = _digest_config(name, path, config, with_code=code)
    return Checkpoint(
        name=name,
        path=path,
        kind=kind,
        revision=revision,
        weights_digest=weights,
        tokenizer_digest=tokenizer,
        config_digest=configuration,
        digest=_sha256([weights.encode(), tokenizer.encode(), configuration.encode()]),
        model_type=config["model_type"],
        architecture=next(iter(config.get("architectures") or ()), ""),
        dtype=dtype,
        parameters=parameters,
        has_chat_template=has_chat_template(name, path),
        trust_remote_code=remote_code,
        allow_pickle=pickle,
    )


def _tokenizer_of(served: Served, asked: str | None, *, remote_code: bool) -> Path | None:
    """Where the tokenizer of a served model lies: as the user says, or where the server itself names a directory here."""
    if asked is None:
        near = Path(served.model).expanduser()
        return near if near.is_dir() and tokenizer_files(near) else None
    path = _locate(asked, HUB_TOKENIZER + (("*.py",) if remote_code else ()))[1]
    check_tokenizer(asked, path)
    return path


def _resolve_served(name: str, served: Served, tokenizer: str | None, *, remote_code: bool) -> Checkpoint:
    path = _tokenizer_of(served, tokenizer, remote_code=remote_code)
    config = read_config(name, path / "config.json") if path and (path / "config.json").is_file() else {}
    digest = _digest_tokenizer(name, path) if path else ""
    description = _sha256([served.url.encode(), served.model.encode(), _canonical_json(served.entry)])
    return Checkpoint(
        name=name,
        path=path,
        kind=ENDPOINT,
        weights_digest="",
        tokenizer_digest=digest,
        config_digest=description,
        digest=_sha256([ENDPOINT.encode(), digest.encode(), description.encode()]),
        model_type=str(config.get("model_type", "unknown")),
        architecture="",
        dtype="unknown",
        parameters=0,
        has_chat_template=has_chat_template(name, path) if path else False,
        trust_remote_code=remote_code,
        served=served,
    )


def resolve(
    name: str, *, allow_pickle: bool = False, trust_remote_code: bool = False, tokenizer: str | None = None
) -> Checkpoint:
    """The checkpoint that `name` names: a directory, `ORG/NAME[@REVISION]` of the hub, `builtin:teacher` or `:student`,
    or `http(s)://HOST:PORT/v1#MODEL`, whose `tokenizer` is a directory or hub id (`#MODEL` may be left out where only one
    is served, `tokenizer` where the server names its model by a directory of this machine).

    Reads every byte of the weights once (a bar on standard error after two seconds) and loads nothing.
    Raises MissingError where there is nothing under that name, CheckpointError where the files cannot be used (both
    exit code 3), UsageError where the string cannot name a checkpoint (exit code 2).
    """
    files = HUB_FILES + (("*.bin",) if allow_pickle else ()) + (("*.py",) if trust_remote_code else ())
    address = parse_address(name)
    try:
        if address is not None:
            return _resolve_served(name, look_up(address, LOOK_UP), tokenizer, remote_code=trust_remote_code)
        kind, path, revision = _locate(name, files)
        return _resolve(name, kind, path, revision, pickle=allow_pickle, remote_code=trust_remote_code)
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
