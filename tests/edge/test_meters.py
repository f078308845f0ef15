"""What is measured at one cloud of several."""

from ecd.edge.meter import Meter
from ecd.edge.meters import Meters


class Cloud:
    """Anything that can be told apart."""


def test_each_cloud_has_its_own_steps_and_round_trips_and_the_draft_is_everybodys() -> None:
    near, far = Cloud(), Cloud()
    meters: Meters[Cloud] = Meters(Meter())
    for cloud, rtt_s, step_s in ((near, 0.01, 0.03), (far, 0.2, 0.1)):
        meters.told(cloud, rtt_s, 0.001, {"max_verify": 8})
        for _ in range(100):
            meters.stepped(cloud, step_s, 0)
    meters.drafted(0.005)
    for cloud, rtt_s, step_s in ((near, 0.01, 0.03), (far, 0.2, 0.1)):
        conditions = meters.at(cloud).conditions
        assert conditions is not None
        assert (conditions.rtt_s, conditions.draft_s) == (rtt_s, 0.005)
        assert abs(conditions.step_s - step_s) < 0.001
        assert meters.at(cloud).max_verify == 8


def test_a_new_cloud_is_taken_to_be_like_the_others_and_an_answer_at_none_too() -> None:
    meters: Meters[Cloud] = Meters(Meter(rtt_s=0.05, draft_s=0.005, step_s=0.03))
    new = Cloud()
    assert meters.at(None) is meters.every
    assert meters.at(new) == meters.every
    assert meters.at(new) is not meters.every
    meters.drafted(0.01)
    assert meters.at(new).draft_s == meters.every.draft_s
