"""Who may come in: counts by address and in all, whatever the order of coming and going."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.cloud.admission import Admission, source_of


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("?", "?"),
    ],
)
def test_an_address_is_what_one_customer_has(host: str, source: str) -> None:
    assert source_of(host) == source


def test_one_address_is_refused_while_others_come_in() -> None:
    admission = Admission(total=10, per_address=2)
    assert [admission.enter("a") for _ in range(2)] == [None, None]
    assert "a has 2 connections already (`connections.per_address`)" in str(admission.enter("a"))
    assert admission.enter("b") is None
    admission.leave("a")
    assert admission.enter("a") is None


def test_nobody_comes_in_when_all_places_are_taken() -> None:
    admission = Admission(total=2, per_address=2)
    assert [admission.enter(source) for source in "ab"] == [None, None]
    assert "there are 2 connections already (`connections.total`)" in str(admission.enter("c"))
    assert admission.refused == 1
    admission.leave("b")
    assert admission.enter("c") is None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=200))
def test_counts_are_those_that_are_in_and_nothing_is_kept_of_those_that_left(
    steps: list[tuple[bool, str]],
) -> None:
    admission, there = Admission(total=5, per_address=3), Counter[str]()
    for comes, source in steps:
        if comes:
            let_in = admission.enter(source) is None
            assert let_in == (there.total() < 5 and there[source] < 3)
            there[source] += let_in
        elif there[source]:
            admission.leave(source)
            there[source] -= 1
        assert (admission.held, admission.by_source) == (there.total(), there)
    for source in list(there.elements()):
        admission.leave(source)
    assert not +admission.by_source
    assert set(admission.by_source) <= set("abc")
