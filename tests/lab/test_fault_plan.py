"""Faults as they are drawn."""

from collections import Counter

import pytest

from ecd.lab.fault_plan import KILLING, KILLS, LONGEST_S, Kind, draw_faults

ALL = tuple(Kind)


def test_faults_come_in_order_and_as_often_as_asked_for() -> None:
    faults = list(draw_faults(ALL, 3, 36_000, 5))
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(0 < fault.at_s < 36_000 for fault in faults)
    assert len(faults) == pytest.approx(7200, rel=0.05)
    assert {fault.kind for fault in faults} == set(Kind)
    assert all(0 < fault.for_s <= LONGEST_S for fault in faults)


def test_daemons_are_killed_early_and_as_often_as_anything_else() -> None:
    faults = list(draw_faults(ALL, 4, 36_000, 5))
    kills = [fault for fault in faults if fault.kind in KILLS]
    assert max(kill.at_s for kill in kills) <= KILLING * 36_000
    early = Counter(fault.kind for fault in faults if fault.at_s <= KILLING * 36_000)
    assert max(early.values()) < 1.25 * min(early.values())


def test_the_same_seed_draws_the_same() -> None:
    assert list(draw_faults(ALL, 5, 100, 5)) == list(draw_faults(ALL, 5, 100, 5))
    assert list(draw_faults(ALL, 5, 100, 5)) != list(draw_faults(ALL, 6, 100, 5))


def test_only_what_can_happen_is_drawn() -> None:
    assert {fault.kind for fault in draw_faults((Kind.CUT, Kind.KILL_EDGE), 7, 1000, 5)} == {
        Kind.CUT,
        Kind.KILL_EDGE,
    }
