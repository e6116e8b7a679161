"""What the coordinator's store says of a run, as the record has it."""

import json

import pytest

from devices.conductor.answers import Answers, by_number, parse_device_answers, parse_round_answer
from protocol.errors import SparsefleetError

_ROUNDS = (
    {"round": 1, "state": "committed", "devices": [{"device": "a", "fold": 1}, {"device": "b", "fold": 3}]},
    {"round": 2, "devices": [{"device": "a", "fold": 2}, {"device": "b"}], "late": []},
    {"round": 3, "devices": [{"device": "a", "fold": 3}], "late": [{"device": "b", "round": 1, "behind": 2}]},
)


def test_a_fold_has_those_in_time_and_those_that_were_late_for_an_earlier_round() -> None:
    rounds = by_number(parse_round_answer(json.dumps(said).encode()) for said in _ROUNDS)
    assert [rounds[number].folded() for number in (1, 2, 3)] == [("a",), ("a",), ("a", "b")]
    answers = Answers({}, rounds)
    assert (answers.staleness("a"), answers.staleness("b"), answers.staleness("c")) == (0.0, 2.0, None)


def test_devices_are_read_by_name_and_what_is_not_theirs_is_passed_over() -> None:
    said = {"devices": [{"device": "a", "accepted": 3, "news": 1}, {"device": "b", "step_ms": 2.5, "variant": None}]}
    found = parse_device_answers(json.dumps(said).encode())
    assert (found["a"].accepted, found["b"].step_ms) == (3, 2.5)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"devices": 1}', b'{"devices": [{"device": 1}]}'])
def test_what_is_no_answer_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(SparsefleetError, match="coordinator: "):
        parse_device_answers(text)
