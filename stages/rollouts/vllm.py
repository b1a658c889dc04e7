"""Rollouts from a vLLM beside the trainer, in processes of its own: its thread pinning and settings stay out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import FailedError, IncompatibleError, first_line
from ...engines.vllm import model_dtype, start_llm
from ...engines.vllm_options import engine_options, vllm_version
from .engine import Completion, Request, Sampling
from .vllm_server import SLOTS


class VllmRollouts:
    """A RolloutEngine on this machine."""

    def __init__(self, twin: Path, *, rank: int, max_model_len: int, gpu_memory: float, seed: int) -> None:
        """Start vLLM on the twin.

        Args:
            twin: Folder of the dequantised base.
            rank: Of the adapters to come.
            max_model_len: Longest prompt plus completion, in tokens.
            gpu_memory: Share of the GPU's memory it may take.
            seed: Of its own random state.

        Raises:
            NotFoundError: vLLM is not installed.
            IncompatibleError: A rank above vLLM's largest.
            FailedError: vLLM did not start.
        """
        self._version = vllm_version()
        self._options = engine_options(twin, model_dtype(twin), [rank] * SLOTS, max_model_len=max_model_len)
        more: dict[str, Any] = {} if self._options.cpu else {"gpu_memory_utilization": gpu_memory}
        # After temperature, so that they are those of the distribution that was sampled from.
        try:
            self._llm: Any = start_llm(twin, self._options, seed=seed, logprobs_mode="processed_logprobs", **more)
        except FailedError as error:
            if more:
                error.next_step += (
                    f"; it may take {gpu_memory:.0%} of the GPU's memory beside the trainer (rollout.gpu_memory): "
                    "plyfold train --dry-run says what it needs at least, and what the trainer does"
                )
            raise
        self._adapters: dict[str, Any] = {}
        self._loaded = 0

    def load(self, name: str, folder: Path) -> None:
        """Take an adapter.

        Raises:
            IncompatibleError: vLLM refuses it.
        """
        from vllm.lora.request import LoRARequest

        self._loaded += 1
        adapter = LoRARequest(lora_name=name, lora_int_id=self._loaded, lora_path=str(folder))
        try:
            self._llm.llm_engine.add_lora(adapter)
        except Exception as error:
            raise IncompatibleError("vLLM does not take the adapter", where=folder, found=first_line(error)) from error
        self._adapters[name] = adapter

    def unload(self, name: str) -> None:
        """Forget an adapter."""
        self._llm.llm_engine.remove_lora(self._adapters.pop(name).lora_int_id)

    def sample(self, name: str, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """Draw completions.

        Raises:
            FailedError: vLLM died.
        """
        from vllm import SamplingParams

        decoding = [
            SamplingParams(
                n=request.n,
                seed=request.seed,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                stop_token_ids=list(sampling.stop_token_ids),
                ignore_eos=True,  # the trainer's end tokens alone, as `generate` is told
                logprobs=0,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        try:
            outputs = self._llm.generate(prompts, decoding, lora_request=self._adapters[name], use_tqdm=False)
        except Exception as error:
            raise FailedError(
                "vLLM failed while sampling",
                found=f"{type(error).__name__}: {first_line(error)}",
                next_step="run plyfold train again: it continues from the last checkpoint",
            ) from error
        return [[_completion(each) for each in output.outputs] for output in outputs]

    def describe(self) -> dict[str, Any]:
        """Engine, version and limits."""
        return {"engine": "vllm", "vllm": self._version, **self._options.describe()}

    def close(self) -> None:
        """End vLLM's processes; again does nothing."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None


def _completion(output: Any) -> Completion:
    ids = list(output.token_ids)
    return Completion(ids, [entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=True)])
