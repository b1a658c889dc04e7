"""The reference engine: transformers and PEFT, one model, variants switched by name.

Slower than vLLM and the same greedy answers up to arithmetic: the twin in its own dtype, adapters in float32 as they
were trained, prompts sorted by length and padded on the left. Samples are drawn batch by batch from one seeded stream,
so they depend on the batch size as well as on the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..adapters.base.load import load_tokenizer, load_twin
from ..adapters.spec import read_spec, refuse_other_keys
from ..core.console import progress
from ..core.errors import ConfigError, NotFoundError
from .protocol import BASE, PROBE_TOKENS, Generation, check_temperature, describe_decoding, end_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HfEngine:
    """Answers with `transformers.generate`, every variant a PEFT adapter of one model."""

    def __init__(
        self,
        twin: Path,
        adapters: Mapping[str, Path | None],
        *,
        max_new_tokens: int,
        batch_size: int,
        stop: Sequence[str] = (),
        device: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Load the twin and all adapters.

        Args:
            twin: Folder of the dequantised base, with its tokenizer.
            adapters: Variant name -> folder of its one composed adapter; None is the base itself.
            max_new_tokens: Longest completion, in tokens.
            batch_size: Prompts a forward pass.
            stop: Strings that end a completion.
            device: `cpu` or `cuda:N`; null takes CUDA where there is some.
            temperature: 0 decodes greedily; above 0 samples, with neither top_p nor top_k.
            seed: Of the samples; every variant starts from it.

        Raises:
            NotFoundError, IntegrityError, UnsupportedAdapterError: An adapter that cannot be read.
            ConfigError: No room for an answer, a batch of nothing, or a temperature below 0.
        """
        if max_new_tokens < 1 or batch_size < 1:
            raise ConfigError(
                "max_new_tokens and batch_size are at least 1", where="eval", found=(max_new_tokens, batch_size)
            )
        self._temperature, self._seed = check_temperature(temperature), seed
        paths = {name: path for name, path in adapters.items() if path is not None}
        for path in paths.values():
            refuse_other_keys(read_spec(path))
        self._max_new_tokens, self._batch_size, self._stop = max_new_tokens, batch_size, tuple(stop)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(twin)
        model = load_twin(twin, device)
        self._window: int = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        self._dtype = str(model.dtype).removeprefix("torch.")
        self._set_decoding(model, twin)
        self._names = {name: f"variant{index}" for index, name in enumerate(paths)}  # PEFT's own must hold no dots
        self._model = _attach(model, {self._names[name]: path for name, path in paths.items()})

    def generate(self, variant: str, prompts: Sequence[str]) -> list[Generation]:
        """Completions of one variant, in the order of the prompts.

        Raises:
            NotFoundError: The engine does not hold that variant.
            ConfigError: A prompt that leaves no room for an answer.
        """
        ids = [self._tokenizer(prompt)["input_ids"] for prompt in prompts]
        for prompt, row in zip(prompts, ids, strict=True):
            if len(row) >= self._window:
                raise ConfigError(
                    "a prompt is longer than the model's context",
                    expected=f"fewer than {self._window} tokens",
                    found=f"{len(row)} tokens: {prompt[:60]}…",
                )
        # Longest first: the batch that needs most memory comes first, and padding is least.
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        found: dict[int, Generation] = {}
        with self._active(variant), self._seeded(), progress(f"scoring {variant}", total=len(ids)) as task:
            for start in range(0, len(order), self._batch_size):
                batch = order[start : start + self._batch_size]
                found.update(zip(batch, self._generate_batch([ids[index] for index in batch]), strict=True))
                task.advance(len(batch))
        return [found[index] for index in range(len(ids))]

    def generate_all(self, variants: Sequence[str], prompts: Sequence[str]) -> dict[str, list[Generation]]:
        """Completions of several variants, one after the other."""
        return {variant: self.generate(variant, prompts) for variant in variants}

    def probe(self, variant: str, prompts: Sequence[str]) -> list[tuple[float, ...]]:
        """Log probabilities of each prompt's likeliest first tokens, without padding, in float32."""
        rows = []
        with self._active(variant), torch.inference_mode():
            for prompt in prompts:
                ids_BT = torch.tensor([self._tokenizer(prompt)["input_ids"]], device=self._model.device)
                logits_V = self._model(input_ids=ids_BT).logits[0, -1].float()
                rows.append(tuple(torch.log_softmax(logits_V, -1).topk(PROBE_TOKENS).values.tolist()))
        return rows

    def describe(self) -> dict[str, Any]:
        """Engine, versions, dtype and limits."""
        import peft
        import transformers

        return {
            "engine": "hf",
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "torch": torch.__version__,
            "dtype": self._dtype,
            "device": self._model.device.type,
            "max_new_tokens": self._max_new_tokens,
            "batch_size": self._batch_size,
            **describe_decoding(self._temperature, self._seed),
        }

    def close(self) -> None:
        """Let go of the model; the engine cannot be used afterwards."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _set_decoding(self, model: Any, twin: Path) -> None:
        from transformers import GenerationConfig

        self._end_ids = end_token_ids(twin) or tuple(filter(None.__ne__, [self._tokenizer.eos_token_id]))
        if not self._end_ids:
            raise NotFoundError("the base names no end token", where=twin, expected="eos_token_id in config.json")
        pad = self._tokenizer.pad_token_id
        self._pad_id: int = self._end_ids[0] if pad is None else pad
        # Replaced, not passed to generate(): there the base's own sampling defaults would be merged into it.
        sampling = {"temperature": self._temperature, "top_p": 1.0, "top_k": 0} if self._temperature else {}
        model.generation_config = GenerationConfig(
            do_sample=bool(sampling), eos_token_id=list(self._end_ids), pad_token_id=self._pad_id, **sampling
        )

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Draw from the seed's stream, and leave the caller's where it was."""
        with torch.random.fork_rng(enabled=self._temperature > 0):
            if self._temperature:
                torch.manual_seed(self._seed)
            yield

    @contextmanager
    def _active(self, variant: str) -> Iterator[None]:
        if variant != BASE and variant not in self._names:
            raise NotFoundError(
                "the engine does not hold this variant", found=variant, expected=", ".join([BASE, *self._names])
            )
        if variant == BASE:
            with self._model.disable_adapter() if self._names else nullcontext():
                yield
        else:
            self._model.set_adapter(self._names[variant], inference_mode=True)
            yield

    def _generate_batch(self, rows: Sequence[list[int]]) -> list[Generation]:
        width = max(map(len, rows))
        ids_BT = torch.full((len(rows), width), self._pad_id)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids_BT[index, width - len(row) :] = torch.tensor(row)
            mask_BT[index, width - len(row) :] = 1
        device = self._model.device
        with torch.inference_mode():
            out_BT = self._model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                max_new_tokens=min(self._max_new_tokens, self._window - min(map(len, rows))),
                stopping_criteria=[self._stops_at(width)] if self._stop else None,
            )
        new_BT = out_BT[:, width:].tolist()
        return [
            self._read(ids, min(self._max_new_tokens, self._window - len(row)))
            for ids, row in zip(new_BT, rows, strict=True)
        ]

    def _stops_at(self, width: int) -> Any:
        """A criterion that ends a row once a stop string stands in its last tokens."""
        span = max(len(text.encode()) for text in self._stop) + 1  # a token holds at least one byte

        def stops(ids_BT: torch.Tensor, scores_BV: torch.Tensor, **_: Any) -> torch.Tensor:
            texts = self._tokenizer.batch_decode(ids_BT[:, max(width, ids_BT.shape[1] - span) :])
            return torch.tensor([any(stop in text for stop in self._stop) for text in texts], device=ids_BT.device)

        return stops

    def _read(self, ids: list[int], limit: int) -> Generation:
        """Cut one row's new tokens at its end token, its stop string or its limit, and count them."""
        ids = ids[:limit]
        end = next((index for index, token in enumerate(ids) if token in self._end_ids), None)
        content = ids if end is None else ids[:end]
        text = self._decode(content)
        cut = min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=None)
        if cut is not None:
            return Generation(text=text[:cut], num_tokens=self._tokens_to_stop(content), finish_reason="stop")
        # A character cut in the middle is no text; vLLM leaves it out as well.
        text = text.rstrip("\ufffd")
        num_tokens = len(ids) if end is None else end + 1
        return Generation(text=text, num_tokens=num_tokens, finish_reason="length" if end is None else "stop")

    def _tokens_to_stop(self, ids: list[int]) -> int:
        """Fewest leading tokens whose text holds a stop string."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            text = self._decode(ids[:middle])
            low, high = (low, middle) if any(stop in text for stop in self._stop) else (middle + 1, high)
        return low

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text


def _attach(model: Any, adapters: Mapping[str, Path]) -> Any:
    from peft import PeftModel

    for index, (name, path) in enumerate(adapters.items()):
        if index == 0:
            model = PeftModel.from_pretrained(model, path, adapter_name=name)
        else:
            model.load_adapter(path, adapter_name=name)
    return model.eval()
