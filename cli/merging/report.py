"""What `plyfold merge` shows: the parts, how they relate, what the result loses, and what to do with it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.hub import is_id
from ...core.console import print_table, show_field
from ...core.disk.digest import short
from ...core.errors import GateError
from ...merge.plan import METHODS, vllm_bucket
from ...variants import folder_name
from ..options import registry_options

if TYPE_CHECKING:
    from ...adapters.spec import AdapterSpec
    from ...merge.compose.prepare import Prepared
    from ...merge.compose.write import Composition
    from ...merge.fold.fold import FoldReport, ModuleFold
    from ...variants.ancestry import Lineage
    from ...variants.merging import MergePlan, Verified
    from ...variants.publish import PublishedMerge

MAX_APART = 3
"""Scores on other terms that are listed."""


@dataclass(kw_only=True)
class Report:
    """One merge, before and after it is written."""

    plan: MergePlan
    prepared: Prepared
    lineage: Lineage | None
    rounding: dict[str, ModuleFold] | None = None
    """What a fold's one rounding will cost each module, from a sample of rows."""
    written: dict[str, Any] | None = None
    next_command: str = ""
    _lines: list[tuple[str, str]] = field(default_factory=list)
    _verified: Verified | None = None

    def __post_init__(self) -> None:
        self.fold_plan = self.plan.fold
        self._relative = self._relative_norms()

    @property
    def warnings(self) -> list[str]:
        """What a user has to know before relying on the result."""
        plan, certificate = self.prepared.plan, self.prepared.certificate
        found = [*plan.warnings, *self.prepared.warnings]
        found += self.lineage.warnings if self.lineage else ()
        found += self.fold_plan.warnings if self.fold_plan else ()
        if self.rounding is not None and self.fold_plan:
            from ...merge.fold.fold import loss_warnings

            found += loss_warnings(self.rounding, self.fold_plan.dtype or "the base's dtype")
        if certificate.truncation and plan.approximates:
            lost = f"rank {plan.rank} of {plan.exact_rank} loses {certificate.relative:.1%} of |dW|"
            found.append(f"{plan.method} is lossy: {lost}")
        elif certificate.truncation:
            found.append(f"the result is {certificate.relative:.1%} of |dW| away from the sum")
        return found

    @property
    def trained(self) -> bool | None:
        """Whether this is the very model that was trained; None where that is not on record."""
        if self.lineage is None:
            return None
        plain = self.prepared.plan.keeps_all and all(part.weight == 1 for part in self.prepared.plan.parts)
        return plain and not self.lineage.warnings

    def to_json(self) -> dict[str, Any]:
        """Everything shown, and each module's error."""
        plan = self.prepared.plan
        return {
            **{key: value for key, value in self.prepared.to_json().items() if key not in ("schema", "inputs")},
            "stages": [
                {**entry.to_json(), "r": _ranks(spec), "alpha": spec.config.get("lora_alpha"), **self._ancestry(index)}
                | {"relative_norm": self._relative[index]}
                for index, (entry, spec) in enumerate(zip(self.prepared.inputs, plan.specs, strict=True))
            ],
            "trained_order": self.trained,
            "vllm_max_lora_rank": plan.bucket,
            "licence": self.lineage.licence if self.lineage else None,
            "scores": {"terms": self.lineage.terms, "apart": list(self.lineage.apart)} if self.lineage else None,
            "warnings": self.warnings,
            "written": self.written,
            "next": self.next_command or None,
        }

    def show(self) -> None:
        """Print what is known before anything is written."""
        plan = self.prepared.plan
        revision = f"@{short(plan.base_revision)}" if plan.base_revision else ", revision not on record"
        quantised = f" ({self.lineage.quantisation})" if self.lineage and self.lineage.quantisation else ""
        show_field("base", f"{plan.base_repo or 'not on record'}{revision if plan.base_repo else ''}{quantised}")
        self._show_parts()
        if self.lineage:
            show_field("chain", self._chain())
            self._show_terms(self.lineage)
        pad = f"; shorter modules padded from {min(s.rank for s in plan.modules.values())}" if self._mixed() else ""
        show_field("method", f"{self._method()}, rank {plan.rank} over {len(plan.modules)} modules, {plan.dtype}{pad}")
        self._show_conflicts()
        self._show_certificate()
        show_field("vLLM", f"--max-lora-rank {plan.bucket}" if plan.bucket else "rank above what vLLM serves")
        show_field(
            "licence", self.lineage.licence if self.lineage else "not on record for plain folders; the base's applies"
        )
        if self.fold_plan:
            dtype = self.fold_plan.dtype or "the base's dtype"
            show_field("fold", f"into {self.fold_plan.base.path}, {dtype}, {self.fold_plan.bytes_out / 1e9:,.2f} GB")
            if self.fold_plan.left_out:
                show_field("left out", f"{', '.join(self.fold_plan.left_out)}: no part of a checkpoint, not copied")
        if self.rounding is not None:
            show_field("rounding", f"{_rounding(self.rounding)}, estimated from a sample of rows")

    def show_written(self) -> None:
        """Print what was written and what comes next."""
        if self.written is None:
            show_field("written", "nothing (dry run)")
        for label, text in self._lines:
            show_field(label, text)
        if self._verified:
            from ...merge.calibrate.logits import print_base_views, print_logits

            print_logits(self._verified.logits)
            if self._verified.views:
                print_base_views(self._verified.views)
        if self.next_command:
            show_field("next", self.next_command)

    def published(self, done: PublishedMerge) -> None:
        """Take note of an adapter, in the registry or in a folder."""
        self.written = {"path": str(done.path), "digest": done.composition.digest}
        if done.digest is None:
            self._lines.append(("written", f"{done.path}  {done.composition.digest}"))
            self.next_command = _serve_command(done.composition, done.path)
            return
        self.written |= {"record": done.digest, "ref": f"merges/{done.slug}"}
        self._lines.append(("written", f"{done.slug} in the registry  {done.digest}"))
        if done.copy:
            self.written["copy"] = str(done.copy)
            self._lines.append(("copied", str(done.copy)))
        plain = self.prepared.plan.keeps_all and all(part.weight == 1 for part in self.prepared.plan.parts)
        name = self.lineage.variant if plain and self.lineage else done.slug
        self.next_command = self._eval_or_serve(f"base {name}", served=bool(self.prepared.plan.bucket))

    def folded(self, done: FoldReport) -> None:
        """Take note of a checkpoint."""
        self.written = done.to_json()
        checked = done.checked
        resumed = f"; {done.num_resumed} were finished by an earlier run" if done.num_resumed else ""
        read_back = f"{len(checked.modules)} weights read back and recomputed in float64"
        if checked.untouched:
            read_back += f", {len(checked.untouched)} compared with the base byte for byte"
        self._lines += [
            ("written", f"{done.path}  {done.digest}"),
            ("changed", f"{len(done.modules)} weights; {done.num_untouched} passed on byte for byte{resumed}"),
            ("rounding", _rounding(done.modules)),
            ("checked", f"{checked.adapter_tensors} adapter tensors used once; {read_back}"),
            *(("warning", warning) for warning in done.warnings if warning not in self.warnings),
        ]
        name, served = shlex.quote(folder_name(done.path)), self.fold_plan is None or self.fold_plan.served
        if self.plan.inputs.store is not None:
            self.next_command = self._eval_or_serve(name, served=served)
        elif served:
            self.next_command = f"plyfold serve {name}"

    def _eval_or_serve(self, names: str, *, served: bool) -> str:
        """The commands that score or serve variants of the registry that was merged from."""
        assert self.plan.inputs.store is not None
        assert self.plan.inputs.variant is not None
        where = registry_options(self.plan.inputs.store, self.plan.inputs.variant.curriculum)
        return f"plyfold eval {names}{where}" + (f"   or   plyfold serve {names}{where}" if served else "")

    def verified(self, done: Verified) -> None:
        """Take note of what the prompts showed."""
        assert self.written is not None
        self._verified = done
        self.written["logits"] = done.logits.to_json()
        self.written["base_views"] = done.views.to_json() if done.views else None
        self._lines += [("warning", warning) for warning in done.logits.warnings]

    def refuse_unfaithful(self) -> None:
        """Fail after the report where an exact fold does not do what its adapters do.

        Raises:
            GateError: Logits differ by more than the arithmetic's noise, or not at all from the base's.
        """
        if self._verified is None or not self.prepared.plan.keeps_all:
            return
        logits = self._verified.logits
        if logits.equals_base or logits.faithful is False:
            raise GateError(
                "the folded checkpoint does not do what the adapters do",
                where=self.written["path"] if self.written else "",
                found="the base's own logits" if logits.equals_base else f"KL {logits.folded.kl:.2g} per token",
                expected=f"about the noise of {logits.noise_dtype}",
                next_step="fold with a finer --dtype, or check that the base is the one that was trained on",
            )

    def page(self, path: Path) -> None:
        """Take note of the page."""
        self._lines.append(("page", str(path)))

    def facts(self) -> dict[str, str]:
        """The report in short, for the page."""
        plan, certificate = self.prepared.plan, self.prepared.certificate
        error = "none: bit for bit" if certificate.bit_exact else f"{certificate.relative:.2e} of |dW|"
        adapters = ", ".join(
            f"{entry.label} (weight {entry.weight:g}, |dW| {entry.delta_norm:.4g}, {short(entry.tensor_digest)})"
            for entry in self.prepared.inputs
        )
        revision = f"@{short(plan.base_revision)}" if plan.base_revision else ""
        return {
            "base": f"{plan.base_repo or 'not on record'}{revision}",
            "adapters": adapters,
            "method": f"{self._method()}, rank {plan.rank}, {plan.dtype}",
            "error": error,
            "worst module": f"{certificate.worst[0]} {certificate.worst[1]:.2e}",
            **({"written": f"{self.written['path']} {self.written['digest']}"} if self.written else {}),
        }

    def _ancestry(self, index: int) -> dict[str, Any]:
        if self.lineage is None:
            return {}
        own = self.lineage.ancestry[index]
        return {
            "trained_on": own.trained_on,
            "accuracy": own.accuracy,
            "tokens": own.tokens,
            "scored_as": own.scored_as,
        }

    def _relative_norms(self) -> list[float | None]:
        """|dW| / |W| of each part over the modules it targets."""
        specs = self.prepared.plan.specs
        base_folder = self.plan.base_at_hand
        if base_folder is None:
            return [None] * len(specs)
        from ...adapters.base.checkpoint import open_checkpoint
        from ...merge.fold.checkpoint import weight_norms

        norms = weight_norms(open_checkpoint(base_folder), self.prepared.plan.modules)
        found: list[float | None] = []
        for entry, spec in zip(self.prepared.inputs, specs, strict=True):
            weight = math.hypot(*(norms.get(name, 0.0) for name in spec.modules))
            found.append(entry.delta_norm / weight if weight and norms.keys() >= spec.modules.keys() else None)
        return found

    def _show_parts(self) -> None:
        columns = ["adapter", "weight", "digest", "r", "alpha", "|dW|", "|dW|/|W|"]
        extra = ["trained on", "accuracy", "tokens", "scored as"] if self.lineage else []
        rows = []
        for index, (entry, spec) in enumerate(zip(self.prepared.inputs, self.prepared.plan.specs, strict=True)):
            relative = self._relative[index]
            row = [
                entry.label,
                f"{entry.weight:g}",
                short(entry.record_digest or entry.tensor_digest),
                _ranks(spec),
                _alpha(spec),
                f"{entry.delta_norm:.4g}",
                "" if relative is None else f"{relative:.2%}",
            ]
            if self.lineage:
                own = self.lineage.ancestry[index]
                accuracy = "" if own.accuracy is None else f"{own.accuracy:.1%}"
                tokens = "" if own.tokens is None else f"{own.tokens:.1f}"
                row += [own.trained_on, accuracy, tokens, own.scored_as if accuracy else ""]
            rows.append(row)
        numbers = ["weight", "r", "alpha", "|dW|", "|dW|/|W|", "accuracy", "tokens"]
        print_table([*columns, *extra], rows, right=numbers)

    def _show_terms(self, lineage: Lineage) -> None:
        """What the scores of the table are of, and those that are of something else."""
        if lineage.terms:
            show_field("scores", lineage.terms)
        for text in lineage.apart[:MAX_APART]:
            show_field("apart", f"{text}: not comparable")
        if len(lineage.apart) > MAX_APART:
            show_field("apart", f"{len(lineage.apart) - MAX_APART} more (plyfold show STAGE)")

    def _chain(self) -> str:
        if self.trained:
            return "the trained order with all weights 1: this is the model that was trained"
        if self.lineage and self.lineage.warnings:
            return "not the trained order (see the warnings)"
        return "the trained order, but with other weights or rank than it was trained with"

    def _method(self) -> str:
        plan = self.prepared.plan
        source = METHODS[plan.method].source if plan.method != "exact" else ""
        settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items())
        inside = "; ".join(text for text in (source, settings) if text)
        return f"{plan.method} ({inside})" if inside else plan.method

    def _target(self) -> str:
        """What a rank's error is a share of."""
        plan = self.prepared.plan
        if not plan.approximates:
            return f"what {plan.method} itself aims at"
        return "the deltas' outputs on the prompts" if plan.method == "activation" else "|dW|"

    def _mixed(self) -> bool:
        plan = self.prepared.plan
        return plan.keeps_all and any(shape.rank < plan.rank for shape in plan.modules.values())

    def _show_conflicts(self) -> None:
        if not self.prepared.conflicts:
            return
        from ...merge.compare.conflict import CHANCE, SAMPLED_COLUMNS, SAMPLED_ROWS

        rows = []
        for pair in self.prepared.conflicts:
            signs = "" if pair.sign_conflict is None else f"{pair.sign_conflict:.3f}"
            worst = ", ".join(f"{module.name} {module.cosine:+.3f}" for module in pair.worst[:2])
            rows.append([f"{pair.first} / {pair.second}", f"{pair.cosine:+.4f}", signs, worst or "(no common module)"])
        print_table(
            ["pair", "cosine", "sign conflict", "worst modules (cosine)"],
            rows,
            right=["cosine", "sign conflict"],
            caption=f"signs of up to {SAMPLED_ROWS * SAMPLED_COLUMNS:,} drawn entries a module; "
            f"unrelated adapters: cosine 0, conflict {CHANCE}",
        )

    def _show_certificate(self) -> None:
        certificate = self.prepared.certificate
        self._show_buckets()
        if certificate.bit_exact:
            show_field("error", "none: the result's factors hold the sum bit for bit")
            return
        worst, relative = certificate.worst
        parts = []
        if certificate.truncation and self.prepared.plan.approximates:
            parts.append(f"truncation {certificate.truncation:.3g}, {certificate.energy_kept:.3%} of |dW|^2 kept")
        elif certificate.truncation:
            parts.append(f"distance from the sum {certificate.truncation:.3g}")
        parts.append(f"rounding {certificate.rounding:.2g}")
        show_field("error", f"{certificate.relative:.2e} of |dW| ({'; '.join(parts)})")
        show_field("", f"worst {worst} {relative:.2e}; no output changes by more than {certificate.spectral:.2g} |x|")
        if certificate.own_loss:
            show_field(
                "",
                f"rank {self.prepared.plan.rank} holds all but {certificate.own_loss:.1%} of the method's own result",
            )
        if certificate.output is not None:
            show_field(
                "", f"outputs on the prompts change by up to {certificate.output:.2e} of what the deltas do there"
            )

    def _show_buckets(self) -> None:
        plan, buckets = self.prepared.plan, self.prepared.certificate.buckets
        if not buckets:
            return
        kept = next(bucket.rank for bucket in buckets if bucket.rank >= plan.rank)
        rows = [
            [
                f"{bucket.rank}{' <' if bucket.rank == kept else ''}",
                f"{bucket.relative_error:.2e}",
                bucket.worst_module,
                f"{bucket.worst_relative_error:.2e}",
            ]
            for bucket in buckets
            if bucket.rank <= (vllm_bucket(plan.exact_rank) or plan.exact_rank)
        ]
        print_table(
            ["vLLM rank", "error", "worst module", "its error"],
            rows,
            right=["vLLM rank", "error", "its error"],
            caption=f"error as a share of {self._target()}; asked for at most {plan.max_error:g}",
        )


