"""Which codec a device gets: the laws of the choice, over any ladder, link and budget."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.budget import DAY_S, LADDER, MASKED_LADDER, Allowance, Rung, Spending, choose, day_of, rounds_left
from coordinator.traffic import Traffic
from coordinator.wire_bytes import RoundBytes
from protocol.errors import Rejection
from sparse.codecs import parse_codec

sizes = st.lists(st.integers(1, 10**7), min_size=1, max_size=6, unique=True)
links = st.none() | st.floats(1.0, 1e8)
budgets = st.integers(0, 10**8)


def ladder(found: list[int]) -> list[Rung]:
    return [Rung(f"codec-{n}", RoundBytes(n, 1000)) for n in sorted(found, reverse=True)]


spendings = st.builds(
    Spending,
    codec=st.none() | st.integers(0, 10**7).map(lambda n: f"codec-{n}"),
    link_bytes_s=links,
    train_s=st.floats(0.0, 1e3),
    today_bytes=st.integers(0, 10**8),
)
allowances = st.builds(Allowance, target_s=st.floats(0.1, 1e4), day_bytes=budgets, rounds_left=st.floats(1.0, 1e4))


def cost(rungs: list[Rung], chosen: str) -> int:
    return next(rung.bytes.both for rung in rungs if rung.codec == chosen)


@given(sizes, spendings, allowances)
def test_no_round_is_predicted_over_what_is_left_of_the_day(
    found: list[int], device: Spending, allowance: Allowance
) -> None:
    rungs = ladder(found)
    chosen = choose("dev", device, rungs, allowance)
    left = allowance.day_bytes - device.today_bytes
    if isinstance(chosen, Rejection):
        assert chosen.reason == "budget"
        assert rungs[-1].bytes.both > left
    elif allowance.day_bytes:
        assert cost(rungs, chosen) <= left


@given(sizes, spendings, allowances)
def test_all_but_the_leanest_end_in_time_and_within_the_share_of_the_round(
    found: list[int], device: Spending, allowance: Allowance
) -> None:
    rungs = ladder(found)
    chosen = choose("dev", device, rungs, allowance)
    if isinstance(chosen, Rejection) or chosen == rungs[-1].codec:
        return
    slack = 1 + allowance.hysteresis
    taken = cost(rungs, chosen)
    if device.link_bytes_s is not None:
        assert device.train_s + taken / device.link_bytes_s <= allowance.target_s * slack
    if allowance.day_bytes:
        assert taken <= (allowance.day_bytes - device.today_bytes) / allowance.rounds_left * slack


@given(sizes, spendings, allowances, st.floats(1.0, 100.0))
def test_a_faster_link_never_makes_a_leaner_update(
    found: list[int], device: Spending, allowance: Allowance, faster: float
) -> None:
    rungs = ladder(found)
    if device.link_bytes_s is None:
        return
    quick = Spending(device.codec, device.link_bytes_s * faster, device.train_s, device.today_bytes)
    before, after = choose("dev", device, rungs, allowance), choose("dev", quick, rungs, allowance)
    assert isinstance(before, Rejection) == isinstance(after, Rejection)
    if not isinstance(before, Rejection) and not isinstance(after, Rejection):
        assert cost(rungs, after) >= cost(rungs, before)


@given(sizes, spendings, allowances, st.integers(0, 10**8))
def test_a_larger_budget_never_makes_a_leaner_update_or_sends_a_device_to_rest(
    found: list[int], device: Spending, allowance: Allowance, more: int
) -> None:
    rungs = ladder(found)
    if not allowance.day_bytes:
        return
    wide = Allowance(allowance.target_s, allowance.day_bytes + more, allowance.rounds_left)
    before, after = choose("dev", device, rungs, allowance), choose("dev", device, rungs, wide)
    if not isinstance(before, Rejection):
        assert not isinstance(after, Rejection)
        assert cost(rungs, after) >= cost(rungs, before)


RUNGS = ladder([10_000, 1_000, 100])


def test_an_unmeasured_link_without_a_budget_gets_the_richest() -> None:
    assert choose("dev", Spending(), RUNGS, Allowance(1.0)) == "codec-10000"


def test_a_link_too_slow_for_all_gets_the_leanest_because_late_work_counts_too() -> None:
    assert choose("dev", Spending(link_bytes_s=1.0), RUNGS, Allowance(1.0)) == "codec-100"


def test_noise_of_a_tenth_does_not_change_a_codec_either_way() -> None:
    for at, link in (("codec-10000", 11_000 / 1.1), ("codec-1000", 11_000 * 1.1)):
        assert choose("dev", Spending(at, link), RUNGS, Allowance(1.0)) == at
    assert choose("dev", Spending("codec-1000", 11_000 * 1.3), RUNGS, Allowance(1.0)) == "codec-10000"
    assert choose("dev", Spending("codec-10000", 11_000 / 1.3), RUNGS, Allowance(1.0)) == "codec-1000"


def test_training_takes_its_part_of_the_rounds_time() -> None:
    assert choose("dev", Spending(link_bytes_s=11_000, train_s=0.5), RUNGS, Allowance(1.0)) == "codec-1000"


def test_what_is_left_of_the_day_is_shared_by_the_rounds_that_are_left() -> None:
    assert choose("dev", Spending(), RUNGS, Allowance(1.0, 20_000, 1)) == "codec-10000"
    assert choose("dev", Spending(), RUNGS, Allowance(1.0, 20_000, 10)) == "codec-1000"
    assert choose("dev", Spending(today_bytes=18_800), RUNGS, Allowance(1.0, 20_000, 10)) == "codec-100"


def test_who_has_not_even_the_leanest_left_is_told_what_is_missing_and_the_remedy() -> None:
    said = choose("dev", Spending(today_bytes=19_000), RUNGS, Allowance(1.0, 20_000))
    assert isinstance(said, Rejection)
    assert "1000 of 20000 bytes left" in said.detail
    assert "1100" in said.detail
    assert "limits.device_bytes_per_day" in said.detail


def test_rounds_left_end_at_midnight_or_with_the_run() -> None:
    assert rounds_left(DAY_S - 600.0, 60.0, 100, 1.0) == 10
    assert rounds_left(DAY_S - 600.0, 60.0, 5, 1.0) == 5
    assert rounds_left(DAY_S - 600.0, 60.0, 100, 0.5) == 5
    assert rounds_left(DAY_S - 1.0, 60.0, 100, 0.1) == 1
    assert (day_of(DAY_S - 0.5), day_of(DAY_S)) == (0, 1)


def test_the_built_in_ladders_are_of_codecs() -> None:
    assert all(str(parse_codec(codec)) for codec in (*LADDER, *MASKED_LADDER))


def test_a_day_begins_with_what_was_sent_so_far_whatever_boots_come_between() -> None:
    traffic = Traffic(day=1).counted(1, 100)
    assert traffic.today_bytes == 100
    traffic = traffic.on(1).counted(2, 50)
    assert (traffic.today_bytes, traffic.total_bytes) == (150, 150)
    traffic = traffic.on(2)
    assert traffic.today_bytes == 0
    traffic = traffic.counted(2, 70).counted(3, 5)
    assert (traffic.today_bytes, traffic.total_bytes) == (25, 175)
    assert traffic.on(1).today_bytes == 0, "a clock that is set back begins a day too"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 10**6)), max_size=12))
def test_todays_bytes_are_never_negative_nor_more_than_all(said: list[tuple[int, int, int]]) -> None:
    traffic = Traffic()
    for day, boot, sent in said:
        traffic = traffic.on(day).counted(boot, sent)
        assert 0 <= traffic.today_bytes <= traffic.total_bytes
