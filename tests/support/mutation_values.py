"""What broken adapters are made of: numbers, JSON values, names, patterns and switches that no sound one has."""

from __future__ import annotations

from typing import Any

import torch

FORMS: list[dict[str, Any]] = [
    {},
    {"rslora": True, "alpha": 7, "rank_pattern": {"k_proj": 2}},
    {"alpha_pattern": {"q_proj": 5, "down_proj": 0.25}, "r": 3},
    {"dtype": torch.bfloat16, "r": 8},
]
HUGE = [-1, 0, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, 10**400, -(1 << 63)]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3.5, -0.0, 1e308, "", "x", "none", "4", "true", [], [1], ["q_proj"], [None], {},
    {"q_proj": 4}, {"a": {"b": []}}, [[]], float("nan"), float("inf"), float("-inf"), 10**30, "\ud800", "\x1b[2J\x00",
    "x" * 5000, list(range(300)), {"x" * 300: 1},
]  # fmt: skip
"""JSON values of every type, for fields of any."""
NAMES = [
    "../../etc/passwd", "/etc/passwd", "a/../b", "..", ".", "", "a..b", ".a", "a.", "a\x00b", "a\nb", "a\x1b[31mb",
    "a b",
    "C:\\x", "~root", "$(id)", "%2e%2e", "a" * 511, "a" * 513, "a." * 40 + "a", "ä", "q_proj\u200b",
    "\u202egnp.q_proj",
    "\ud800", "\udcff", "\U0001f600", "model.layers.0.self_attn.q_proj.lora_A.weight", "__metadata__", "-a", "a-b",
    "a.-b",
    "model.layers.00000000000000000000.q_proj", "[red]q_proj[/red]", "model.layers.999.self_attn.q_proj",
]  # fmt: skip
KEYS = [
    "{p}{m}.lora_A.bias", "{p}{m}.lora_B.bias", "{p}{m}.lora_magnitude_vector", "{p}{m}.lora_embedding_A",
    "{p}{m}.lora_A.default.weight", "{m}.lora_A.weight", "{p}{p}{m}.lora_A.weight", "{p}{m}.lora_C.weight",
    "{p}{m}.modules_to_save.weight", "{p}\x1b[2J.lora_embedding_A", "{p}{m}.weight", "{p}.lora_A.weight",
    "{p}lora_A.weight", "base_model.model.lora_A.weight", "\x00", "x" * 20_000,
    "{p}token_adapter.trainable_tokens_delta",
]  # fmt: skip
PATTERNS = [
    "(a+)+$", "(a|a)*b", "(.*)*x", "(.*a){25}", "a?" * 30 + "a" * 30, "(a|a)" * 30 + "b", "(?:a|aa|aaa)" * 20 + "!",
    ".*.*.*.*x", ".*.*.*.*.*.*.*!", "[a-z]*[a-z]*[a-z]*[a-z]*!", "(", ")", "[", "*", "(?P<x>a)(?P=x)", "(?i)q_proj",
    "\\",
    "a{1,99999999}", "a{99999999999}", "(?<=a+)b", "(?#", "(" * 400 + ")" * 400, "((((a?)?)?)?)?", "[[a]]", "\x00",
    "\ud800",
    "q_proj", ".*q_proj", "^model.layers.0..*", r".*\.0\..*", "(q|k)_proj", "", "|", "q_proj|", "^", "$",
    "(?!x)q_proj",
    r"layers\.(0|1|2)\.self_attn\.(q|k|v)_proj", "model.layers.0.self_attn.q_proj", "x" * 2000, r"(\w+\.)+q_proj",
    "(?:.*?(?:self_attn|mlp).*?(?:q_proj|k_proj|down_proj).*?)",
]  # fmt: skip
SWITCHES: dict[str, list[Any]] = {
    "use_dora": [True, 1, "yes"], "lora_bias": [True], "bias": ["all", "lora_only", True, 3, None],
    "modules_to_save": [["lm_head"], "lm_head"], "trainable_token_indices": [[1], {"embed_tokens": [0]}],
    "target_parameters": [["w"]], "layer_replication": [[[0, 2]]], "alora_invocation_tokens": [[5]],
    "use_qalora": [True],
    "use_bdlora": [{"n": 2}], "fan_in_fan_out": [True], "arrow_config": [{"k": 1}], "kasa_config": [{}, {"k": 1}],
    "init_lora_weights": ["pissa", "olora", "corda", "loftq", "PISSA_niter_4", "gaussian", 7, [], {"a": 1},
    "\x1b[2J" * 999],
    "peft_type": ["LOHA", "lora", None, 3, ["LORA"], "x" * 9000], "use_rslora": [True, "false", 1, [0], None],
    "layers_to_transform": [[0], 0, "x"], "exclude_modules": [["q_proj"], "q_proj"],
    "target_modules": ["all-linear", None],
}  # fmt: skip
