"""Who is in a fleet without a hub: epochs follow when devices come, leave and are lost, no more often than needed."""

from dataclasses import replace

import numpy as np
import pytest

from coordinator import gossip
from coordinator.gossip import AHEAD, Council, Rules, access, due, here, left, mean_distance, stands, unheard
from coordinator.gossip_settings import GossipSettings
from coordinator.neighbour_access import neighbours_acl
from protocol.gossip import Effort, Membership, Standing

SETTINGS = Rules(first=3, minimum=3, dead_after_s=100.0)
NAMES = ("aa", "bb", "cc", "dd")


def begun(names: tuple[str, ...] = NAMES, settings: Rules = SETTINGS) -> Council:
    """All are here and in the first epoch, having completed number 7."""
    council = Council("run")
    for name in names:
        council = here(council, name, 0.0, model=False)
    council, told = due(council, settings, 0.0)
    assert set(told.memberships) == set(names)
    return report(council, 7)


def report(council: Council, number: int, now: float = 0.0, estimate: float = 1.0) -> Council:
    for name in council.members:
        council = stands(council, name, Standing(council.epoch, number, estimate), now)
    return council


def test_the_first_epoch_begins_with_as_many_devices_as_it_needs_all_of_them_newcomers() -> None:
    council = Council("run")
    for name in NAMES[:2]:
        council = here(council, name, 0.0, model=False)
    assert due(council, SETTINGS, 0.0) == (council, gossip.Told())
    council, told = due(here(council, "cc", 1.0, model=False), SETTINGS, 1.0)
    assert council.epoch == 1
    assert {said.newcomer for said in told.memberships.values()} == {True}
    assert {said.after for said in told.memberships.values()} == {0}


def test_weights_of_all_memberships_are_symmetric_and_sum_to_1() -> None:
    told = begun().told
    matrix = np.array([[told[a].weights.get(b, 0.0) if a != b else told[a].own_weight for b in NAMES] for a in NAMES])
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix.sum(axis=0), 1)


def test_nothing_is_said_while_nothing_changes() -> None:
    council = begun()
    assert due(council, SETTINGS, 50.0) == (council, gossip.Told())


def test_who_comes_is_in_the_next_epoch_that_begins_after_an_exchange_which_all_complete() -> None:
    council, told = due(here(begun(), "ee", 10.0, model=False), SETTINGS, 10.0)
    assert council.members == (*NAMES, "ee")
    assert {name: said.after for name, said in told.memberships.items()} == dict.fromkeys(NAMES, 7 + AHEAD) | {"ee": 0}
    assert {said.begun for said in told.memberships.values()} == {7 + AHEAD}
    assert {name for name, said in told.memberships.items() if said.newcomer} == {"ee"}


def test_whoever_comes_while_an_epoch_begins_waits_for_the_next() -> None:
    council, _ = due(here(begun(), "ee", 10.0, model=False), SETTINGS, 10.0)
    council = here(council, "ff", 11.0, model=False)
    assert due(council, SETTINGS, 11.0)[1] == gossip.Told()
    council, told = due(report(council, 1, 12.0), SETTINGS, 12.0)
    assert (council.epoch, "ff" in told.memberships) == (3, True)


def test_who_is_not_heard_for_so_long_is_left_out_at_once() -> None:
    council = begun()
    for name in NAMES[1:]:
        council = stands(council, name, Standing(1, 8, 1.0), 60.0)
    assert due(council, SETTINGS, 99.0)[1] == gossip.Told()
    council, told = due(council, SETTINGS, 100.0)
    assert council.members == NAMES[1:]
    assert {said.after for said in told.memberships.values()} == {0}
    assert all("aa" not in said.weights for said in told.memberships.values())


def test_who_says_goodbye_is_left_out_and_comes_back_with_the_model_it_has() -> None:
    council, _ = due(left(begun(), "bb"), SETTINGS, 1.0)
    assert council.members == ("aa", "cc", "dd")
    council, told = due(here(report(council, 2, 2.0), "bb", 3.0, model=True), SETTINGS, 3.0)
    assert council.members == NAMES
    assert not told.memberships["bb"].newcomer


def test_a_member_that_has_lost_its_model_is_a_newcomer_in_the_next_epoch() -> None:
    council, told = due(here(begun(), "cc", 1.0, model=False), SETTINGS, 1.0)
    assert council.epoch == 2
    assert {name for name, said in told.memberships.items() if said.newcomer} == {"cc"}


