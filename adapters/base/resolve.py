"""The frozen base: found, quantised to NF4 for training, and dequantised once into the twin that is served.

Adapters are trained on the NF4 weights, so the model they belong to is the twin: those weights dequantised and saved
in the compute dtype. transformers and bitsandbytes are loaded inside the functions that need them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.config import BaseConfig
from ...core.disk.digest import CHUNK_BYTES, digest_json, sha256_file, short
from ...core.disk.files import expanded, require_space, staged_folder, sweep_staged, write_json
from ...core.disk.locks import lock_of, locked
from ...core.environment import meaning
from ...core.errors import ConfigError, FailedError, IncompatibleError, IntegrityError, NotFoundError
from ...core.reading.strict_json import read_object
from ...sandbox import BASE_FOLDER, BASE_REPO
from ..header import read_header, shown
from ..hub import snapshot
from .checkpoint import CONFIG_FILE, INDEX_FILE, open_checkpoint
from .model_config import model_config
from .quantised import refuse_packed, refuse_quantised_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SANDBOX = "sandbox"
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

# On some CPUs bitsandbytes says at import, whoever imports it, that an optional inference kernel is not installed.
# Training never uses that kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))


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
    if config.path is None and config.repo == BASE_REPO and config.revision == content_revision(BASE_FOLDER):
        return BaseRef(repo=config.repo, revision=config.revision, path=BASE_FOLDER)  # wherever plyfold lies by now
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


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base or twin folder; one without a padding token pads with its end token, as TRL does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_nf4(ref: BaseRef, quantisation: Quantisation, device: str | None = None) -> PreTrainedModel:
    """Load a base with its linear weights in NF4, ready to train adapters on.

    Args:
        ref: The base.
        quantisation: How to quantise; all but the embeddings and the head.
        device: `cpu` or `cuda:N`; null takes CUDA where there is some.

    Raises:
        IncompatibleError: transformers has no causal language model for its config, or an adapter lies beside it.
        FailedError: Nothing was quantised, or not in the blocks that `quantisation` states.
    """
    import torch

    refuse_adapter_beside(ref.path)
    with quiet_loading():
        from transformers import BitsAndBytesConfig

        compute_dtype = getattr(torch, quantisation.compute_dtype)
        model = _language_model(ref.path, several=False).from_pretrained(
            ref.path,
            dtype=compute_dtype,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=quantisation.quant_type,
                bnb_4bit_use_double_quant=quantisation.double_quant,
                bnb_4bit_compute_dtype=compute_dtype,
            ),
            device_map={"": device or default_device()},
            local_files_only=True,
        )
        _plain_decoding(model)
    # Reports and checkpoints of other libraries name the model by this; where it lies is nobody else's.
    model.name_or_path = model.config.name_or_path = ref.repo
    layers = _linear4bit(model)
    blocksizes = {layer.weight.quant_state.blocksize for layer in layers}
    if blocksizes != {quantisation.blocksize}:
        raise FailedError(
            "the base was not quantised as asked", where=ref.repo, found=blocksizes, expected=quantisation.blocksize
        )
    for layer in layers:
        # An eval forward on an AVX512-BF16 CPU would repack the weights in place for inference only: training
        # afterwards crashes or loses the base's gradient, and the way back is inexact.
        layer.support_avx512bf16_for_cpu = False
    return model


def ensure_twin(ref: BaseRef, quantisation: Quantisation, cache: Path) -> Path:
    """The base as adapters saw it in training: NF4 weights dequantised, as a plain checkpoint.

    Made once for a base and quantisation, under a lock, complete or absent. A damaged twin is made anew, and so is one
    that is not known to be of these weights.

    Returns:
        `cache/twins/<repo>-<12 hex>`, whose config has no quantization_config, whose tokenizer and generation
        config are the base's bytes.

    Raises:
        DiskFullError: No room for a copy in the compute dtype.

    Numerics: weights are bit-equal to what the NF4 layers dequantise to on the device used, which is the one that
        training takes; tests/numerics/test_stack_twin.py.
    """
    folder = twin_path(ref, quantisation, cache)
    with locked(lock_of(folder)):
        sweep_staged(folder)
        if not _sound_twin(folder, ref):
            require_space(folder.parent, _twin_bytes(ref, quantisation))
            with staged_folder(folder, replace=True) as staged:
                _make_twin(ref, quantisation, staged)
                write_json(staged / TWIN_NAME, twin_note(ref, quantisation))
                if ref.weights is not None:
                    write_json(staged / TWIN_SOURCE, {"weights": ref.weights})
        else:
            os.utime(folder)  # in use: what has long been unused may be swept
    return folder


def twin_note(ref: BaseRef, quantisation: Quantisation) -> dict[str, Any]:
    """What a twin's `twin.json` holds."""
    return {"schema": 1, **_twin_identity(ref, quantisation)}


