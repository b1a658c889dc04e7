"""The grouped CPU LoRA kernel against a float64 reference, and the self-test that decides on it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from plyfold.engines import cpu_lora

RANK, WIDTH, SLICES = 8, 32, (24, 12, 12)


def stacks(num_slots: int, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    A = [torch.randn(num_slots, 1, RANK, WIDTH, generator=generator).to(dtype) for _ in SLICES]
    B = [torch.randn(num_slots, 1, width, RANK, generator=generator).to(dtype) for width in SLICES]
    return A, B


def reference(
    y: torch.Tensor, x: torch.Tensor, A: list[torch.Tensor], B: list[torch.Tensor], slots: list[int]
) -> torch.Tensor:
    """Row by row in float64, straight from the definition."""
    rows = []
    for row, slot in enumerate(slots):
        if slot < 0:
            rows.append(y[row].double())
            continue
        delta = [b[slot, 0].double() @ (a[slot, 0].double() @ x[row].double()) for a, b in zip(A, B, strict=True)]
        rows.append(y[row].double() + torch.cat(delta))
    return torch.stack(rows)


@pytest.mark.parametrize("slots", [[0, -1, 1, 2, -1, 1, 0], [1] * 7, [-1] * 7, [2, 2, 2, -1, -1, 0, 0]])
def test_matches_the_definition_row_by_row(slots: list[int]) -> None:
    A, B = stacks(3)
    x, y = torch.randn(len(slots), WIDTH), torch.randn(len(slots), sum(SLICES))
    expected = reference(y, x, A, B, slots)
    base = y.clone()
    cpu_lora.add_lora_linear(SimpleNamespace(token_lora_indices=torch.tensor(slots)), y, x, A, B, 1.0, SLICES)
    # Each delta sums WIDTH * RANK products in float32: gamma_(WIDTH + RANK + 2) * sum |b||a||x| bounds the error.
    largest = max((b.abs() @ a.abs()).double().max().item() * WIDTH for a, b in zip(A, B, strict=True))
    bound = (WIDTH + RANK + 2) * torch.finfo(torch.float32).eps * largest * x.abs().max().item()
    assert (y.double() - expected).abs().max().item() <= bound
    without = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[without], base[without])


def test_scale_multiplies_the_delta_and_a_third_dimension_is_flattened() -> None:
    A, B = stacks(1)
    x = torch.randn(1, 5, WIDTH)
    wrapper = SimpleNamespace(token_lora_indices=torch.zeros(5, dtype=torch.long))
    once, twice = torch.zeros(1, 5, sum(SLICES)), torch.zeros(1, 5, sum(SLICES))
    cpu_lora.add_lora_linear(wrapper, once, x, A, B, 1.0, SLICES)
    cpu_lora.add_lora_linear(wrapper, twice, x, A, B, 2.0, SLICES)
    assert once.abs().max() > 0
    assert torch.equal(twice, 2 * once)


def test_bfloat16_stays_within_its_roundings() -> None:
    A, B = stacks(2, torch.bfloat16)
    slots = [0, 1, -1, 1]
    x, y = torch.randn(4, WIDTH).bfloat16(), torch.zeros(4, sum(SLICES), dtype=torch.bfloat16)
    expected = reference(y, x, A, B, slots)
    cpu_lora.add_lora_linear(SimpleNamespace(token_lora_indices=torch.tensor(slots)), y, x, A, B, 1.0, SLICES)
    magnitude = reference(y * 0, x.abs(), [a.abs() for a in A], [b.abs() for b in B], slots)
    # Two bfloat16 roundings (the intermediate, the result) over float32 sums; y starts at zero, so adding is exact.
    assert ((y.double() - expected).abs() <= 2.1 * torch.finfo(torch.bfloat16).eps * magnitude + 1e-12).all()


class TestSelfTest:
    """Against the installed vLLM."""

    @pytest.fixture(autouse=True)
    def _vllm(self) -> None:
        pytest.importorskip("vllm", reason="vLLM is not installed")
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            pytest.skip("the defect is in vLLM's CPU kernels")

    @pytest.mark.slow
    def test_the_grouped_kernel_passes_where_gathering_with_minus_one_fails(self) -> None:
        def gathering(
            wrapper: object,
            y: torch.Tensor,
            x: torch.Tensor,
            A: tuple[torch.Tensor, ...],
            B: tuple[torch.Tensor, ...],
            scale: float,
            slices: tuple[int, ...],
        ) -> None:
            slot_T = wrapper.token_lora_indices  # type: ignore[attr-defined]
            y += torch.einsum("tor,tri,ti->to", B[0][slot_T, 0], A[0][slot_T, 0], x)

        assert not cpu_lora.base_rows_changed(cpu_lora.add_lora_linear)
        assert cpu_lora.base_rows_changed(gathering)

    @pytest.mark.slow
    def test_install_is_idempotent_and_replaces_only_a_wrong_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

        def right(*args: object, **kwargs: object) -> None:
            cpu_lora.add_lora_linear(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(PunicaWrapperCPU, "add_lora_linear", right)
        assert "kept" in cpu_lora.install()
        assert PunicaWrapperCPU.add_lora_linear is right

        def wrong(self: object, y: torch.Tensor, *args: object, **kwargs: object) -> None:
            y += 1

        monkeypatch.setattr(PunicaWrapperCPU, "add_lora_linear", wrong)
        assert "grouped CPU LoRA is installed" in cpu_lora.install()
        assert PunicaWrapperCPU.add_lora_linear is cpu_lora.add_lora_linear
        assert cpu_lora.install() == "grouped CPU LoRA is installed"

    def test_register_never_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from plyfold.engines import vllm_plugin

        def broken() -> str:
            raise ImportError("moved")

        monkeypatch.setattr(cpu_lora, "install", broken)
        vllm_plugin.register()