def test_a_member_that_has_not_begun_is_told_again_and_one_that_has_is_not() -> None:
    council = Council("run")
    for name in NAMES:
        council = here(council, name, 0.0, model=False)
    council, told = due(council, SETTINGS, 0.0)
    council = here(council, "aa", 1.0, model=False)
    assert unheard(council, "aa") == told.memberships["aa"]
    assert unheard(report(council, 1), "aa") is None
    assert due(council, SETTINGS, 1.0)[1] == gossip.Told()


def test_too_few_devices_are_left_in_their_epoch() -> None:
    council = begun(NAMES[:3])
    assert due(left(council, "aa"), SETTINGS, 1.0)[0].epoch == 1


def test_control_raises_gossip_once_for_each_training_that_all_have_gossiped_about_under_its_effort() -> None:
    settings = Rules(first=3, minimum=3, target=0.25, first_phase=1000)
    council, told = due(begun(settings=settings), settings, 0.0)
    assert told.effort == Effort(1, 2)
    assert due(council, settings, 0.0) == (council, gossip.Told())
    # 8 may have been trained for before it was told, and after 9 there is one more exchange.
    for number in (8, 9):
        council, told = due(report(council, number), settings, 0.0)
        assert told.effort is None
    council, told = due(report(council, 10), settings, 0.0)
    assert told.effort == Effort(1, 4)
    assert mean_distance(council) == 1.0


def test_the_distance_is_what_the_exchanges_after_a_training_have_left_of_it() -> None:
    council = begun(settings=replace(SETTINGS, gossip_rounds=2))
    assert mean_distance(council) is None, "7 is the first of two"
    for number, estimate, distance in ((8, 0.1, 0.1), (9, 0.9, 0.1), (10, 0.2, 0.2), (8, 0.7, 0.2)):
        for name in NAMES:
            council = stands(council, name, Standing(1, number, estimate), 0.0)
        assert mean_distance(council) == distance


def test_a_topology_from_links_is_among_those_who_are_here() -> None:
    settings = Rules(links="aa bb\nbb cc\ncc zz\nbb dd", first=3, minimum=3)
    assert access(begun(settings=settings)) == {"aa": ("bb",), "bb": ("aa", "cc", "dd"), "cc": ("bb",), "dd": ("bb",)}


def test_access_is_to_exactly_the_neighbours() -> None:
    lines = neighbours_acl("sf/1/hall", {"aa": ("bb",), "bb": ("aa",), "cc": ()})
    assert lines.split("\nuser ")[1].splitlines() == [
        "aa",
        "topic write sf/1/hall/aa/gossip",
        "topic read sf/1/hall/bb/gossip",
        "topic write sf/1/hall/aa/gossip/bb",
        "topic read sf/1/hall/bb/gossip/aa",
        "topic write sf/1/hall/aa/want/bb",
        "topic read sf/1/hall/bb/want/aa",
    ]
    assert lines.split("\nuser ")[3].splitlines() == ["cc", "topic write sf/1/hall/cc/gossip"]


def test_a_name_that_would_say_more_than_a_name_is_none() -> None:
    with pytest.raises(ValueError, match="device"):
        neighbours_acl("sf/1/hall", {"aa\ntopic readwrite #": ()})


def test_a_membership_leaves_a_device_the_rest_of_1() -> None:
    assert begun().told["aa"] == Membership(
        "run", 1, begun().told["aa"].neighbours, SETTINGS.codec, 0.5, 0, True, Effort()
    )
    assert begun().told["aa"].own_weight == pytest.approx(1 / 3)


def test_of_relay_neighbours_are_those_of_a_tree_and_know_what_lies_behind_each_link() -> None:
    council = begun(settings=replace(SETTINGS, topology="full", algorithm="relay", codec="all/float32"))
    told = council.told
    assert sum(len(said.neighbours) for said in told.values()) == 2 * (len(NAMES) - 1)
    assert {said.devices for said in told.values()} == {len(NAMES)}
    assert {(said.algorithm, said.gamma) for said in told.values()} == {("relay", 1.0)}
    for device, said in told.items():
        for neighbour in said.neighbours:
            back = next(n for n in told[neighbour.device].neighbours if n.device == device)
            assert (neighbour.subtree or 0) + (back.subtree or 0) == len(NAMES)


def test_settings_refuse_a_codec_that_is_for_differences_where_sums_are_absolute() -> None:
    with pytest.raises(ValueError, match=r"codec: all/sign .* use all/float32, all/float16 or all/bfloat16"):
        GossipSettings("ring", algorithm="relay")
    assert GossipSettings("binary-tree", algorithm="relay", codec="all/float16").patience_s == 60.0
