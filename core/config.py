"""What a curriculum run is made of, as typed dataclasses that OmegaConf fills from YAML and `key=value` overrides.

An unknown key is an error with a suggestion. A user's config may take values from its own other keys (`${data.path}`),
and from the environment (`${oc.env:MODELS}/qwen`) where a field is declared with `stays_here`: such a value is used on
this machine and goes nowhere else. Anything else between `${` and `}` is refused. Values that were not written for this
run, such as those of a record, are plain data: nothing in them is ever resolved.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any

from .environment import EnvironmentText
from .errors import ConfigError, NotFoundError, first_line
from .reading.interpolation import ConfigWriter, check_growth
from .reading.yaml_text import MAX_DEPTH, check_values, check_yaml, read_yaml

CURRICULUM_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
STAGE_NAME = r"^[a-z][a-z0-9_-]{0,62}$"
MAX_STAGE = 999
"""Largest number of a stage."""
_STAYS_HERE = "stays_here"
LINEAR_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def stays_here(default: Any = MISSING) -> Any:
    """A field whose value no record, card, score or request holds: it alone may be read from the environment."""
    return field(default=default, metadata={_STAYS_HERE: True})


@dataclass(kw_only=True)
class BaseConfig:
    """The frozen model every stage trains on."""

    repo: str
    """Hub id; the name the base has in records and adapter configs, also where `path` is given."""
    revision: str
    """Commit (40 hex) of that repository; `auto` takes the digest of the files at `path`."""
    path: str | None = stays_here(None)
    """Local folder of the base; `sandbox` is the embedded one, null loads `repo` from the Hub cache."""
    compute_dtype: str = "bfloat16"
    """dtype the NF4 weights are dequantised to (float32, bfloat16); the twin is saved in it."""
    double_quant: bool = True
    """Quantise the NF4 block scales too, as QLoRA does."""
    licence: str = "other"
    """Licence of the base, which its adapters inherit."""


@dataclass(kw_only=True)
class AdapterConfig:
    """The LoRA of one stage."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """Scale numerator; a power-of-two alpha / r folds without rounding."""
    targets: list[str] = field(default_factory=lambda: list(LINEAR_MODULES))
    """Names of the linear modules that get an adapter."""


@dataclass(kw_only=True)
class DataConfig:
    """Rows with a question, a gold answer and a teacher rationale."""

    path: str = stays_here()
    """Hub dataset id, a .jsonl, .json, .csv, .tsv or .parquet file, or `sandbox` for the generator. Read from the
    environment it has to be a file or folder: a dataset's id is on record, and in requests to the Hub."""
    name: str | None = None
    """Configuration of a Hub dataset (`main` for GSM8K)."""
    revision: str | None = None
    """Commit of a Hub dataset."""
    split: str = "train"
    """Split to read."""
    rows: list[int] | None = None
    """Half-open range [start, stop) of rows; null takes all."""
    part: list[float] | None = None
    """Half-open range [start, stop), shares between 0 and 1, of the questions in an order that their own text decides;
    null takes all. Where `eval` names no rows, its share is held out so."""
    rationales: int | None = None
    """Rows that keep their rationale, the first of the dataset; of later ones only the gold answer is read."""
    columns: dict[str, Any] = field(
        default_factory=lambda: {"question": "question", "answer": "answer", "rationale": "answer"}
    )
    """Our name -> the dataset's column, for question, answer and rationale: its name, with dots a path into structs
    (`reward_model.ground_truth`); or a list of columns whose texts are joined, each on a line of its own."""


@dataclass(kw_only=True)
class EvalConfig:
    """What variants are scored on."""

    data: DataConfig
    """Rows to score on; without them a share of the questions of `data` is held out from all training."""
    held_out_share: float | None = None
    """That share; null is 0.1. It becomes the `part` of all data, and is refused where `eval` has `data` of its own."""
    protocol: str = "zero-shot"
    """Named protocol: the prompt and when to stop."""
    limit: int | None = None
    """Number of problems; null takes all."""
    max_new_tokens: int = 512
    """Longest answer; a longer one counts as truncated."""
    batch_size: int = 64
    """Prompts a forward pass, for the `hf` engine."""
    engine: str = "hf"
    """`hf` or `vllm`."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above 0 one completion a problem is sampled, from all tokens."""
    seed: int = 0
    """Of the samples."""


