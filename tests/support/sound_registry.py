"""A sound registry with something of everything, for tests that break it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from plyfold.registry.lineage.lockfile import make_lock, write_lock
from plyfold.registry.lineage.scores import attest_scores
from plyfold.registry.record import BaseRecord, Code, DataRef, Metric, Parent, Recipe, Record, StageId, Weights
from plyfold.registry.store.attestations import LOCATION
from plyfold.registry.store.store import MERGES, Store

REPO, REVISION = "acme/tiny-qwen2", "0123456789abcdef0123456789abcdef01234567"
NAMES = ("structure", "brevity", "remedy")


def make_registry(root: Path) -> Store:
    """Three stages and a merge of the curriculum `toy` in `root/registry`, and their lock file."""
    store, parents = Store(root / "registry"), list[str]()
    for number, name in enumerate((*NAMES, "merge"), start=1):
        folder = root / "source"
        (folder / "notes").mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": REPO, "r": 4}))
        (folder / "adapter_model.safetensors").write_bytes(random.Random(number).randbytes(3000))
        (folder / "notes" / "one.txt").write_text(name)
        staged = name != "merge"
        record = Record(
            kind="stage" if staged else "merge",
            curriculum="toy",
            stage=StageId(number=number, name=name) if staged else None,
            base=BaseRecord(repo=REPO, revision=REVISION, quantisation={"quant_type": "nf4", "blocksize": 64}),
            parents=[
                Parent(role="active_during_training" if staged else "merge_input", digest=digest) for digest in parents
            ],
            requires=parents if staged else [],
            recipe=Recipe(config={"lr": 1e-05, "x": [1, {"y": None}]}, seed=7, steps=40, details={"wall_s": 1.5}),
            data=[DataRef(id="sandbox", rows=64, sha256=f"sha256:{'1' * 64}")],
            code=Code(version="0.1.0", git="0" * 40, dirty=False),
            env={"python": "3.11", "device": "cpu"},
            metrics=[Metric(name="accuracy", value=0.5, n=64, ci95=(0.4, 0.6), protocol="p")],
            weights=Weights(digest=f"sha256:{'2' * 64}", dtype="float32", r=4, alpha=8, targets=["q_proj"]),
            created="2026-01-02T03:04:05Z",
        )
        digest = store.publish(folder, record)
        shutil.rmtree(folder)
        store.set_ref("toy", number if staged else MERGES, digest, "latest" if staged else "toy-s1.s2.s3")
        store.attest(digest, LOCATION, {"location": f"hf://acme/toy-s{number:02d}-{name}@{REVISION}"})
        parents.append(digest)
    attest_scores(store, "toy", [1], [Metric(name="accuracy", value=0.25, n=100)])
    write_lock(root / "curriculum.lock.json", make_lock(store, "toy"))
    return store
