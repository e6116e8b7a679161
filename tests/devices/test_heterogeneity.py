"""Uneven data: the kinds of label skew, feature shift, the plot of labels, and the command."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from devices.cli import main
from devices.datasets import Ints
from devices.feature_shift import shifted
from devices.label_plot import counts_of, label_plot
from devices.partition import by_class_mix, by_label_skew, by_shards
from protocol.errors import ConfigurationError

Y = np.repeat(np.arange(10), 300).astype(np.int64)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def is_whole(shares: tuple[Ints, ...]) -> bool:
    return bool((np.sort(np.concatenate(shares)) == np.arange(len(Y))).all())


def labels(share: Ints) -> int:
    return len(np.unique(Y[share]))


def spread(shares: tuple[Ints, ...]) -> float:
    mixes = np.stack([np.bincount(Y[share], minlength=10) / len(share) for share in shares])
    return float(np.abs(mixes - 0.1).sum(axis=1).mean() / 2)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 100.0])
def test_by_class_mix_devices_are_of_equal_size_and_nothing_is_lost(alpha: float) -> None:
    shares = by_class_mix(Y, 16, alpha, rng())
    assert is_whole(shares)
    assert {len(share) for share in shares} <= {187, 188}


def test_both_dirichlet_kinds_are_more_uneven_the_smaller_alpha() -> None:
    for split in (by_class_mix, by_label_skew):
        found = [spread(split(Y, 10, alpha, rng())) for alpha in (0.05, 0.5, 50.0)]
        assert found[0] > found[1] > found[2]
        assert found[2] < 0.12


def test_shards_give_most_devices_as_many_labels_as_shards() -> None:
    shares = by_shards(Y, 10, 2, rng())
    assert is_whole(shares)
    assert {len(share) for share in shares} == {300}
    assert max(labels(share) for share in shares) <= 4
    assert np.median([labels(share) for share in shares]) == 2


def test_the_same_seed_deals_the_same() -> None:
    for first, again in (
        (by_class_mix(Y, 7, 0.1, rng(5)), by_class_mix(Y, 7, 0.1, rng(5))),
        (by_shards(Y, 7, 3, rng(5)), by_shards(Y, 7, 3, rng(5))),
    ):
        assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_more_shards_than_examples_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="3000 examples cannot be cut into 2000 x 2 shards"):
        by_shards(Y, 2000, 2, rng())


def test_a_turn_in_space_keeps_lengths_and_turns_all_triples_alike() -> None:
    x = rng().standard_normal((5, 6, 20)).astype(np.float32)
    x[:, 3:] = x[:, :3]
    turned = shifted(x, 1.0, 90.0, rng(3))
    assert not np.allclose(turned, x, atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(turned[:, :3], axis=1), np.linalg.norm(x[:, :3], axis=1), rtol=1e-4)
    np.testing.assert_allclose(turned[:, 3:], turned[:, :3], rtol=1e-5)


def test_a_turn_in_the_plane_keeps_the_middle_and_moves_the_edge() -> None:
    x = np.zeros((1, 1, 29, 29), np.float32)
    x[0, 0, 14, :] = 1.0
    turned = shifted(x, 1.0, 180.0, rng(2))
    assert turned[0, 0, 14, 14] == 1.0
    assert (turned != x).any()


def test_gains_lie_between_its_inverse_and_itself() -> None:
    ones = np.ones((1, 3, 2), np.float32)
    found = [float(shifted(ones, 2.0, 0.0, rng(seed)).max()) for seed in range(50)]
    assert 0.5 <= min(found) < 0.7
    assert 1.5 < max(found) <= 2.0


@pytest.mark.parametrize(("gain", "degrees", "said"), [(0.5, 0.0, "gain: 0.5"), (1.0, 200.0, "rotation: 200")])
def test_a_shift_out_of_range_is_refused(gain: float, degrees: float, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        shifted(np.ones((1, 3, 2), np.float32), gain, degrees, rng())


def test_what_has_no_axes_is_not_turned() -> None:
    with pytest.raises(ConfigurationError, match="neither triples of axes nor pictures"):
        shifted(np.ones((2, 4), np.float32), 1.0, 10.0, rng())


def test_the_plot_has_a_bar_as_long_as_each_devices_examples() -> None:
    text = label_plot("a < b", {"device-01": [30, 0, 10], "device-02": [0, 20, 0]})
    root = ElementTree.fromstring(text)
    bars = [e for e in root.iter() if e.tag.endswith("rect") and list(e)]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)
    assert widths[2] == pytest.approx(2 * widths[1], rel=0.01)
    assert counts_of(np.array([0, 2, 2]), 4) == [1, 0, 2, 0]


@pytest.mark.parametrize("kind", ["per-class", "per-client", "shards"])
def test_the_command_draws_writes_and_says_which_kind(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "labels.svg", tmp_path / "shards"
    extra = ["--gain", "2", "--rotation", "30"] if kind == "shards" else []
    code = main(
        ["partition", "--data", "digits", "--devices", "6", "--alpha", "0.1", "--kind", kind, "--seed", "3"]
        + ["--out", str(out), "--write", str(folder), "--json", *extra]
    )
    assert code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == kind
    assert 0.3 < facts["unevenness"] <= 1.0
    held = {one["device"]: one["examples"] for one in facts["devices"]}
    assert len(held) == 6
    for device, count in held.items():
        with np.load(folder / "agents" / device / "shard.npz") as shard:
            assert len(shard["x"]) == len(shard["y"]) == count
    assert ElementTree.fromstring(out.read_text()).tag.endswith("svg")


def test_the_table_is_headed_by_its_labels_and_a_file_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["partition", "--data", "digits", "--devices", "2"]
    assert main(asked) == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert head == ["device", "examples", *(str(label) for label in range(10)), "(labels)"]
    assert all(int(row[1]) == sum(int(count) for count in row[2:]) for row in rows)
    assert main([*asked, "--out", str(tmp_path / "nowhere" / "labels.svg")]) == 3
    assert "labels.svg: cannot be written (No such file or directory)" in capsys.readouterr().err


def test_natural_clients_that_there_are_not_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["partition", "--data", "digits", "--kind", "natural"]) == 3
    assert "digits has no natural clients" in capsys.readouterr().err