@dataclass(kw_only=True)
class MaskingConfig:
    """Which rationale steps are hidden from the prompt."""

    mode: str = "one"
    """`one` masks a single step. The others mask max(minimum, share of the steps): `scattered` the last step and
    others, `consecutive` steps in a row, both all but one at most; `keep-ends` only what is between first and last."""
    hide: str = "step"
    """What a masked step loses: the whole `step`, its `numbers`, or its `operators` with their results."""
    probability: float = 1.0
    """Chance that a row is masked at all."""
    share: float = 0.5
    """Share of the steps that the other modes mask."""
    minimum: int = 3
    """Fewest steps that they mask, where the rationale has more."""


@dataclass(kw_only=True)
class RewardConfig:
    """The hierarchical reward: correct, then in format, then short."""

    mode: str = "continuous"
    """`continuous` is made of the values below; `paper` is the paper's formulas, in words and steps; `binary` is 1
    for a right answer and 0 otherwise."""
    wrong: float = -1.0
    """Reward of a wrong or missing answer."""
    unformatted: float = 0.0
    """Reward of a right answer without a parseable answer line."""
    correct: float = 1.0
    """Reward of a right, well-formed answer before brevity."""
    brevity: float = 0.5
    """Most that shortness can add; continuous in tokens against the teacher's rationale."""


@dataclass(kw_only=True)
class MiningConfig:
    """How persistent failures are found: problems of the train split wrong in every one of k samples."""

    samples: int = 4
    """Samples of a problem; a right one ends them."""
    confirm: int | None = None
    """k, samples in all of a problem that has no right one among `samples`; null draws no more than those."""
    problems: int | None = None
    """Train problems tried; null takes all of the stage's rows."""
    temperature: float = 1.0
    max_new_tokens: int = 512
    wrong_share: float = 0.5
    """Least share of a failure's samples that end in a wrong answer. Where more are cut off or without an answer, the
    form fails and not the problem: such ones are counted apart and not trained on."""
    held_out_share: float = 0.0
    """Share of the failures that is measured and not trained on."""
    rehearsal_share: float = 0.0
    """Share of the problems trained on that mining found solved: on failures alone a policy unlearns what it could."""
    minimum: int = 8
    """Fewest failures to train on; with fewer the stage stops with a clear error."""
    unaided_samples: int = 8
    """Fresh samples of a failure's bare prompt, before the stage and after it; 0 measures nothing."""
    unaided_problems: int = 64
    """Most failures measured so, of those trained on and of those held out."""


@dataclass(kw_only=True)
class RolloutConfig:
    """Where GRPO's completions come from; it changes how fast they come, not from which distribution."""

    engine: str = "hf"
    """`hf` is plain generate; `vllm` runs beside the trainer; `http` is a vLLM server, for several GPUs."""
    url: str | None = stays_here(None)
    """Of the server, for `http`."""
    gpu_memory: float = 0.5
    """Share of the GPU's memory that `vllm` may take; the trainer has the rest. Qwen2.5-3B on 24 GB: the twin's 6.2 GB
    and LoRA slots of 0.5 GB leave 5 of vLLM's 12 GB for its profiling and key-value cache; a trainer's peak is an
    estimated 8 GB."""
    timeout_s: float = 600.0
    """Longest wait for one answer of the server, in seconds."""


@dataclass(kw_only=True)
class StageConfig:
    """One stage: what it trains on, for how long and towards what."""

    number: int
    task: str
    """`reconstruct` (SFT), `complete` (GRPO) or `rewrite` (GRPO on mined failures)."""
    data: DataConfig | None = None
    """Rows of this stage; null takes the curriculum's."""
    adapter: AdapterConfig | None = None
    """LoRA of this stage; null takes the curriculum's, and so does what it does not say."""
    unaided_share: float = 0.0
    """Share of rows whose prompt is the bare evaluation prompt."""
    epochs: int = 1
    """Freshly masked and shuffled copies of the rows."""
    gate: str | None = None
    """What the stage has to reach on the evaluation rows before a later one trains: `accuracy >= 0.6`."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    """Fields of TRL's SFTConfig or GRPOConfig, checked by name."""


