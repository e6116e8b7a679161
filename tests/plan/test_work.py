"""Units of work: layers whose multiplications and elements anyone can count."""

import pytest

from edge_agent.calibration.probes import PROBES
from edge_agent.runtimes.work import UNITS, Operation, work


def count(kind: str, *shapes: tuple[int, ...], out: tuple[int, ...], **attributes: tuple[int, ...]) -> dict[str, float]:
    return {unit: amount for unit, amount in work(Operation(kind, shapes, (out,), attributes)).items() if amount}


def test_a_convolution_multiplies_kernel_by_image_for_every_channel() -> None:
    found = count("Conv", (2, 3, 32, 32), (16, 3, 3, 3), out=(2, 16, 32, 32))
    assert found["multiply_add"] == 2 * 16 * 32 * 32 * 3 * 3 * 3
    assert found["unfolded"] == 2 * 3 * 3 * 3 * 32 * 32
    assert found["product"] == 2


def test_a_pointwise_convolution_unfolds_nothing() -> None:
    found = count("Conv", (2, 8, 16, 16), (4, 8, 1, 1), out=(2, 4, 16, 16))
    assert found["multiply_add"] == 2 * 4 * 8 * 256
    assert "unfolded" not in found


def test_a_depthwise_convolution_is_products_with_vectors() -> None:
    found = count("Conv", (2, 8, 16, 16), (8, 1, 3, 3), out=(2, 8, 16, 16), group=(8,))
    assert found["vector_multiply_add"] == 2 * 8 * 256 * 9
    assert found["product"] == 16
    assert "multiply_add" not in found


def test_a_transposed_convolution_multiplies_as_its_forward_does() -> None:
    found = count("ConvTranspose", (2, 16, 16, 16), (16, 8, 3, 3), out=(2, 8, 18, 18))
    assert found["multiply_add"] == 2 * 16 * (8 * 9) * 256


def test_a_linear_layer_of_any_orientation_multiplies_the_same() -> None:
    straight = count("Gemm", (32, 64), (64, 48), out=(32, 48))
    turned = count("Gemm", (32, 64), (48, 64), out=(32, 48), transB=(1,))
    assert straight["multiply_add"] == turned["multiply_add"] == 32 * 64 * 48
    assert turned["turned"] == 64 * 48
    assert "turned" not in straight


def test_a_batch_of_products_is_counted_once_each() -> None:
    assert count("MatMul", (4, 5, 6, 7), (4, 5, 7, 16), out=(4, 5, 6, 16))["product"] == 20
    assert count("MatMul", (6, 7), (7, 16), out=(6, 16))["product"] == 1


def test_rows_are_counted_where_an_operand_is_spread_over_channels() -> None:
    assert "row" not in count("Add", (8, 16, 4, 4), (8, 16, 4, 4), out=(8, 16, 4, 4))
    assert "row" not in count("Add", (8, 16, 4, 4), (1,), out=(8, 16, 4, 4))
    assert count("Add", (8, 16, 4, 4), (16, 1, 1), out=(8, 16, 4, 4))["row"] == 8 * 16


def test_a_transposition_that_keeps_the_last_axis_moves_rows() -> None:
    started = {"node": 1, "setup": 1}
    assert count("Transpose", (2, 3, 4), out=(3, 2, 4), perm=(1, 0, 2)) == {**started, "copy": 24, "row": 6}
    assert count("Transpose", (2, 3, 4), out=(2, 4, 3), perm=(0, 2, 1)) == {**started, "transposition": 24}
    assert count("Transpose", (1, 3, 4), out=(3, 1, 4), perm=(1, 0, 2)) == {**started, "copy": 12}


def test_a_slice_moves_rows_as_long_as_its_last_cut_axis() -> None:
    assert count("Slice", (8, 6, 6), out=(8, 4, 4))["row"] == 8 * 4
    assert count("Slice", (8, 6, 6), out=(4, 6, 6))["copy"] == 4 * 36


def test_a_reduction_takes_all_of_its_input() -> None:
    found = count("ReduceSum", (8, 16, 32), out=(1, 16, 1), axes=(0, 2))
    assert (found["reduction"], found["row"]) == (8 * 16 * 32, 8 * 16)


def test_strides_are_counted_apart_for_runtimes_take_them_element_by_element() -> None:
    found = count("Conv", (1, 4, 64), (8, 4, 5), out=(1, 8, 32), strides=(2,))
    assert found["picked"] == 4 * 5 * 32
    assert "unfolded" not in found
    assert count("Slice", (8, 64), out=(8, 32), steps=(2,))["picked"] == 8 * 32
    assert count("ReduceSum", (1, 64, 8), out=(64, 8), axes=(0,))["picked"] == 64 * 8


def test_a_small_operator_reads_from_where_the_step_leaves_its_operands() -> None:
    small = Operation("Add", ((1000,), (1000,)), ((1000,),))
    assert "far_byte" not in work(small)
    assert work(small, around=2 << 20)["far_byte"] == 12_000
    assert work(small, around=64 << 20)["memory_byte"] == 12_000


def test_what_does_not_fit_the_cache_costs_by_the_byte() -> None:
    assert "far_byte" not in count("Add", (1000,), (1000,), out=(1000,))
    assert count("Add", (1 << 17,), (1 << 17,), out=(1 << 17,))["far_byte"] == 3 * 4 << 17
    assert count("Add", (1 << 20,), (1 << 20,), out=(1 << 20,))["memory_byte"] == 3 * 4 << 20


def test_an_operator_of_no_known_class_counts_as_a_copy() -> None:
    assert count("Frobnicate", (10,), out=(20,)) == {"node": 1, "setup": 1, "copy": 20, "row": 2}


@pytest.mark.parametrize("unit", sorted(set(UNITS) - {"run", "sgd", "adamw"}))
def test_every_unit_is_measured_by_a_probe(unit: str) -> None:
    assert any(work(probe.operation, around).get(unit) for probe in PROBES for around in (0, 2 << 20, 64 << 20))
