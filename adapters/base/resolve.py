"""Which base, and where: the embedded one, a folder, the Hub cache or the Hub; what its folder holds, by headers."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...core.config import BaseConfig
from ...core.disk.digest import CHUNK_BYTES, digest_json, sha256_file
from ...core.disk.files import expanded
from ...core.environment import meaning
from ...core.errors import ConfigError, IncompatibleError, IntegrityError, NotFoundError
from ...core.reading.strict_json import read_object
from ...sandbox import BASE_FOLDER, BASE_REPO, SANDBOX
from ..header import read_header
from ..hub import snapshot
from .checkpoint import CONFIG_FILE, INDEX_FILE, open_checkpoint
from .model_config import model_config
from .quantised import refuse_packed, refuse_quantised_config

COMPUTE_DTYPES = ("bfloat16", "float16", "float32")
CONTENT_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
"""Files that make a base what it is; what is fetched from the Hub and what `auto` digests."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files that decide how text becomes tokens."""
ACCOMPANYING = (
    *TOKENIZER_FILES, "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model.v*", "tekken.json",
    "*.tiktoken", "added_tokens.txt", "generation_config.json", "chat_template*.jinja", "preprocessor_config.json",
    "processor_config.json", "image_processor_config.json", "video_preprocessor_config.json",
    "additional_chat_templates", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""What belongs to a checkpoint beside its config and weights; a folder may hold an adapter, a run's state and more."""
TWIN_NAME = "twin.json"
TWIN_SOURCE = "twin-source.json"
"""In a twin: digest of the weights it was made from."""


@dataclass(frozen=True, kw_only=True)
class BaseRef:
    """A base model on this disk and its name in the world."""

    repo: str
    """Hub id."""
    revision: str
    """40 hex: a commit, or the digest of the folder's contents."""
    path: Path
    """Local folder; never part of a record."""
    weights: str | None = None
    """Digest of its weights, as `base_digest` takes it, where it was checked."""


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How the base's linear weights are quantised while adapters train on them."""

    compute_dtype: str = "bfloat16"
    """dtype the weights are dequantised to; the twin's dtype."""
    double_quant: bool = True
    """Whether the block scales are quantised too."""
    quant_type: str = "nf4"
    blocksize: int = 64
    """Weights that share a scale."""

    @classmethod
    def of(cls, config: BaseConfig) -> Quantisation:
        """The quantisation a config asks for.

        Raises:
            ConfigError: A dtype that cannot be computed in.
        """
        if config.compute_dtype not in COMPUTE_DTYPES:
            raise ConfigError(
                "not a compute dtype", where="base", found=config.compute_dtype, expected=", ".join(COMPUTE_DTYPES)
            )
        return cls(compute_dtype=config.compute_dtype, double_quant=config.double_quant)

    def to_json(self) -> dict[str, Any]:
        """As records hold it."""
        return asdict(self)

    def digest(self) -> str:
        """Digest of all fields."""
        return digest_json(self.to_json())


def resolve_base(config: BaseConfig, *, local_only: bool = False) -> BaseRef:
    """Find a base: the embedded sandbox, a local folder, the Hub cache, or (unless `local_only`) the Hub.

    Returns:
        A folder with a config and complete, sound safetensors; its revision as 40 hex where it is knowable.

    Raises:
        NotFoundError: No such folder or repository, or one without safetensors weights.
        ConfigError: A Hub base without a pinned revision.
        OfflineError: Not in the cache, and the Hub is switched off or out of reach.
        AuthError: The repository asks for a token.
        IntegrityError: A weights file is damaged.
        IncompatibleError: Its weights are quantised already.
    """
    if config.path is None and (embedded := embedded_base(config.repo, config.revision)):
        return BaseRef(repo=config.repo, revision=content_revision(embedded), path=embedded)
    if config.path is None:
        path = snapshot(
            config.repo,
            config.revision,
            patterns=CONTENT_PATTERNS,
            check=_complete,
            first=lambda folder: refuse_quantised_config(folder, config.repo),
            local_only=local_only,
        )
        refuse_quantised(path, config.repo)
        # A branch or tag becomes the commit it pointed to: the snapshot's folder name.
        commit = path.name if re.fullmatch(r"[0-9a-f]{40}", path.name) else config.revision
        return BaseRef(repo=config.repo, revision=commit, path=path)
    path = sandbox_folder() if config.path == SANDBOX else expanded(meaning(config.path))
    if not path.is_dir():
        raise NotFoundError("no such base folder", where=path, next_step="set base.path to a folder, or to null")
    refuse_quantised(path, config.repo)
    refuse_adapter_beside(path)
    revision = content_revision(path) if config.revision == "auto" else config.revision
    return BaseRef(repo=config.repo, revision=revision, path=path.resolve())


def _complete(cached: Path) -> None:
    """Refuse a cached folder that holds no safetensors, whatever else another program fetched into it."""
    if not any(cached.glob("*.safetensors")):
        raise NotFoundError("no safetensors weights of the base", where=cached)
    check_weights(cached)


def sandbox_folder() -> Path:
    """Folder of the embedded base."""
    return BASE_FOLDER


def embedded_base(repo: str, revision: str) -> Path | None:
    """The folder of the base that comes with plyfold, wherever plyfold lies by now; None where another is meant.

    Args:
        repo: Name of a base.
        revision: The digest of its content, or `auto` for the one that is here.
    """
    meant = repo == BASE_REPO and revision in ("auto", content_revision(BASE_FOLDER))
    return BASE_FOLDER if meant else None


def content_revision(path: Path) -> str:
    """First 40 hex of the SHA-256 over name, length and bytes of the files that make a base."""
    digest = hashlib.sha256()
    for file in sorted(content_files(path)):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:40]