@dataclass(kw_only=True)
class CurriculumConfig:
    """A whole curriculum."""

    curriculum: str
    """Name; lower-case letters, digits and dashes."""
    base: BaseConfig
    data: DataConfig
    eval: EvalConfig
    stages: dict[str, StageConfig]
    """Stage name -> stage; trained in the order of their numbers."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    seed: int = 0
    threads: int | None = None
    """CPU threads torch may use; null leaves it to torch."""


HELD_OUT_SHARE = 0.1
"""Of the questions, where a config names no rows to score on."""
_NEEDED = {
    "curriculum": ((), "curriculum: my-curriculum"),
    "base": (
        ("repo", "revision"),
        "base: {repo: Qwen/Qwen2.5-3B, revision: 3aab1f1954e9cc14eb9509a215f9e5ca08227a9b, licence: qwen-research}",
    ),
    "data": (
        ("path",),
        "data: {path: train.jsonl, columns: {question: question, answer: answer, rationale: rationale}}",
    ),
    "stages": ((), "stages: {structure: {number: 1, task: reconstruct}}"),
}
"""Section -> the keys in it that have no default, and a line that is one."""
_WRITTEN = "_written"
"""Attribute of a loaded config: its plain form as it was written, which is what is saved."""


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> CurriculumConfig:
    """Read a config file or a packaged config by name, then apply `key=value` overrides.

    Args:
        source: A YAML file, or the name of a packaged config (`sandbox`, `gsm8k`, `paper`).
        overrides: Dotted `key=value` pairs; YAML rules decide a value's type.

    Raises:
        NotFoundError: No such file or packaged config.
        ConfigError: An unknown key, a value of the wrong type, a missing key, a malformed override, or a value that
            would leave this machine and is read from the environment.
    """
    from omegaconf import DictConfig, OmegaConf

    path = find_config(source)
    with _yaml_of("the config", path):
        loaded = OmegaConf.load(StringIO(read_yaml(path)))
    if not isinstance(loaded, DictConfig):
        raise ConfigError("the config is not a mapping", where=path)
    values: dict[str, Any] = OmegaConf.to_container(loaded, resolve=False)  # type: ignore[assignment]
    return _build(values, overrides, where=path, own=True)


@contextmanager
def _yaml_of(what: str, where: object) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # yaml's own errors share no base with OmegaConf's
        if what == "the config" and type(error).__module__.split(".")[0] == "omegaconf":
            raise ConfigError("the config holds what is no value", where=where, found=first_line(error)) from error
        if type(error) is ValueError:  # a number of thousands of digits
            raise ConfigError(f"{what} holds what is no value", where=where, found=first_line(error)) from error
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        mark = getattr(error, "problem_mark", None)
        place = f"{where} line {mark.line + 1}, column {mark.column + 1}" if mark and isinstance(where, Path) else where
        found = getattr(error, "problem", None) or first_line(error)
        key, equals, value = str(where).partition("=")
        quoted = f"""'{key}="{value}"'""" if equals and what == "an override" and not set("'\"\\") & set(value) else ""
        raise ConfigError(
            f"{what} is not YAML",
            where=place,
            found=found,
            next_step=f"a value that is text goes into quotes: {quoted}" if quoted else "",
        ) from error


def is_config(argument: str) -> bool:
    """Whether an argument is the name of a YAML file, where a config was not asked for by its place."""
    return argument.lower().endswith((".yaml", ".yml"))


def build_config(values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: object = "") -> CurriculumConfig:
    """The config that plain values make, such as those of a record, with `key=value` overrides applied.

    Nothing in the values is resolved: `${oc.env:HOME}` is that text. Only the overrides are the user's own.

    Args:
        values: Nested mappings, as `config_dict` gives them.
        overrides: Dotted `key=value` pairs; YAML rules decide a value's type.
        where: What an error names as the values' origin.

    Raises:
        ConfigError: As `load_config`.
    """
    return _build(_with_inherited_data(values), overrides, where=where, own=False)


def _with_inherited_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with a stage's `${data.path}` what it means in older records: the curriculum's own value."""
    common, stages = values.get("data"), values.get("stages")
    if not isinstance(common, Mapping) or not isinstance(stages, Mapping):
        return dict(values)

    def whole(stage: Any) -> Any:
        data = stage.get("data") if isinstance(stage, Mapping) else None
        if not isinstance(data, Mapping):
            return stage
        inherited = {key: common.get(key) for key, value in data.items() if value == f"${{data.{key}}}"}
        return {**stage, "data": {**data, **inherited}}

    return {**values, "stages": {name: whole(stage) for name, stage in stages.items()}}


