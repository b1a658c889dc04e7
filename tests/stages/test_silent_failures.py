"""What goes wrong in this stack without a word, on the sandbox's base in bfloat16 with real NF4, PEFT and TRL.

Each of these would leave a loss that looks healthy. Others of the kind are held elsewhere:

    frozen parts bit-identical, freeze mended and resumed, reference policy    tests/adapters/test_stack.py
    twin equal to NF4                                                          tests/adapters/test_twin.py
    composed equal to stacked                                                  tests/merge/compose/test_peft.py
    resume equal to the uninterrupted run, KL 0 at the start, NaN              test_train.py
    no answer in a prompt; rewards without jumps; golds read right             tests/stages, tests/data
    a new adapter at every sync of the rollouts                                tests/stages/rollouts/test_engine.py
    libraries that move what all this leans on                                 test_private_names.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plyfold.adapters.base.load import load_nf4, load_tokenizer
from plyfold.adapters.base.resolve import BaseRef, Quantisation, resolve_base
from plyfold.adapters.spec import CONFIG_NAME
from plyfold.adapters.stack import attach, check_frozen, frozen_digest
from plyfold.core.config import AdapterConfig, DataConfig, load_config
from plyfold.core.errors import ConfigError, FailedError
from plyfold.data.dataset import load_rationales
from plyfold.evaluation.protocols import protocol
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.plan.trl_args import trainer_arguments
from plyfold.stages.prompts.tasks import make_rows
from plyfold.stages.rollouts.sampling import hf_sampler
from plyfold.stages.training.trainers import StageGRPOTrainer, StageSFTTrainer

pytestmark = pytest.mark.slow

ADAPTER = AdapterConfig(r=4, alpha=8)
BF16 = Quantisation()
STEPS = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}
# So hot that completions of one prompt differ: the sandbox's base is sure of its first words.
GRPO = STEPS | {"num_generations": 4, "max_completion_length": 12, "learning_rate": 1e-3, "temperature": 2.0}
STAGES = ("structure", "brevity")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equality needs one order of summation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ref() -> BaseRef:
    return resolve_base(load_config("sandbox").base)


@pytest.fixture(scope="module")
def prior(ref: BaseRef, make_adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {name: (module.out_features, module.in_features) for name, module in load_nf4(ref, BF16).named_modules()
             if isinstance(module, torch.nn.Linear) and name != "lm_head"}  # fmt: skip
    folder = tmp_path_factory.mktemp("prior") / "adapter"
    made = make_adapter(folder, modules=sizes, r=6, alpha=1.5, seed=5, repo=ref.repo, revision=ref.revision)
    return Path(made)


class Varied:
    """A reward that varies, and keeps what it was shown."""

    __name__ = "reward"

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []

    def __call__(self, **columns: Any) -> list[float]:
        self.shown.append({key: columns[key] for key in ("prompts", "completions", "completion_ids")})
        return [float(sum(ids) % 7) for ids in columns["completion_ids"]]


Make = Callable[..., Any]


@pytest.fixture
def make_trainer(ref: BaseRef, prior: Path, tmp_path: Path) -> Make:
    """A stage's trainer over the prior; `stage` as in the packaged sandbox, a few rows, other trainer fields."""

    def make(stage: str, reward: Any = None, **fields: Any) -> Any:
        config = load_config("sandbox", ["base.compute_dtype=bfloat16"])
        chosen = config.stages[stage]
        chosen.epochs, chosen.trainer = 1, (STEPS if stage == "structure" else GRPO) | fields
        rationales, _ = load_rationales(DataConfig(path="sandbox", rows=[0, 16]))
        tokenizer = load_tokenizer(ref.path)
        rows = make_rows(rationales, chosen, protocol("zero-shot"), 0, lambda text: len(tokenizer(text)["input_ids"]))
        common: dict[str, Any] = {
            "model": attach(load_nf4(ref, BF16), ADAPTER, prior, seed=0),
            "args": trainer_arguments(
                config, stage, tmp_path / f"{stage}-{len(list(tmp_path.iterdir()))}", on_gpu=False
            ),
            "rows": rows,
            "tokenizer": tokenizer,
            "base": ref,
            "fingerprint": "none",
            "callbacks": [],
        }
        own = {} if stage == "structure" else {"reward": reward or Varied()}
        trainer: Any = (StageGRPOTrainer if own else StageSFTTrainer)(**common, **own)
        trainer.given = rows
        return trainer

    return make


def _default(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".default." in name}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ---- what trains ----


