"""TRL's SFT and GRPO trainers over a frozen prior and one trainable adapter.

What stock TRL gets wrong here, without a word, is put right in one place: the adapter is trained in float32, the
reference policy is base plus prior, checkpoints hold the trainable adapter alone and re-activate the stack on
resume, a NaN stops the run, and the freeze is checked at every step. Completions may come from an engine elsewhere,
which gets the adapter and never a merged base. Knows neither tasks nor the registry.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ...adapters.base.resolve import BaseRef
from ...adapters.stack import activate, load_default, recast_fp32, reference_policy, save_default
from ...core.disk.files import disk_errors, disk_full
from ..rewards.hierarchical import HierarchicalReward
from ..rollouts.engine import ROLLOUT_FOLDER, RolloutEngine, RolloutMeter, TrlRollouts, check_agreement
from ..runtime.library_logging import quiet_libraries
from .checkpoints import CHECKPOINTS, seal_checkpoint
from .errors import GENERATING
from .health import EQUAL_GROUPS, LOGP_DIFFERENCE
from .recorder import not_finite, require_finite

with quiet_libraries():
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
    from trl.trainer.utils import RepeatSampler


def _accept() -> None:
    """Keep any model."""


class _StageTrainer:
    """What both trainers share; mixed in before TRL's class."""

    base: BaseRef
    fingerprint: str
    check: Callable[[], None]
    """Refuses a model that must not be kept."""
    model: PeftModel
    args: Any
    state: Any

    def _begin(self, base: BaseRef, fingerprint: str, check: Callable[[], None]) -> None:
        self.base, self.fingerprint, self.check = base, fingerprint, check
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]
        recast_fp32(self.model)
        activate(self.model)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train, or continue; from a checkpoint of the last step transformers would make one step too many."""
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            if state.global_step >= state.max_steps:
                self._load_from_checkpoint(resume_from_checkpoint)
                state.is_world_process_zero = self.state.is_world_process_zero
                self.state = self.callback_handler.state = state  # type: ignore[attr-defined]
                for event in ("on_train_begin", "on_train_end"):
                    getattr(self.callback_handler, event)(self.args, self.state, self.control)  # type: ignore[attr-defined]
                return None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss).all():
            raise not_finite("loss", self.state.global_step + 1, float(loss))
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card: records and cards are the registry's."""

    def _send_telemetry(self) -> None:
        """Nothing: training asks no network that the config does not name."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / CHECKPOINTS)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_default(self.model, folder, self.base.repo, self.base.revision)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        require_finite(self.model, self.state.global_step)
        self.check()
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # a half-written one from before a kill
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]
        try:
            with disk_errors(folder):
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except RuntimeError as error:  # torch's writer hides the OSError
            if "PytorchStreamWriter" not in str(error):
                raise
            raise disk_full(folder) from error
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]  # each writes its random state
        if self.args.should_save:
            seal_checkpoint(folder, self.fingerprint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_default(self.model, Path(resume_from_checkpoint))


class _EpochReseed(TrainerCallback):
    """Gives each pass over the rows the order it has in a run that was not interrupted.

    TRL's sampler draws the orders one after another and keeps no state, so that a resumed run would begin with the
    first pass's.
    """

    def __init__(self, sampler: RepeatSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **others: Any) -> None:
        if self.sampler.shuffle:
            generator = self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(int((state.epoch or 0) + 1e-6)):  # a sum of shares of a pass
                torch.randperm(self.sampler.num_samples, generator=generator)


class StageSFTTrainer(_StageTrainer, SFTTrainer):
    """Supervised training of the trainable adapter on prompt and completion rows; loss on the completion only."""

    def __init__(
        self,
        *,
        model: PeftModel,
        args: SFTConfig,
        rows: Sequence[dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        base: BaseRef,
        fingerprint: str,
        callbacks: list[TrainerCallback],
        check: Callable[[], None] = _accept,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self._begin(base, fingerprint, check)


class StageGRPOTrainer(_StageTrainer, GRPOTrainer):
    """GRPO of the trainable adapter; the reference policy is base plus prior.

    Stock TRL clones only the trainable adapter as the reference and then leaves another adapter active, so that
    nothing trains while the loss looks healthy. TRL is therefore told beta = 0, and the reference log probabilities
    are computed here.
    """

    def __init__(
        self,
        *,
        model: PeftModel,
        args: GRPOConfig,
        rows: Sequence[dict[str, Any]],
        reward: HierarchicalReward,
        tokenizer: PreTrainedTokenizerBase,
        base: BaseRef,
        fingerprint: str,
        callbacks: list[TrainerCallback],
        check: Callable[[], None] = _accept,
        engine: RolloutEngine | None = None,
    ) -> None:
        self.meter = RolloutMeter()
        beta, args.beta = args.beta, 0.0
        super().__init__(
            model=model,
            reward_funcs=[reward],
            args=args,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        args.beta = self.beta = beta
        self._begin(base, fingerprint, check)
        self._unproven = engine
        if engine is not None:  # TRL's own vLLM would merge into the quantised base and stream all of it
            self.use_vllm, self._last_loaded_step = True, -1
            self.vllm_generation = TrlRollouts(engine, self, Path(args.output_dir) / ROLLOUT_FOLDER, self.meter)
        self.meter.start()

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> RepeatSampler:
        sampler: RepeatSampler = super()._get_train_sampler(*args, **kwargs)
        self.add_callback(_EpochReseed(sampler))
        return sampler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with where the time since the last line went."""
        super().log(logs | self.meter.take() if "loss" in logs else logs, start_time)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        start_s, synced_s = time.perf_counter(), self.meter.sync_s
        try:
            return super()._generate_single_turn(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            error.add_note(GENERATING)
            raise
        finally:
            self.meter.rollout_s += time.perf_counter() - start_s - (self.meter.sync_s - synced_s)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        beta, self.beta = self.beta, 0.0
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self.beta = beta
        if beta:
            output["ref_per_token_logps"] = self._reference_logps(output)
        if self._unproven is not None:
            difference = self._metrics["train" if self.model.training else "eval"][LOGP_DIFFERENCE][-1]
            check_agreement(difference, str(self.model.dtype).removeprefix("torch."), self._unproven.describe())
            self._unproven = None
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Here alone are the rewards of all processes in order of their groups.
        rewards_N1: torch.Tensor = super()._calculate_rewards(*args, **kwargs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        groups_GS = rewards_N1[:, 0].view(-1, size)
        self._log_metric(EQUAL_GROUPS, (groups_GS == groups_GS[:, :1]).all(dim=1).float().mean().item())
        return rewards_N1

    def _reference_logps(self, output: dict[str, Any]) -> torch.Tensor:
        """Log probabilities of the completions under base plus prior, (B, T_completion)."""
        ids_BT = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask_BT = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        model = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), reference_policy(model):
            logps_BT, *_ = self._get_per_token_logps_and_entropies(
                self.model,
                ids_BT,
                mask_BT,
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
            )
        return logps_BT  # type: ignore[no-any-return]