MAX_KEY = 1000
"""Characters of an override's key."""
_KEY = re.compile(r"[^\[\]]*(?:\[[^\[\]]+\][^\[\]]*)*")
"""`data.path` or `data[path]`; of an open bracket OmegaConf is not prepared."""


def _build(values: Mapping[str, Any], overrides: Sequence[str], *, where: object, own: bool) -> CurriculumConfig:
    """The config that values make, whose interpolations are resolved where they are the user's `own`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        dotted, equals, value = override.partition("=")
        if not equals or len(dotted) > MAX_KEY or not _KEY.fullmatch(dotted):
            raise ConfigError(
                "an override is not key=value",
                found=override[:200],
                next_step=f"name a config with -c {override}"
                if is_config(override) and len(override) <= MAX_KEY
                else "write it as seed=1 or stages.brevity.trainer.max_steps=10",
            )
        with suppress(OmegaConfBaseException), _yaml_of("an override", override[:200]):  # the others are told below
            check_values(dotted, "an override")
            check_yaml(value, dotted[:200])
            if dotted.count(".") + dotted.count("[") > MAX_DEPTH:
                raise ConfigError("an override's key is nested too deep", found=dotted[:200])
            OmegaConf.from_dotlist([override])

    def place(key: object) -> object:
        whole = f"{str(key).partition('[')[0]}."
        given = key and any(f"{override.partition('=')[0]}.".startswith(whole) for override in overrides)
        return f"{key}, an override" if given else f"{key} in {where}" if key else where

    written = ConfigWriter(place, dict(scalar_fields()))
    try:
        changes: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False)
        plain = OmegaConf.merge({}, written.marked(values) if own else written.literal(values), written.marked(changes))
        check_growth(OmegaConf.to_container(plain, resolve=False), where)
        _check_stage_names(values, overrides, where)
        _require_sections(plain, where, written)
        whole = _with_whole_adapters(_with_held_out(plain))
        merged = OmegaConf.merge(_schema(), whole)
        unresolved = OmegaConf.to_container(merged, resolve=False)
        written.marked(unresolved)  # whatever OmegaConf made a text of on the way
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        at_key, told = getattr(error, "full_key", None), first_line(error)
        if written.is_marked(told):
            raise written.refusal(at_key, told) from None
        raise ConfigError(told, where=place(at_key), next_step=_suggestion(error)) from error
    assert isinstance(config, CurriculumConfig)
    _read_environment(config, written)
    _check(config, where)
    unresolved = written.unmarked(unresolved)
    check_values(unresolved, where)
    setattr(config, _WRITTEN, unresolved)
    return config


@cache
def _schema() -> Any:
    """The classes of a config as OmegaConf has them; what is merged into it is merged into a copy."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(CurriculumConfig)


def scalar_fields(kind: type = CurriculumConfig, key: str = "") -> Iterator[tuple[str, bool]]:
    """Every field that holds one value, as `stages.NAME.data.path`, and whether that stays on this machine."""
    for each in fields(kind):
        here, annotation = f"{key}{each.name}", str(each.type).removesuffix(" | None")
        section = globals().get(annotation.removeprefix("dict[str, ").removesuffix("]"))
        if isinstance(section, type) and is_dataclass(section):
            yield from scalar_fields(section, f"{here}.NAME." if "dict" in annotation else f"{here}.")
        elif annotation in ("str", "int", "float", "bool"):
            yield here, bool(each.metadata.get(_STAYS_HERE))


def _read_environment(section: Any, written: ConfigWriter, key: str = "") -> None:
    """Read what is marked in fields that stay here, in their place; refuse it everywhere else.

    Raises:
        ConfigError: A value that would leave this machine, or a variable that is not set.
    """
    if is_dataclass(section):
        for each in fields(section):
            here, value = f"{key}.{each.name}".lstrip("."), getattr(section, each.name)
            if each.metadata.get(_STAYS_HERE) and isinstance(value, str):
                setattr(section, each.name, written.read(value, here))
            else:
                _read_environment(value, written, here)
    elif isinstance(section, Mapping):
        for name, value in section.items():
            written.refuse(name, key)
            plain = asdict(value) if is_dataclass(value) and not isinstance(value, (StageConfig, type)) else value
            _read_environment(plain, written, f"{key}.{name}")
    elif isinstance(section, list):
        for index, value in enumerate(section):
            _read_environment(value, written, f"{key}[{index}]")
    else:
        written.refuse(section, key)


