"""Calibration: graphs written without the onnx package, prices from times, and the command that makes a profile."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, shape_inference

from edge_agent.calibration import clock
from edge_agent.calibration.fit import fit
from edge_agent.calibration.probes import PROBES, TOUCHED, Probe
from edge_agent.cli import main
from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.work import UNITS, work
from protocol.errors import ConfigurationError
from protocol.profile import MAX_PROFILE_BYTES, Profile, format_profile, load_profile, parse_profile
from tests.agent.test_imports import NEVER, modules_after
from tests.plan.profiles import PROFILE


@pytest.mark.parametrize("probe", [*PROBES, *TOUCHED], ids=lambda probe: f"{probe.kind}{probe.output}")
def test_every_probe_is_a_graph_that_onnx_takes_and_infers_to_the_shape_it_says(probe: Probe) -> None:
    model = onnx.load_from_string(probe.graph())
    onnx.checker.check_model(model, full_check=True)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    said = tuple(d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim)
    assert said == probe.output


def test_what_is_written_is_what_onnx_itself_would_write() -> None:
    probe = Probe("Gemm", ((2, 3), (3, 4)), (2, 4), {"transA": 0})
    info = helper.make_tensor_value_info
    inputs = [info("x0", 1, [2, 3]), info("x1", 1, [3, 4])]
    node = helper.make_node("Gemm", ["x0", "x1"], ["y"], name="Gemm_0", transA=0)
    graph = helper.make_graph([node], "probe", inputs, [info("y", 1, [2, 4])])
    model = helper.make_model(graph, opset_imports=[onnx.OperatorSetIdProto(version=18)], ir_version=8)
    assert onnx.load_from_string(probe.graph()) == model


def test_a_chain_computes_what_its_operator_does() -> None:
    probe = Probe("Add", ((3,), (3,)), (3,), times=5)
    session = onnx_session.session_of(probe.graph(), "probe", 1)
    ones = np.ones(3, np.float32)
    np.testing.assert_array_equal(session.run(None, {"x0": ones, "x1": ones})[0], 6 * ones)


def test_prices_are_found_again_from_times_that_they_made() -> None:
    prices = {"node": 3e-6, "copy": 2e-10, "multiply_add": 5e-11}
    works = [
        {"node": float(n), "copy": float(c), "multiply_add": float(m)}
        for n, c, m in ((1, 0, 0), (200, 0, 0), (1, 1e5, 0), (1, 1e6, 10), (1, 0, 1e7), (2, 5e4, 1e6))
    ]
    found, error = fit(works, [sum(prices[unit] * amount for unit, amount in one.items()) for one in works])
    assert found == pytest.approx(prices, rel=1e-3)
    assert error < 1e-3


def test_no_price_is_negative() -> None:
    found, _ = fit([{"node": 1.0}, {"node": 1.0, "copy": 100.0}], [2e-6, 1e-6])
    assert found["copy"] == 0
    assert 1e-6 <= found["node"] <= 2e-6


def test_the_clock_of_one_thread_does_not_count_what_others_do() -> None:
    assert clock.clock_for(1) is not clock.clock_for(2)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """This machine's, made as a device makes it."""
    folder = tmp_path_factory.mktemp("calibrated")
    loaded = modules_after(
        "from edge_agent.cli import main\nassert main('calibrate --name here --out profile.json --json'.split()) == 0",
        folder,
    )
    assert not loaded & set(NEVER)
    return load_profile(folder / "profile.json")


def test_a_calibration_prices_every_unit_and_gives_back_its_probes(calibrated: Profile) -> None:
    assert set(calibrated.seconds) == set(UNITS)
    assert calibrated.name == "here"
    assert calibrated.runtime.startswith("onnxruntime ")
    # A machine under load is allowed for: on a quiet one it is 0.12.
    assert calibrated.error < 0.6
    assert 20 < calibrated.idle_mib < 400
    assert 100 < calibrated.node_bytes < 100_000
    assert 1e-8 < calibrated.seconds["node"] < 1e-3
    assert 1e-12 < calibrated.seconds["multiply_add"] + calibrated.seconds["operand"] < 1e-6


def test_a_profile_comes_back_from_its_text() -> None:
    assert parse_profile("here", format_profile(PROFILE).encode()) == PROFILE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format: 2 is not the format this version reads"),
        ({"threads": 0}, "threads: 0 is outside 1..64"),
        ({"idle_mib": -1.0}, "idle_mib: -1.0 must be a finite number of at least 0"),
        ({"seconds": {"node": float("nan")}}, "seconds.node: nan must be"),
        ({"speed": 1}, "speed: unknown key"),
        ({"name": 3}, "name: expected"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_key(change: dict[str, object], said: str) -> None:
    text = json.dumps({**json.loads(format_profile(PROFILE)), **change})
    with pytest.raises(ConfigurationError, match="kitchen: not a device profile") as refused:
        parse_profile("kitchen", text.encode())
    assert said in str(refused.value)
    assert "edge-agent calibrate" in str(refused.value)


def test_a_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    for name, content in (("text", b"not json"), ("list", b"[]"), ("deep", b"[" * 50_000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match="not a device profile"):
            load_profile(tmp_path / name)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_profile(tmp_path / "none")
    (tmp_path / "large").write_bytes(b" " * (MAX_PROFILE_BYTES + 1))
    with pytest.raises(ConfigurationError, match="over the limit"):
        load_profile(tmp_path / "large")


def test_wrong_options_are_exit_code_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--threads", "0"]) == 3
    assert "--threads: 0 is outside 1..64" in capsys.readouterr().err


def test_every_probe_has_work() -> None:
    assert all(sum(work(probe.operation).values()) > 1 for probe in PROBES)