def _rounding(modules: Mapping[str, ModuleFold]) -> str:
    from ...merge.fold.fold import relative_loss

    worst = max(modules, key=lambda name: modules[name].relative_loss)
    return (
        f"{relative_loss(modules):.2%} of |dW| lost to one rounding, most in {worst} "
        f"({modules[worst].relative_loss:.2%})"
    )


def _ranks(spec: AdapterSpec) -> str:
    ranks = {module.r for module in spec.modules.values()}
    return str(ranks.pop()) if len(ranks) == 1 else f"{min(ranks)}-{max(ranks)}"


def _alpha(spec: AdapterSpec) -> str:
    pattern = ", patterns" if spec.config.get("alpha_pattern") else ""
    rslora = " (rsLoRA)" if spec.config.get("use_rslora") else ""
    return f"{spec.config.get('lora_alpha', 8):g}{pattern}{rslora}"


def _serve_command(done: Composition, path: Path) -> str:
    """The command that serves a composed adapter, on the base that the user named or else the adapter does."""
    plan = done.prepared.plan
    if done.bucket is None:
        return f"PeftModel.from_pretrained(base, {str(path)!r})"
    command = f"plyfold serve {shlex.quote(folder_name(path))}"
    if plan.base_word is not None:
        return f"{command} --base {shlex.quote(str(plan.base_word))}"
    known = is_id(plan.base_repo) or (bool(plan.base_repo) and Path(plan.base_repo).is_dir())
    return command if known else f"{command} --base BASE, with the folder or Hub id of the base for BASE"