def require_read_rows(config: CurriculumConfig, overrides: Sequence[str]) -> None:
    """Refuse an override of `data` that no stage reads: it would change nothing, without a word.

    Raises:
        ConfigError: Every stage names rows of its own.
    """
    if any(stage.data is None for stage in config.stages.values()):
        return
    written = repr(getattr(config, _WRITTEN, config_dict(config))["stages"])
    for override in overrides:
        key, _, value = override.partition("=")
        whole = key.rpartition(".")[0]  # a stage may read the column by its name, or all columns
        if key.startswith("data.") and f"${{{key}" not in written and f"${{{whole}}}" not in written:
            raise ConfigError(
                "no stage reads this value: all of them name rows of their own",
                where=f"{key}, an override",
                found=value,
                next_step=" ".join(f"stages.{name}.{key}={value}" for name in config.stages),
            )


def find_config(source: str | Path) -> Path:
    """The file `source` names: itself, or the packaged config of that name."""
    path = Path(source)
    if path.is_file():
        return path
    packaged = Path(str(resources.files("plyfold.configs")))
    candidate = packaged / (path.name if path.suffix else f"{path.name}.yaml")
    if candidate.is_file() and path.parent in (Path(), Path("configs")):
        return candidate
    known = ", ".join(sorted(file.stem for file in packaged.glob("*.yaml")))
    raise NotFoundError("no such config", where=path, expected=f"a YAML file, or one of {known}")


def config_dict(config: CurriculumConfig) -> dict[str, Any]:
    """The config as plain dicts and lists; what was read from the environment is as it is spelt."""
    return asdict(config)


def save_config(config: CurriculumConfig, path: Path) -> None:
    """Write the config as YAML, interpolations as they were written."""
    from omegaconf import OmegaConf

    from .disk.files import write_bytes
    from .reading.interpolation import escaped

    written = getattr(config, _WRITTEN, None) or escaped(config_dict(config))
    write_bytes(path, OmegaConf.to_yaml(OmegaConf.create(written), resolve=False).encode())


def _check(config: CurriculumConfig, path: object) -> None:
    if not re.fullmatch(CURRICULUM_NAME, config.curriculum):
        raise ConfigError("not a curriculum name", where=path, found=config.curriculum, expected="a-z, 0-9 and dashes")
    for name in config.stages:
        if not re.fullmatch(STAGE_NAME, name):
            raise ConfigError("not a stage name", where=path, found=name,
                              expected="a letter of a-z, then a-z, 0-9, _ and -")  # fmt: skip
    numbers = [stage.number for stage in config.stages.values()]
    if not numbers or len(set(numbers)) != len(numbers) or not 1 <= min(numbers) <= max(numbers) <= MAX_STAGE:
        raise ConfigError(f"stages need different numbers from 1 to {MAX_STAGE}", where=path, found=numbers)
    if isinstance(config.rollout.url, EnvironmentText) and not config.rollout.url.is_whole:
        raise ConfigError(
            "a part of a server's address cannot be read from the environment: the server would be told it",
            where="rollout.url",
            found=config.rollout.url,
            expected="the whole address, as ${oc.env:NAME} or ${oc.env:NAME}/path",
        )
    if not 0 <= config.seed < 2**32:
        raise ConfigError("no such seed", where="seed", found=config.seed, expected="0 to 2**32 - 1")
    scored = {f"eval.{name}": getattr(config.eval, name) for name in ("limit", "max_new_tokens", "batch_size")}
    for key, value in {"threads": config.threads, **scored}.items():
        if value is not None and value < 1:
            raise ConfigError("too small a number", where=key, found=value, expected="1 or more")
    if not 0 <= config.eval.temperature < float("inf"):
        raise ConfigError("no such temperature", where="eval.temperature", found=config.eval.temperature,
                          expected="0 or more")  # fmt: skip


def _with_whole_adapters(plain: Any) -> Any:
    """The same, with what a stage's own adapter leaves open taken from the curriculum's."""
    from omegaconf import DictConfig, OmegaConf

    stages, common = plain.get("stages"), plain.get("adapter")
    for stage in stages.values() if isinstance(stages, DictConfig) else ():
        own = stage.get("adapter") if isinstance(stage, DictConfig) else None
        if isinstance(own, DictConfig) and isinstance(common, DictConfig):
            stage["adapter"] = OmegaConf.merge(common, own)
    return plain


