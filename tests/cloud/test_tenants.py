"""Tenants: what exceeds a limit is refused or held back, with a code, and concerns nobody else."""

import pytest

from ecd.cloud.batcher import Batcher
from ecd.cloud.session import Session, Vocabulary
from ecd.cloud.tenants import Tenant, Tenants
from ecd.cloud.verifier import Capacity, Judged, StepResult
from ecd.errors import Code, EcdError, LimitExceeded, Overloaded
from ecd.sampling import Verdict
from ecd.trust.settings import NO_LIMITS, Limits
from ecd.wire.messages import Draft, Open, Pace


def tenant(**limits: float | None) -> Tenant:
    return Tenant.of("berlin", NO_LIMITS.but(Limits(**limits)), 0.0)


def refused(subject: Tenant, prompt_tokens: int = 1) -> EcdError:
    with pytest.raises(EcdError) as error:
        subject.check_open(prompt_tokens)
    assert "'berlin' allows" in str(error.value)
    return error.value


def test_one_session_too_many_may_come_again_when_another_has_ended() -> None:
    subject = tenant(sessions=2)
    for _ in range(2):
        subject.check_open(1)
        subject.opened()
    # An answer that is opened again after a lost link finds its old session still there: it comes back.
    error = refused(subject)
    assert isinstance(error, Overloaded)
    assert error.code is Code.BUSY
    subject.closed()
    subject.check_open(1)
    assert subject.refused == 1


def test_too_long_a_prompt_is_refused_for_good() -> None:
    subject = tenant(prompt_tokens=100)
    subject.check_open(100)
    error = refused(subject, 101)
    assert isinstance(error, LimitExceeded)
    assert error.code is Code.LIMIT


def test_too_many_hints_hold_its_reading_back() -> None:
    subject = tenant(hints_per_s=100)
    subject.charge(100, 0.0)
    assert subject.wait_s(0.0) == 0
    subject.charge(50, 0.0)
    assert subject.wait_s(0.0) == pytest.approx(0.5)
    assert subject.wait_s(0.6) == 0


def test_hints_that_are_verified_in_vain_stop_being_verified() -> None:
    subject = tenant(rejected_per_s=10)
    subject.reject(10, 0.0)
    assert subject.may_verify(0.0)
    subject.reject(1, 0.0)
    assert not subject.may_verify(0.05)
    assert subject.may_verify(0.11)
    assert subject.rejected == 11


def test_a_tenant_in_debt_gets_its_text_without_hints_and_its_neighbour_with_them() -> None:
    guest, berlin = tenant(rejected_per_s=2), tenant()
    batcher, now = Batcher(Capacity(4, 100), 4, 4), 0.0
    for key, owner in ((1, guest), (2, berlin)):
        request = Open(1, None, 0, (1, 2, 3, 4), (), {}, 50, (), Pace(0, 1))
        session = Session.of(request, Vocabulary(50, frozenset(), lambda token: b"x"), 8, now)
        session.tenant = owner
        batcher.add(key, session)

    def step(now: float) -> list[int]:
        """Both sessions are sent four hints, all of them wrong; how many of each one's are verified."""
        for session in batcher.running.values():
            seen = len(session.tokens)
            session.hint(Draft(1, seen, seen, (9, 9, 9, 9)))
        verified = {work.key: len(work.hints) for work in batcher.plan(now)}
        judged = {key: Judged(Verdict((7,), 0), count) for key, count in verified.items()}
        batcher.apply(StepResult(judged, {}, 2, 2), 0.01, now)
        return [verified[1], verified[2]]

    step(now)  # reads the prompts
    both = step(now)
    assert both[0] == both[1] > 2
    held_back = step(now + 0.01)
    assert held_back[0] == 0
    # It is not for ever.
    assert step(now + 2.0)[0] > 0
    assert guest.rejected > 0


def test_what_the_cloud_holds_for_it_is_bounded() -> None:
    subject = tenant(bytes_in_flight=1 << 20)
    subject.check_held(1 << 20)
    with pytest.raises(
        LimitExceeded, match="allows 1048576 bytes in flight and its connections hold 1048577"
    ):
        subject.check_held((1 << 20) + 1)


def test_without_limits_there_are_none() -> None:
    subject = tenant()
    for _ in range(1000):
        subject.check_open(1 << 20)
        subject.opened()
    subject.charge(1 << 40, 0.0)
    subject.reject(1 << 40, 0.0)
    subject.check_held(1 << 40)
    assert subject.wait_s(0.0) == 0
    assert subject.may_verify(0.0)


def test_a_token_s_own_limits_go_over_those_of_all() -> None:
    tenants = Tenants(Limits(sessions=4, hints_per_s=100))
    guest = tenants.enter("guest", Limits(sessions=1, rejected_per_s=None), 0.0)
    assert (guest.limits.sessions, guest.limits.hints_per_s, guest.limits.rejected_per_s) == (1, 100, None)
    assert tenants.enter("berlin", Limits(), 0.0).limits == tenants.limits


def test_connections_of_one_token_share_what_it_may_use_and_others_have_their_own() -> None:
    tenants = Tenants(Limits(hints_per_s=100))
    first, second = (tenants.enter("berlin", Limits(), 0.0) for _ in range(2))
    assert first is second
    first.charge(200, 0.0)
    assert second.wait_s(0.0) > 0
    assert tenants.enter("paris", Limits(), 0.0).wait_s(0.0) == 0


def test_a_debt_outlives_its_connection_and_new_limits_hold_at_once() -> None:
    tenants = Tenants(Limits(hints_per_s=100))
    tenants.enter("berlin", Limits(), 0.0).charge(200, 0.0)
    assert tenants.enter("berlin", Limits(), 0.1).wait_s(0.1) == pytest.approx(0.9)
    changed = tenants.enter("berlin", Limits(hints_per_s=1000), 0.1)
    changed.charge(1500, 0.1)
    assert changed.wait_s(0.1) == pytest.approx(0.5)


def test_stats_tell_each_tenant_by_name() -> None:
    tenants = Tenants(Limits())
    subject = tenants.enter("berlin", Limits(), 0.0)
    subject.opened()
    subject.charge(7, 0.0)
    subject.reject(3, 0.0)
    assert tenants.stats() == {
        "berlin": {"sessions": 1, "charged_hints": 7, "rejected_hints": 3, "refused": 0}
    }
