"""Faults as they are drawn."""

from collections import Counter

import pytest

from ecd.lab.fault_plan import KILLING, KILLS, LONGEST_S, Kind, draw_faults


def test_faults_come_in_order_and_as_often_as_asked_for() -> None:
    faults = list(draw_faults(3, 36_000, 5))
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(0 < fault.at_s < 36_000 for fault in faults)
    assert len(faults) == pytest.approx(7200, rel=0.05)
    assert {fault.kind for fault in faults} == set(Kind)
    assert all(0 < fault.for_s <= LONGEST_S for fault in faults)


def test_daemons_are_killed_early_and_as_often_as_anything_else() -> None:
    faults = list(draw_faults(4, 36_000, 5))
    kills = [fault for fault in faults if fault.kind in KILLS]
    assert max(kill.at_s for kill in kills) <= KILLING * 36_000
    early = Counter(fault.kind for fault in faults if fault.at_s <= KILLING * 36_000)
    assert max(early.values()) < 1.25 * min(early.values())


def test_the_same_seed_draws_the_same() -> None:
    assert list(draw_faults(5, 100, 5)) == list(draw_faults(5, 100, 5)) != list(draw_faults(6, 100, 5))