def _require_sections(plain: Any, where: object, written: ConfigWriter) -> None:
    """Refuse a config without what has no default, with lines that mend it.

    Raises:
        ConfigError: A section, or a key of it, is missing.
    """
    missing, lines = [], []
    for section, (keys, mended) in _NEEDED.items():
        value = plain.get(section)
        lacking = [f"{section}.{key}" for key in keys if not hasattr(value, "get") or value.get(key) is None]
        if value is None or lacking:
            missing += [section] if value is None else lacking
            lines.append(_with_revision(value, written) if lacking == ["base.revision"] else mended)
    if missing:
        raise ConfigError(
            "the config lacks what has no default",
            where=where,
            expected=", ".join(_NEEDED),
            found=f"no {', no '.join(missing)}",
            next_step="write, with your own values:\n" + "\n".join(lines),
        )


def _with_revision(base: Any, written: ConfigWriter) -> str:
    """A base's section as it was written, with the revision that it lacks."""
    import yaml
    from omegaconf import OmegaConf

    words: Any = written.unmarked(OmegaConf.to_container(base, resolve=False))
    mended = {"base": {**words, "revision": "auto" if words.get("path") else "main"}}
    return str(yaml.safe_dump(mended, default_flow_style=None, sort_keys=False, width=10_000)).strip()


def _with_held_out(plain: Any) -> Any:
    """The same, with a share of the questions held out from all rows where no others are named to score on."""
    from copy import deepcopy

    from omegaconf import DictConfig, OmegaConf

    if plain.get("eval") is None:
        plain["eval"] = OmegaConf.create({})
    scored = plain.get("eval")
    if not isinstance(scored, DictConfig) or not isinstance(plain.data, DictConfig):
        return plain
    share = scored.get("held_out_share")
    if scored.get("data") is not None:
        if share is not None:
            raise ConfigError(
                "eval.data names rows to score on, so that none are held out",
                where="eval.held_out_share",
                found=share,
                next_step="leave out one of the two",
            )
        return plain
    share = HELD_OUT_SHARE if share is None else share
    if not isinstance(share, float) or not 0 < share < 1:
        raise ConfigError(
            "not a share",
            where="eval.held_out_share",
            found=share,
            expected="more than 0, less than 1",
            next_step=f"eval.held_out_share={HELD_OUT_SHARE}",
        )
    scored["data"] = deepcopy(plain.data)
    scored["held_out_share"] = None  # from here on the parts say it
    scored.data["part"] = [0.0, share]
    for section in (plain, *(stage for stage in (plain.get("stages") or {}).values() if isinstance(stage, DictConfig))):
        if isinstance(section.get("data"), DictConfig) and section.data.get("part") is None:
            section.data["part"] = [share, 1.0]
    return plain


def _check_stage_names(values: Mapping[str, Any], overrides: Sequence[str], where: object) -> None:
    """A mistyped stage in an override would otherwise be a new stage without a number."""
    stages = values.get("stages")
    known = list(stages) if isinstance(stages, Mapping) else []
    keys = [override.partition("=")[0].split(".") for override in overrides]
    added = {key[1] for key in keys if key[0] == "stages" and key[2:] == ["number"]}
    for key in keys:
        if key[0] == "stages" and len(key) > 2 and key[1] not in known and key[1] not in added:
            close = difflib.get_close_matches(key[1], known, n=1)
            hint = f"did you mean {close[0]}?" if close else ""
            raise ConfigError("no such stage", where=where, found=key[1], expected=", ".join(known), next_step=hint)


_STAGE_KEYS = {"number": "number: 1, its place among the stages", "task": "task: reconstruct, complete or rewrite"}


def _suggestion(error: BaseException) -> str:
    lacking = re.search(r"missing mandatory value: (\w+)", str(error))
    if lacking and lacking[1] in _STAGE_KEYS:
        return f"write {_STAGE_KEYS[lacking[1]]}"
    match = re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'", str(error))
    if not match or "Did you mean" in str(error):
        return ""
    known = getattr(globals().get(match[2]), "__dataclass_fields__", {})
    close = difflib.get_close_matches(match[1], known, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