def test_supervised_training_in_bfloat16_moves_every_part_of_default_and_nothing_else(make_trainer: Make) -> None:
    trainer = make_trainer("structure", learning_rate=1e-5, lr_scheduler_type="constant", max_steps=4)
    model = trainer.model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    before, frozen = _default(model), frozen_digest(model)
    trainer.train()
    moved = {name: (value != before[name]).float().mean().item() for name, value in _default(model).items()}
    assert min(share for name, share in moved.items() if "lora_A" in name) > 0.99  # in bfloat16: one in six
    assert min(moved.values()) > 0.9
    assert frozen_digest(model) == frozen


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_checkpointing_changes_no_bit_of_the_trained_adapter(make_trainer: Make, stage: str) -> None:
    """It is on wherever there is a GPU: without gradients of the inputs it would train nothing."""
    fields = {} if stage == "structure" else {"beta": 0.05}
    trainers = [make_trainer(stage, gradient_checkpointing=on, **fields) for on in (False, True)]
    for trainer in trainers:
        before = _default(trainer.model)
        torch.manual_seed(0)  # of the rollouts
        trainer.train()
        assert not _equal(before, _default(trainer.model))
    assert _equal(*(_default(trainer.model) for trainer in trainers))


@pytest.mark.parametrize("stage", STAGES)
def test_evaluating_before_and_after_training_leaves_freeze_and_numbers_alone(make_trainer: Make, stage: str) -> None:
    fields = {"per_device_eval_batch_size": 4} | ({} if stage == "structure" else {"beta": 0.05})
    plain, evaluated = (make_trainer(stage, **fields) for _ in range(2))
    frozen = frozen_digest(evaluated.model)
    rows = evaluated.train_dataset.select(range(4))
    for trainer in (plain, evaluated):
        if trainer is evaluated:
            assert trainer.evaluate(rows)["eval_loss"] is not None
            check_frozen(trainer.model)
        torch.manual_seed(0)
        trainer.train()
    evaluated.evaluate(rows)
    check_frozen(evaluated.model)
    assert frozen_digest(evaluated.model) == frozen
    assert _equal(_default(plain.model), _default(evaluated.model))


