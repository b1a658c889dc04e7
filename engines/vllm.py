"""The fast engine: one vLLM for the base and all variants, every question of every variant in one submission.

vLLM runs in processes of its own, as it does when serving: its thread pinning and global settings stay out of this
one, and its memory is given back when the engine is closed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..adapters.base.load import load_tokenizer
from ..adapters.base.model_config import ModelConfig
from ..adapters.base.resolve import check_weights
from ..adapters.header import read_header
from ..adapters.placement import check_sizes
from ..adapters.spec import DTYPES, read_spec, refuse_other_keys
from ..core.console import Task, progress, verbosity
from ..core.errors import ConfigError, FailedError, IncompatibleError, NotFoundError, first_line
from .processes import followed
from .protocol import BASE, PROBE_TOKENS, Generation, check_temperature, describe_decoding, end_token_ids
from .vllm_options import EngineOptions, engine_options, vllm_version

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


class VllmEngine:
    """Answers with vLLM, every variant a LoRA of one engine. Close it, or use it as a context manager."""

    def __init__(
        self,
        twin: Path,
        adapters: Mapping[str, Path | None],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        max_model_len: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Start vLLM on the twin and load every adapter.

        Args:
            twin: Folder of the dequantised base, with its tokenizer.
            adapters: Variant name -> folder of its one composed adapter; None is the base itself.
            max_new_tokens: Longest completion, in tokens.
            stop: Strings that end a completion.
            max_model_len: Longest prompt plus completion, in tokens; null takes the base's, on a CPU at most 4096.
            temperature: 0 decodes greedily; above 0 samples, with neither top_p nor top_k.
            seed: Of the samples; each prompt has a stream of its own, whatever is batched with it.

        Raises:
            NotFoundError: vLLM is not installed, or an adapter or the twin is missing.
            IncompatibleError, ShapeMismatchError: An adapter that is not of this base, or that vLLM does not take.
            FailedError: vLLM did not start.
            ConfigError: No room for an answer, or a temperature below 0.
        """
        self._temperature, self._seed = check_temperature(temperature), seed
        if max_new_tokens < 1:
            raise ConfigError("max_new_tokens is at least 1", where="eval", found=max_new_tokens)
        self._version = vllm_version()
        paths = {name: path for name, path in adapters.items() if path is not None}
        specs = {name: read_spec(path) for name, path in paths.items()}
        for spec in specs.values():
            refuse_other_keys(spec)
        modules = {name: spec.modules.values() for name, spec in specs.items()}
        check_sizes(
            twin,
            {
                name: {module.name: (module.out_features, module.in_features) for module in present}
                for name, present in modules.items()
            },
        )
        ranks = [max(module.r for module in present) for present in modules.values()]
        self._options = engine_options(twin, model_dtype(twin), ranks, max_model_len=max_model_len)
        self._max_new_tokens, self._stop, self._end_ids = max_new_tokens, list(stop), end_token_ids(twin)
        self._tokenizer = load_tokenizer(twin)
        self._llm: Any = None
        self._llm = start_llm(twin, self._options)
        try:
            self._requests = self._load(paths)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End vLLM's processes. The engine cannot be used afterwards; closing again does nothing."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def generate(self, variant: str, prompts: Sequence[str]) -> list[Generation]:
        """Completions of one variant, in the order of the prompts.

        Raises:
            NotFoundError: The engine does not hold that variant.
            ConfigError: A prompt that leaves no room for an answer.
            FailedError: vLLM died.
        """
        return self.generate_all([variant], prompts)[variant]

    def generate_all(self, variants: Sequence[str], prompts: Sequence[str]) -> dict[str, list[Generation]]:
        """Completions of several variants, all (variant, prompt) pairs in one submission."""
        outputs = self._run(variants, prompts, self._decoding(len(prompts)), f"scoring {', '.join(variants)}")
        return {variant: [_generation(output) for output in rows] for variant, rows in outputs.items()}

    def probe(self, variant: str, prompts: Sequence[str]) -> list[tuple[float, ...]]:
        """Log probabilities of each prompt's likeliest first tokens."""
        greedy = [self._sampling(1, logprobs=PROBE_TOKENS)] * len(prompts)
        rows = self._run([variant], prompts, greedy, f"probing {variant}")[variant]
        found = []
        for output in rows:
            candidates = sorted((entry.logprob for entry in output.outputs[0].logprobs[0].values()), reverse=True)
            found.append(tuple(candidates[:PROBE_TOKENS]))
        return found

    def describe(self) -> dict[str, Any]:
        """Engine, version, dtype and limits."""
        return {
            "engine": "vllm",
            "vllm": self._version,
            **self._options.describe(),
            "max_new_tokens": self._max_new_tokens,
            **describe_decoding(self._temperature, self._seed),
        }

    def _load(self, paths: Mapping[str, Path]) -> dict[str, Any]:
        """Load every adapter now: one that vLLM meets in the middle of a batch and refuses kills the engine."""
        from vllm.lora.request import LoRARequest

        requests = {
            name: LoRARequest(lora_name=name, lora_int_id=index, lora_path=str(path))
            for index, (name, path) in enumerate(paths.items(), start=1)
        }
        for name, request in requests.items():
            try:
                self._llm.llm_engine.add_lora(request)
            except Exception as error:
                raise IncompatibleError(
                    "vLLM does not take an adapter", where=paths[name], found=first_line(error)
                ) from error
        return requests

    def _decoding(self, num_prompts: int) -> list[SamplingParams]:
        """One a prompt: under one seed alone, all prompts would draw the same random numbers."""
        if not self._temperature:
            return [self._sampling(self._max_new_tokens)] * num_prompts
        # vLLM reads the low 32 bits alone; a prime apart, neighbouring seeds share no stream below a million prompts.
        seeds = [(self._seed * 1_000_003 + index) % 2**32 for index in range(num_prompts)]
        return [self._sampling(self._max_new_tokens, temperature=self._temperature, seed=seed) for seed in seeds]

    def _sampling(
        self, max_tokens: int, *, temperature: float = 0.0, seed: int | None = None, logprobs: int | None = None
    ) -> SamplingParams:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
            stop=self._stop,
            stop_token_ids=list(self._end_ids),
            logprobs=logprobs,
        )

    def _run(
        self, variants: Sequence[str], prompts: Sequence[str], sampling: Sequence[SamplingParams], label: str
    ) -> dict[str, list[RequestOutput]]:
        adapters = [self._adapter(variant) for variant in variants]
        ids = [self._token_ids(prompt) for prompt in prompts]
        # One prompt for every variant, then the next: the variants' rows share each batch.
        submitted = [{"prompt_token_ids": row} for row in ids for _ in variants]
        decoding = [params for params in sampling for _ in variants]
        with progress(label, total=len(submitted)) as task:
            try:
                self._llm.enqueue(submitted, decoding, lora_request=adapters * len(ids), use_tqdm=False)
                outputs = self._llm.wait_for_completion(use_tqdm=lambda **_: _Bar(task))
            except Exception as error:
                raise FailedError("vLLM failed while answering", found=f"{type(error).__name__}: {error}") from error
        return {variant: outputs[index :: len(variants)] for index, variant in enumerate(variants)}

    def _adapter(self, variant: str) -> Any:
        if variant == BASE:
            return None
        if variant not in self._requests:
            raise NotFoundError(
                "the engine does not hold this variant", found=variant, expected=", ".join([BASE, *self._requests])
            )
        return self._requests[variant]

    def _token_ids(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer(prompt)["input_ids"]
        if len(ids) >= self._options.max_model_len:
            raise ConfigError(
                "a prompt is longer than the engine's context",
                expected=f"fewer than {self._options.max_model_len} tokens",
                found=f"{len(ids)} tokens: {prompt[:60]}…",
            )
        return ids


class _Bar:
    """What vLLM asks of a tqdm bar, drawn by `core.console.progress`."""

    def __init__(self, task: Task) -> None:
        self._task, self._start_s = task, time.monotonic()
        self.n = 0
        self.postfix = ""

    @property
    def format_dict(self) -> dict[str, float]:
        return {"elapsed": max(time.monotonic() - self._start_s, 1e-6)}

    def update(self, steps: int) -> None:
        self.n += steps
        self._task.advance(steps)

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


def start_llm(twin: Path, options: EngineOptions, **arguments: Any) -> Any:
    """A `vllm.LLM` of a twin, in processes of its own.

    Args:
        twin: Folder of the dequantised base.
        options: Of the engine.
        arguments: Further ones of `vllm.LLM`.

    Raises:
        FailedError: It did not start.
    """
    with progress("start vLLM"), _environment(options), followed():
        try:
            from vllm import LLM

            return LLM(
                str(twin),
                disable_log_stats=True,
                use_tqdm_on_load=verbosity() > 0,
                **{"seed": 0, **options.arguments(), **arguments},
            )
        except Exception as error:
            raise FailedError(
                "vLLM did not start",
                where=twin,
                found=first_line(error),
                next_step="its own messages are above; -v shows all of them",
            ) from error


@contextmanager
def _environment(options: EngineOptions) -> Iterator[None]:
    """Set what vLLM reads from the environment while its processes start, and put it back."""
    wanted = {
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        **options.environment(),
    }
    if verbosity() <= 0:
        wanted["VLLM_LOGGING_LEVEL"] = os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
        wanted["PYTHONWARNINGS"] = os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning")
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def model_dtype(twin: Path) -> str:
    """Dtype a model folder says it was saved in; that of its weights where it does not say."""
    if said := ModelConfig.read(twin).dtype:
        return said
    entries = (entry for file in check_weights(twin) for entry in read_header(file).tensors.values())
    return next((DTYPES[entry.dtype] for entry in entries if entry.dtype in DTYPES), "float32")


def _generation(output: RequestOutput) -> Generation:
    completion = output.outputs[0]
    return Generation(
        text=completion.text,
        num_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason or "length",
    )