def twin_path(ref: BaseRef, quantisation: Quantisation, cache: Path) -> Path:
    """Where `ensure_twin` puts a twin, made or not."""
    identity = digest_json(_twin_identity(ref, quantisation))
    return cache / "twins" / f"{re.sub(r'[^A-Za-z0-9._-]+', '--', ref.repo)}-{short(identity)}"


def load_twin(path: Path, device: str | None = None) -> PreTrainedModel:
    """Load a twin, or any plain checkpoint, in the dtype it was saved in, for inference."""
    refuse_adapter_beside(path)
    with quiet_loading():
        model = _language_model(path, several=True).from_pretrained(
            path, dtype="auto", device_map={"": device or default_device()}, local_files_only=True
        )
        _plain_decoding(model)
    return model.eval()


def _plain_decoding(model: PreTrainedModel) -> None:
    """Keep of a base's generation config its special tokens alone.

    `generate` fills whatever it is not told from there: a repetition penalty, a cut, forbidden tokens. What samples
    would then be neither what trains nor what is scored and served.
    """
    from transformers import GenerationConfig

    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(model.generation_config, name) for name in tokens})


def _language_model(path: Path, *, several: bool) -> Any:
    """The auto class that loads a folder: a causal language model, or one of `several` modalities for its text.

    Raises:
        IncompatibleError: transformers has none for the folder's config.
    """
    import transformers

    kinds = {transformers.AutoModelForCausalLM: transformers.MODEL_FOR_CAUSAL_LM_MAPPING}
    if several:
        kinds[transformers.AutoModelForImageTextToText] = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        found = next((kind for kind, models in kinds.items() if type(config) in models), None)
    except (ValueError, OSError, KeyError, TypeError):  # a type that it does not know, or code that lies beside it
        found = None
    if found is None:
        raise IncompatibleError(
            f"transformers {transformers.__version__} has no language model for this config",
            where=path / "config.json",
            expected="a causal language model" + (", or one of images and text" if several else ""),
            found=f"model_type {shown(model_config(path).get('model_type'))}",
        )
    return found


def default_device() -> str:
    """`cuda:N` of this process (LOCAL_RANK) where there is CUDA, else `cpu`."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' bars, drawn even where nobody watches, and its deprecations off the screen."""
    import transformers.utils.logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _linear4bit(model: PreTrainedModel) -> list[Any]:
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def _make_twin(ref: BaseRef, quantisation: Quantisation, folder: Path) -> None:
    import torch

    model = load_nf4(ref, quantisation)
    with quiet_loading():
        for name, module in list(model.named_modules()):
            if hasattr(module, "support_avx512bf16_for_cpu"):
                model.set_submodule(name, _dequantised(module))
        assert {p.dtype for p in model.parameters()} == {getattr(torch, quantisation.compute_dtype)}
        model.hf_quantizer = None
        model.is_quantized = False
        model.config.__dict__.pop("quantization_config", None)
        model.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # an engine that starts next finds the memory free
    # Bytes, not what transformers makes of them: it validates, rewrites and adds.
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in accompanying(ref.path)[0]:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _dequantised(layer: Any) -> Any:
    """A Linear4bit as the plain Linear it computes: W_OI of the compute dtype, the same bias."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    with torch.device("meta"):
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight = torch.nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state), False)
    linear.bias = layer.bias
    return linear


def _twin_identity(ref: BaseRef, quantisation: Quantisation) -> dict[str, Any]:
    return {"repo": ref.repo, "revision": ref.revision, "quantisation": quantisation.to_json()}


def _sound_twin(folder: Path, ref: BaseRef) -> bool:
    try:
        check_weights(folder)
        source = read_object(folder / TWIN_SOURCE, "the twin's source") if ref.weights is not None else {}
    except (NotFoundError, IntegrityError, OSError):
        return False
    return (folder / TWIN_NAME).is_file() and source.get("weights") == ref.weights


def _twin_bytes(ref: BaseRef, quantisation: Quantisation) -> int:
    headers = [read_header(file) for file in check_weights(ref.path)]
    entries = [entry for header in headers for entry in header.tensors.values()]
    width = 4 if quantisation.compute_dtype == "float32" else 2
    numbers = 0
    for entry in entries:
        count = 1
        for side in entry.shape:
            count *= side
        numbers += count
    return numbers * width