def test_no_base_layer_may_repack_itself_for_inference(ref: BaseRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with AVX512-BF16 alone an eval forward would; here any CPU stands for one."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_nf4(ref, BF16)
    flags = [module.support_avx512bf16_for_cpu for module in model.modules()
             if hasattr(module, "support_avx512bf16_for_cpu")]  # fmt: skip
    assert len(flags) == 28
    assert not any(flags)


def test_a_dropout_in_the_priors_config_never_acts(ref: BaseRef, prior: Path, tmp_path: Path) -> None:
    """An adapter from elsewhere may name one; PEFT would apply it to the frozen path whenever the model trains."""
    import shutil

    foreign = Path(shutil.copytree(prior, tmp_path / "foreign"))
    config = json.loads((foreign / CONFIG_NAME).read_text())
    (foreign / CONFIG_NAME).write_text(json.dumps(config | {"lora_dropout": 0.5}))
    model = attach(load_nf4(ref, BF16), ADAPTER, foreign, seed=0)
    ids_BT = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert torch.equal(model.train()(ids_BT).logits, model.eval()(ids_BT).logits)


@pytest.mark.parametrize("field", [
    "use_transformers_continuous_batching", "use_transformers_paged", "cast_lm_head_to_fp32", "bf16_full_eval",
    "fp16_full_eval",
    "save_only_model", "ignore_data_skip", "load_best_model_at_end", "use_vllm",
])  # fmt: skip
def test_a_field_that_would_undo_a_training_rule_is_refused(field: str, tmp_path: Path) -> None:
    config = load_config("sandbox", [f"stages.brevity.trainer.{field}=true"])
    with pytest.raises(ConfigError, match=field):
        trainer_arguments(config, "brevity", tmp_path, on_gpu=False)


def test_one_process_that_sees_several_gpus_trains_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL would refuse to start. There are no GPUs here: what transformers counts is set by hand."""
    from trl import GRPOConfig

    made = GRPOConfig.__post_init__

    def with_two(self: Any) -> None:
        made(self)
        self._n_gpu = 2

    monkeypatch.setattr(GRPOConfig, "__post_init__", with_two)
    config = load_config("sandbox")
    arguments = trainer_arguments(config, "brevity", tmp_path, on_gpu=False)
    batch = config.stages["brevity"].trainer["per_device_train_batch_size"]
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, batch)


def test_an_adapter_on_the_head_is_refused(ref: BaseRef) -> None:
    """TRL reads `lm_head.weight` past any adapter: it would never be trained."""
    with pytest.raises(ConfigError, match="head"):
        attach(load_nf4(ref, BF16), AdapterConfig(targets=["q_proj", "lm_head"]), None, seed=0)


def test_a_run_whose_frozen_weights_changed_publishes_nothing(
    ref: BaseRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = StageSFTTrainer.training_step

    def flipping(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.model.get_base_model().model.norm.weight.data[0] += 1
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StageSFTTrainer, "training_step", flipping)
    config = load_config("sandbox", ["stages.structure.trainer.max_steps=1", "data.rows=[0,40]"])
    config.stages = {"structure": config.stages["structure"]}
    for _ in range(2):  # a rerun must not take up what it trained beside them
        with pytest.raises(FailedError, match="frozen weights changed"):
            train(config, Store(tmp_path / "store"), None, tmp_path / "runs")
    assert Store(tmp_path / "store").stages("sandbox") == {}
    monkeypatch.undo()
    train(config, Store(tmp_path / "store"), None, tmp_path / "runs")
    assert "continues from" not in capsys.readouterr().err


# ---- what is seen ----


def test_a_supervised_row_teaches_exactly_its_completion_and_its_end(make_trainer: Make) -> None:
    trainer = make_trainer("structure")
    tokenizer = trainer.processing_class
    taught = []
    for batch in trainer.get_train_dataloader():
        for ids_T, labels_T in zip(batch["input_ids"], batch["labels"], strict=True):
            own = labels_T != -100
            assert torch.equal(ids_T[own], labels_T[own])
            taught.append((tokenizer.decode(ids_T[: int(own.nonzero()[0])]), tokenizer.decode(labels_T[own])))
    end = tokenizer.eos_token
    assert len(taught) == 16
    assert set(taught) == {(row["prompt"], row["completion"] + end) for row in trainer.given}
    assert all(completion.count(end) == 1 for _, completion in taught)


def test_a_rollout_sees_its_prompt_alone_and_what_it_sampled_is_what_is_scored_and_learnt(make_trainer: Make) -> None:
    reward = Varied()
    trainer = make_trainer("brevity", reward, per_device_train_batch_size=8, max_steps=1)
    tokenizer, model = trainer.processing_class, trainer.model
    asked, learnt = [], []
    generate, loss = model.generate, trainer._compute_loss

    def watched(*args: Any, **inputs: Any) -> Any:
        ids_BT = generate(*args, **inputs)
        asked.append((inputs["input_ids"], inputs["attention_mask"], ids_BT))
        return ids_BT

    def watched_loss(model: Any, inputs: Any) -> Any:
        learnt.append(
            {key: inputs[key].clone() for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
        )
        return loss(model, inputs)

    model.generate, trainer._compute_loss = watched, watched_loss
    trainer.train()
    ((prompt_BT, mask_BT, ids_BT),) = asked
    # Padded on the left, without a word of the target: the prompts as they stand in the rows.
    assert all(not (mask_T[1:] < mask_T[:-1]).any() for mask_T in mask_BT)
    sent = [tokenizer.decode(row_T[mask_T.bool()]) for row_T, mask_T in zip(prompt_BT, mask_BT, strict=True)]
    assert set(sent) <= {row["prompt"] for row in trainer.given}
    assert len(set(sent)) == 2
    # The reward sees the completion alone, of tokens the policy made after the prompt, up to its end.
    (shown,) = reward.shown
    assert shown["prompts"] == sent
    new_BT = ids_BT[:, prompt_BT.shape[1] :].tolist()
    assert all(new_T[: len(ids)] == ids for new_T, ids in zip(new_BT, shown["completion_ids"], strict=True))
    assert max(map(len, shown["completion_ids"])) > 10
    assert all(text == tokenizer.decode(ids, skip_special_tokens=True)
               for text, ids in zip(shown["completions"], shown["completion_ids"], strict=True))  # fmt: skip
    # And the loss is of these very tokens after that very prompt.
    (inputs,) = learnt
    pairs = []
    for row in range(8):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        pairs.append((tokenizer.decode(prompt), tuple(completion.tolist())))
    assert sorted(pairs) == sorted(zip(sent, map(tuple, shown["completion_ids"]), strict=True))


def test_a_short_prompt_beside_a_long_one_is_answered_as_if_alone(ref: BaseRef) -> None:
    """Padding after a prompt would have the model go on from the padding."""
    model = attach(load_nf4(ref, Quantisation(compute_dtype="float32")), ADAPTER, None, seed=0)
    tokenizer = load_tokenizer(ref.path)
    rationales, _ = load_rationales(DataConfig(path="sandbox", rows=[0, 8]))
    prompts = sorted((protocol("zero-shot").prompt(each.question) for each in rationales), key=len)
    sample = hf_sampler(model, tokenizer, temperature=1e-3, max_new_tokens=16)  # as good as greedy
    alone, beside = sample(prompts[:1], 0)[0], sample([prompts[0], prompts[-1]], 0)[0]
    assert len(tokenizer(prompts[0])["input_ids"]) < len(tokenizer(prompts[-1])["input_ids"])
    assert alone == beside


@pytest.mark.parametrize("stage", STAGES)
def test_half_the_batch_twice_is_the_gradient_of_the_whole(make_trainer: Make, stage: str) -> None:
    norms = []
    for size, parts in ((8, 1), (4, 2)):
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 1}
        trainer = make_trainer(stage, **fields)
        torch.manual_seed(0)
        trainer.train()
        norms += [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    assert norms == [pytest.approx(norms[0], rel=0.005)] * 2  # bfloat16, other sums
    assert norms[0] > 0


def test_no_divergence_before_the_first_update_in_bfloat16_either(make_trainer: Make) -> None:
    trainer = make_trainer("brevity", beta=0.05, gradient_checkpointing=True, max_steps=3)
    trainer.train()
    first, *later = [line["kl"] for line in trainer.state.log_history if line.get("kl") is not None]
    assert first == 0
    assert max(later) > 1e-6
    assert min(later) >= 0  # an estimate that cannot be negative
