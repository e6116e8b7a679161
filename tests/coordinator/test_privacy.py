"""Central differential privacy: what noise there is, who can know it, and what the account says."""

import math
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator import versions
from coordinator.accountant import epsilon_of
from coordinator.fold import Decoded, Delta, Weighted
from coordinator.ledger import take_part
from coordinator.next_model import Made, next_model
from coordinator.privacy import KEY_FILE, check_privacy, fold_label, gaussian, load_key, private_fold
from coordinator.reports import Reports
from coordinator.trust_settings import FoldSettings, PrivacySettings
from protocol.errors import ConfigurationError
from protocol.layout import Layout
from tests.coordinator import simulation
from tests.coordinator.simulation import Simulation

N = 6
ALL = Layout((slice(0, N),), (), bytes(8))
HEAD = Layout((slice(4, N),), (), b"heads123")
KEY = bytes(range(32))


def noiseless(multiplier: float, found: dict[str, Decoded], layouts: dict[str, Layout], clip: float = 1.0) -> Delta:
    updates = [Weighted(d, 10**i, layouts.get(d, ALL)) for i, d in enumerate(found)]
    return private_fold(
        PrivacySettings(multiplier, clip), updates, lambda u: found[u.device], N, KEY, b"label"
    ).parameters


def update(*values: float) -> Decoded:
    return np.array(values, np.float32), np.zeros(0, np.float32)


def test_noise_is_normal_and_the_same_for_the_same_key_and_label_alone() -> None:
    drawn = gaussian(KEY, b"a", 200_000)
    assert abs(drawn.mean()) < 0.01
    assert drawn.std() == pytest.approx(1.0, abs=0.01)
    # Of a normal variate: kurtosis 3, and 2.3 % beyond two.
    assert (drawn**4).mean() == pytest.approx(3.0, abs=0.1)
    assert (drawn > 2.0).mean() == pytest.approx(0.02275, abs=0.002)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01
    assert drawn.tobytes() == gaussian(KEY, b"a", 200_000).tobytes()
    assert drawn[:100].tobytes() == gaussian(KEY, b"a", 100_000)[:100].tobytes()
    for other in (gaussian(KEY, b"b", 1000), gaussian(bytes(32), b"a", 1000)):
        assert abs(np.corrcoef(other, drawn[:1000])[0, 1]) < 0.15


def test_every_update_counts_the_same_and_no_more_than_its_norm() -> None:
    found = {"a": update(30, 0, 0, 0, 0, 0), "b": update(0, 0.5, 0, 0, 0, 0), "c": update(0, 0, -1e30, 0, 0, 0)}
    mean = noiseless(1e-12, found, {})
    np.testing.assert_allclose(mean, np.array([1, 0.5, -1, 0, 0, 0]) / 3, atol=1e-5)
    assert np.linalg.norm(3 * np.asarray(mean) - [0, 0.5, -1, 0, 0, 0]) <= 1.0


def test_a_coordinate_that_fewer_trained_has_more_noise_and_nobodys_has_none() -> None:
    found = {"a": update(0, 0), "b": update(0, 0)}
    heads = noiseless(3.0, found, {"a": HEAD, "b": HEAD}, clip=2.0)
    expected = gaussian(KEY, b"label", N) * 3.0 * 2.0 / 2
    np.testing.assert_allclose(heads, [0, 0, 0, 0, *expected[4:]])
    mixed = noiseless(3.0, {"a": update(*[0] * N), "b": update(0, 0)}, {"b": HEAD}, clip=2.0)
    np.testing.assert_allclose(mixed, gaussian(KEY, b"label", N) * 6.0 / np.array([1, 1, 1, 1, 2, 2]))


def test_the_label_is_of_the_set_in_any_order_and_of_nothing_else() -> None:
    a, b = (1, "dev-a", bytes(32)), (1, "dev-b", b"1" * 32)
    assert fold_label("run", 3, [a, b]) == fold_label("run", 3, [b, a])
    others = {fold_label("run", 3, [a]), fold_label("run", 4, [a, b]), fold_label("other", 3, [a, b])}
    assert len(others | {fold_label("run", 3, [a, b])}) == 4


def test_the_key_is_made_once_for_its_owner_alone_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    key = load_key(tmp_path)
    assert len(set(key)) > 10
    assert load_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / KEY_FILE).write_bytes(key[:7])
    with pytest.raises(ConfigurationError, match="7 bytes where a key has 32"):
        load_key(tmp_path)


def exact_epsilon(multiplier: float, delta: float) -> float:
    """Of one Gaussian mechanism: Balle and Wang 2018, theorem 8, by bisection."""

    def spent(epsilon: float) -> float:
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        half = 1 / (2 * multiplier)
        return phi(half - epsilon * multiplier) - math.exp(epsilon) * phi(-half - epsilon * multiplier)

    low, high = 0.0, 500.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("multiplier", [0.8, 2.0, 10.0])