def config_digest(path: Path) -> str:
    """Digest of a base folder's `config.json`.

    Raises:
        NotFoundError: There is none.
    """
    if not (path / "config.json").is_file():
        raise NotFoundError("a base without config.json", where=path)
    return sha256_file(path / "config.json")


def tokenizer_digest(path: Path) -> str | None:
    """Digest over the tokenizer files of a base folder and the chat template; None where there are none."""
    files = {name: sha256_file(path / name) for name in TOKENIZER_FILES if (path / name).is_file()}
    return digest_json(files) if files else None


def content_files(path: Path) -> set[Path]:
    """The files in a base folder that `CONTENT_PATTERNS` name."""
    return {file for pattern in CONTENT_PATTERNS for file in path.glob(pattern) if file.is_file()}


def accompanying(path: Path) -> tuple[list[Path], list[str]]:
    """What of a base folder belongs to a checkpoint made from it, and the names of what does not.

    Python files belong where a config says that the model's or the tokenizer's code is in them. The config, the
    weights, a twin's note and hidden files are in neither list.
    """
    patterns = [*ACCOMPANYING, "*.py"] if _has_code(path) else ACCOMPANYING
    known = {CONFIG_FILE, INDEX_FILE, TWIN_NAME, *(file.name for file in _weight_files(path))}
    belonging, left_out = [], []
    for file in sorted(path.iterdir()):
        if file.name in known or file.name.startswith((".", "__")):
            continue
        if any(fnmatchcase(file.name, pattern) for pattern in patterns) and _plain(file):
            belonging.append(file)
        else:
            left_out.append(file.name + "/" * file.is_dir())
    return belonging, left_out


def _plain(file: Path) -> bool:
    """Whether it is what its name says: a file, or a folder of chat templates alone."""
    if not file.is_dir():
        return file.is_file()
    return file.name == "additional_chat_templates" and all(
        each.is_file() and each.suffix == ".jinja" for each in file.iterdir()
    )


def _has_code(path: Path) -> bool:
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        try:
            if model_config(path, name).get("auto_map"):
                return True
        except (NotFoundError, IntegrityError):
            continue
    return False


def _weight_files(path: Path) -> list[Path]:
    try:
        return check_weights(path)
    except (NotFoundError, IntegrityError):
        return []


def refuse_adapter_beside(path: Path) -> None:
    """Refuse a base folder with an adapter in it: transformers would load that adapter, on the base it names.

    Raises:
        IncompatibleError: There is an `adapter_config.json`.
    """
    if (path / "adapter_config.json").exists():
        raise IncompatibleError(
            "an adapter lies in the base folder, and transformers would load it with the base",
            where=path / "adapter_config.json",
            expected="a base alone",
            next_step="move adapter_config.json and adapter_model.safetensors to a folder of their own",
        )


def check_weights(path: Path) -> list[Path]:
    """The weights files of a model folder, each with a sound header; errors as `open_checkpoint`."""
    return [path / file for file in open_checkpoint(path).shards]


def refuse_quantised(folder: Path, repo: str = "") -> None:
    """Refuse a base whose weights are quantised already, by its config or by its files' headers.

    Args:
        folder: Model folder.
        repo: Its Hub id, from which the 16-bit base's name is told; empty where it has none.

    Raises:
        IncompatibleError: They are quantised.
        NotFoundError, IntegrityError: As `check_weights`.
    """
    headers = [read_header(file) for file in check_weights(folder)]
    refuse_quantised_config(folder, repo)
    refuse_packed(headers, repo)


def folder_identity(folder: Path) -> tuple[str, str] | None:
    """(repo, revision) of a model folder whose notes or place tell: a twin, or a snapshot in a Hub cache.

    None for a plain folder.

    Raises:
        IntegrityError: A twin whose note is damaged.
    """
    folder = folder.resolve()
    if (folder / TWIN_NAME).is_file():
        twin = read_object(folder / TWIN_NAME, "the twin's note")
        return str(twin.get("repo")), str(twin.get("revision"))
    snapshots, cached = folder.parent, folder.parent.parent
    if snapshots.name == "snapshots" and cached.name.startswith("models--"):
        return cached.name.removeprefix("models--").replace("--", "/"), folder.name
    return None
