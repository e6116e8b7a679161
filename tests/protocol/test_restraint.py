"""A flood of the same complaint becomes a few lines a minute, and none of it goes uncounted."""

from protocol.restraint import BURST, EVERY_S, Restraint


def test_the_first_few_are_said_and_the_rest_counted_in_the_next_minutes_first_line() -> None:
    restraint = Restraint()
    said = [restraint.unsaid("garbage", 0.01 * i) for i in range(1000)]
    assert said == [0] * BURST + [None] * (1000 - BURST)
    assert restraint.unsaid("garbage", EVERY_S) == 1000 - BURST
    assert restraint.unsaid("garbage", EVERY_S + 1) == 0


def test_one_kind_does_not_silence_another() -> None:
    restraint = Restraint(burst=1)
    assert [restraint.unsaid(kind, 0.0) for kind in ("a", "a", "b", "b")] == [0, None, 0, None]