@pytest.mark.parametrize("count", [1, 25])
def test_the_account_is_above_the_exact_epsilon_and_not_far(multiplier: float, count: int) -> None:
    pytest.importorskip("dp_accounting")
    told = epsilon_of([{multiplier: count}], 1e-5)
    exact = exact_epsilon(multiplier / math.sqrt(count), 1e-5)
    assert told is not None
    assert exact <= told <= 1.2 * exact


def test_the_account_is_of_the_device_that_took_part_most_and_endless_without_noise() -> None:
    pytest.importorskip("dp_accounting")
    assert epsilon_of([{1.0: 3}, {1.0: 5}, {4.0: 6}], 1e-5) == epsilon_of([{1.0: 5}], 1e-5)
    assert epsilon_of([{1.0: 3}, {0.5: 1}], 1e-5) == epsilon_of([{0.5: 1}], 1e-5)
    assert epsilon_of([{1.0: 3}, {0.0: 1}], 1e-5) is None
    assert epsilon_of([], 1e-5) == 0.0


def test_two_updates_of_a_device_in_one_fold_cost_as_half_the_noise() -> None:
    found: dict[str, dict[float, int]] = {}
    take_part(found, "late", 2.0, 2)
    take_part(found, "late", 2.0, 1)
    take_part(found, "once", 2.0, 1)
    assert found == {"late": {1.0: 1, 2.0: 1}, "once": {2.0: 1}}
    twice = {"a": update(1, 0, 0, 0, 0, 0)}
    updates = [Weighted("a", 5, ALL, number=number, discount=1.0 / number) for number in (1, 2)]
    mean = private_fold(PrivacySettings(1e-12), updates, lambda u: twice[u.device], N, KEY, b"x").parameters
    assert mean[0] == pytest.approx(0.75)


def test_what_reaches_the_model_beside_the_noise_is_refused(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path)
    with pytest.raises(ConfigurationError, match=r"3 running statistics.*GroupNorm"):
        check_privacy(PrivacySettings(1.0), fleet.bundle.manifest)
    check_privacy(PrivacySettings(), fleet.bundle.manifest)
    with pytest.raises(ValueError, match=r"fold\.rule is median"):
        PrivacySettings(1.0).check(FoldSettings("median"), reports=False)
    with pytest.raises(ValueError, match=r"report_every = 0"):
        PrivacySettings(1.0).check(FoldSettings(), reports=True)
    fleet.store.close()


def private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """A fleet without running statistics, of three, one of which sits out the second round."""
    monkeypatch.setattr(simulation, "BUFFERS", 0)
    fleet = Simulation.make(folder, minimum=2, count=3)
    fleet.kill()
    fleet.settings = replace(fleet.settings, privacy=PrivacySettings(2.0, clip=0.1, delta=1e-5))
    fleet.start()
    return fleet


def test_epsilon_is_told_after_every_round_and_a_refold_has_the_same_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dp_accounting")
    folded: list[bytes] = []

    def twice(*given: object) -> Made:
        """As after a kill between the fold and its commit."""
        first, again = next_model(*given), next_model(*given)  # type: ignore[arg-type]
        folded.extend((first.dense.tobytes(), again.dense.tobytes()))
        return again

    monkeypatch.setattr(versions, "next_model", twice)
    fleet = private(tmp_path, monkeypatch)
    told = []
    for number in (1, 2, 3):
        fleet.until(lambda number=number: len(fleet.committed) == number)  # type: ignore[misc]
        with Reports(fleet.folder / "state") as reports:
            status = reports.status(fleet.settings.rounds)
        told.append(status.epsilon)
        assert status.delta == 1e-5
    assert told == [epsilon_of([{2.0: number}], 1e-5) for number in (1, 2, 3)]
    assert [(event.epsilon, event.delta) for event in fleet.committed] == [(epsilon, 1e-5) for epsilon in told]
    assert folded[::2] == folded[1::2]
    assert len(set(folded)) == 3
    fleet.store.close()


def test_a_run_that_had_rounds_without_noise_claims_no_epsilon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dp_accounting")
    fleet = private(tmp_path, monkeypatch)
    fleet.kill()
    chosen, fleet.settings = fleet.settings, replace(fleet.settings, privacy=PrivacySettings())
    fleet.start()
    fleet.until(lambda: len(fleet.committed) == 1)
    fleet.kill()
    fleet.settings = chosen
    fleet.start()
    fleet.finish()
    with Reports(fleet.folder / "state") as reports:
        status = reports.status(fleet.settings.rounds)
    assert (status.epsilon, status.delta) == (None, 1e-5)
    fleet.store.close()


def test_without_an_accountant_no_noise_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting.rdp", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'sparsefleet\[privacy\]'"):
        private(tmp_path, monkeypatch)
