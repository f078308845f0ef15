"""Which of several clouds an answer goes to, and when it leaves one, at times of our own."""

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from ecd.edge.fleet import QUIET_SLACK_S, TROUBLE_S, Fleet, Served, Standing

PING_S = 2.0
MODEL = Served("qwen", "vocabulary", "probes", {"bos": None, "end_of_generation": [7, 9]})
NEED = 1000


def fleet_of(*weights: float, seed: int = 1, model: Served = MODEL, context: int = 4096) -> Fleet:
    """Connected clouds a, b, ... that have just been heard of, at time 0."""
    fleet = Fleet(PING_S, random.Random(seed))
    for key, weight in zip("abcdefgh", weights, strict=False):
        fleet.add(key, weight)
        assert fleet.connected(key, model, context, 0.0, bound=False) is None
    return fleet


def load(running: int = 0, queued: int = 0, step_ms: float = 30.0) -> dict[str, Any]:
    return {"running": running, "queued": queued, "step_ms": step_ms}


def shares(fleet: Fleet, answers: int, now: float = 0.0) -> Counter[str | None]:
    """Where answers go that all come at once, before any load is told anew."""
    chosen: Counter[str | None] = Counter()
    for _ in range(answers):
        key = fleet.choose(NEED, now)
        chosen[key] += 1
        if key is not None:
            fleet.opened(key)
    return chosen


class TestChoice:
    def test_without_a_link_there_is_none(self) -> None:
        fleet = Fleet(PING_S, random.Random(1))
        assert fleet.choose(NEED, 0.0) is None
        fleet.add("a", 1)
        assert fleet.choose(NEED, 0.0) is None
        assert fleet.standing("a", 0.0) is Standing.DOWN
        assert fleet.best(0.0) is None

    def test_equal_clouds_share_equally_even_before_they_tell_their_load(self) -> None:
        assert shares(fleet_of(1, 1), 100) == {"a": 50, "b": 50}

    @pytest.mark.parametrize("seed", range(5))
    def test_shares_follow_the_weights(self, seed: int) -> None:
        chosen = shares(fleet_of(1, 2, 5, seed=seed), 800)
        for key, share in (("a", 100), ("b", 200), ("c", 500)):
            assert chosen[key] == pytest.approx(share, abs=40)

    def test_the_less_loaded_of_two_is_taken(self) -> None:
        fleet = fleet_of(1, 1)
        fleet.told("a", 0.02, load(running=9), 0.0)
        fleet.told("b", 0.02, load(running=4), 0.0)
        assert shares(fleet, 5) == {"b": 5}

    def test_a_faster_or_nearer_cloud_gets_more(self) -> None:
        fleet = fleet_of(1, 1)
        fleet.told("a", 0.02, load(step_ms=30), 0.0)
        fleet.told("b", 0.02, load(step_ms=150), 0.0)
        chosen = shares(fleet, 80)
        assert chosen["a"] == pytest.approx(60, abs=2), "(20 + 30 + 10) ms to (20 + 150 + 10)"
        fleet.told("a", 0.2, load(), 0.0)
        fleet.told("b", 0.02, load(), 0.0)
        chosen = shares(fleet, 80)
        assert chosen["b"] == pytest.approx(64, abs=2), "(200 + 30 + 10) ms to (20 + 30 + 10)"

    def test_a_new_load_takes_the_place_of_what_was_sent_meanwhile(self) -> None:
        fleet = fleet_of(1, 1)
        fleet.told("a", 0.02, load(running=3), 0.0)
        assert shares(fleet, 3) == {"b": 3}
        fleet.told("b", 0.02, load(running=0), 0.0)
        assert fleet.choose(NEED, 0.0) == "b"

    def test_the_same_load_again_is_not_a_new_one(self) -> None:
        fleet, told = fleet_of(1, 1), load()
        for _ in range(10):
            fleet.told("a", 0.02, told, 0.0)
            fleet.told("b", 0.02, told, 0.0)
            shares(fleet, 1)
        assert [fleet.members[key].opened for key in "ab"] == [5, 5]

    def test_a_cloud_where_sessions_wait_comes_last_whatever_it_costs(self) -> None:
        fleet = fleet_of(100, 1)
        fleet.told("a", 0.001, load(queued=1, step_ms=1), 0.0)
        fleet.told("b", 0.3, load(running=50, step_ms=200), 0.0)
        assert fleet.choose(NEED, 0.0) == "b"
        fleet.told("b", 0.3, load(queued=2), 0.0)
        assert fleet.choose(NEED, 0.0) == "a"

    def test_what_does_not_fit_a_cloud_goes_to_one_that_it_fits(self) -> None:
        fleet = fleet_of(1, 1, context=NEED - 1)
        assert fleet.choose(NEED, 0.0) is None
        assert fleet.max_context == NEED - 1
        assert fleet.connected("b", MODEL, NEED, 0.0, bound=False) is None
        assert shares(fleet, 5) == {"b": 5}
        fleet.closed("b")
        assert fleet.max_context == NEED, "it may come back"

    @pytest.mark.parametrize(
        ("share", "running", "chosen"),
        [
            (1.0, 0, "b"),
            (1.0, 4, "b"),
            (1.0, 6, "a"),
            (0.5, 2, "b"),
            (0.5, 4, "a"),
            (0.1, 3, "a"),
            (0.1, 2, "b"),
        ],
    )
    def test_a_cloud_that_holds_the_prompt_may_have_more_to_do(
        self, share: float, running: int, chosen: str
    ) -> None:
        """With it `a`, which holds nothing, has 3, and `b` may have less than 3 / (1 - share / 2)."""
        fleet = fleet_of(1, 1)
        fleet.told("a", 0.02, load(running=2), 0.0)
        fleet.told("b", 0.02, load(running=running), 0.0)
        assert fleet.choose(NEED, 0.0, {"b": share}) == chosen

    def test_a_cloud_that_holds_the_prompt_is_always_compared(self) -> None:
        for seed in range(30):
            assert fleet_of(*[1] * 8, seed=seed).choose(NEED, 0.0, {"c": 0.2, "f": 0.9}) == "f"

    def test_what_a_cloud_holds_does_not_make_up_for_a_wait_there(self) -> None:
        fleet = fleet_of(1, 1)
        fleet.told("a", 0.02, load(running=9), 0.0)
        fleet.told("b", 0.02, load(queued=1), 0.0)
        assert fleet.choose(NEED, 0.0, {"b": 1.0}) == "a"
        fleet.closed("a")
        assert fleet.choose(NEED, 0.0, {"a": 1.0}) == "b"

    def test_of_many_clouds_two_are_compared_and_none_takes_all(self) -> None:
        # Eight edges' worth of answers on loads that are told once: each has a view of its own.
        chosen: Counter[str | None] = Counter()
        for seed in range(400):
            fleet = fleet_of(1, 1, 1, 1, seed=seed)
            fleet.told("a", 0.02, load(running=0), 0.0)
            for key in "bcd":
                fleet.told(key, 0.02, load(running=5), 0.0)
            chosen[fleet.choose(NEED, 0.0)] += 1
        assert chosen["a"] == pytest.approx(200, abs=40), "half of the pairs have it"
        assert all(chosen[key] > 30 for key in "bcd")

    @pytest.mark.parametrize(
        "value", [None, "9", True, -1, math.nan, math.inf, 10**400, [1]], ids=lambda value: repr(value)[:9]
    )
    @pytest.mark.parametrize("name", ["running", "queued", "step_ms"])
    def test_nonsense_told_of_load_is_no_load(self, name: str, value: Any) -> None:
        fleet = fleet_of(1, 1)
        fleet.told("a", None, {name: value}, 0.0)
        assert shares(fleet, 10) == {"a": 5, "b": 5}


class TestStanding:
    def test_a_cloud_that_is_not_heard_of_is_quiet_and_ready_again_when_it_is(self) -> None:
        fleet = fleet_of(1, 1)
        limit = PING_S + QUIET_SLACK_S + 2 * 0.1
        fleet.told("a", 0.1, load(), 10.0)
        fleet.told("b", 0.1, load(running=99), 10.0 + limit)
        assert fleet.standing("a", 10.0 + limit - 0.01) is Standing.READY
        assert fleet.standing("a", 10.0 + limit + 0.01) is Standing.QUIET
        assert fleet.choose(NEED, 10.0 + limit + 0.01) == "b"
        fleet.told("a", 0.1, load(), 13.0)
        assert fleet.choose(NEED, 13.0) == "a"

    def test_a_quiet_cloud_is_better_than_none(self) -> None:
        assert fleet_of(1).choose(NEED, 100.0) == "a"

    def test_a_cloud_in_trouble_is_spared_for_a_while(self) -> None:
        fleet = fleet_of(1, 1)
        fleet.told("b", 0.02, load(running=99), 0.0)
        fleet.troubled("a", 1.0)
        assert fleet.standing("a", 1.0) is Standing.TROUBLED
        assert fleet.choose(NEED, 1.0) == "b"
        assert fleet.elsewhere("b", NEED, 1.0) is None
        fleet.troubled("b", 1.0)
        assert fleet.choose(NEED, 1.0) in ("a", "b"), "better than none"
        assert fleet.choose(NEED, 1.0 + TROUBLE_S) == "a"

    def test_a_draining_or_leaving_cloud_gets_nothing_new(self) -> None:
        fleet = fleet_of(1, 1)
        fleet.draining("a")
        assert shares(fleet, 5) == {"b": 5}
        fleet.leave("b")
        assert fleet.choose(NEED, 0.0) is None
        fleet.add("b", 1)
        assert fleet.choose(NEED, 0.0) == "b"

    def test_a_new_connection_is_a_new_start(self) -> None:
        fleet = fleet_of(1)
        fleet.draining("a")
        fleet.troubled("a", 0.0)
        fleet.closed("a")
        assert fleet.standing("a", 0.0) is Standing.DOWN
        assert fleet.connected("a", MODEL, 4096, 50.0, bound=True) is None
        assert fleet.standing("a", 50.0) is Standing.READY

    def test_the_best_is_told_of_first(self) -> None:
        fleet = fleet_of(1, 1, 1)
        fleet.told("a", 0.02, load(running=0), 0.0)
        fleet.told("b", 0.02, load(running=1), 0.0)
        fleet.told("c", 0.02, load(running=2), 0.0)
        assert fleet.best(0.0) == "a"
        fleet.draining("a")
        assert fleet.best(0.0) == "b"
        fleet.closed("b")
        fleet.closed("c")
        assert fleet.best(0.0) == "a"


class TestMovingOn:
    @pytest.mark.parametrize("how", ["draining", "leave"])
    def test_answers_leave_a_cloud_that_goes(self, how: str) -> None:
        fleet = fleet_of(1, 1)
        assert fleet.successor("a", NEED, 0.0) is None
        getattr(fleet, how)("a")
        assert fleet.successor("a", NEED, 0.0) == "b"

    def test_answers_leave_a_quiet_cloud_for_one_that_speaks(self) -> None:
        fleet = fleet_of(1, 1)
        fleet.told("b", 0.02, load(), 10.0)
        assert fleet.successor("a", NEED, 10.0) == "b"
        assert fleet.successor("b", NEED, 10.0) is None

    def test_they_stay_where_nobody_speaks(self) -> None:
        # It is the edge that slept, or its own network that is down.
        assert fleet_of(1, 1).successor("a", NEED, 100.0) is None

    @pytest.mark.parametrize("other", ["full", "troubled", "small", "down", "draining"])
    def test_they_stay_while_the_other_cloud_would_let_them_wait(self, other: str) -> None:
        fleet = fleet_of(1, 1)
        fleet.draining("a")
        match other:
            case "full":
                fleet.told("b", 0.02, load(queued=1), 0.0)
            case "troubled":
                fleet.troubled("b", 0.0)
            case "small":
                assert fleet.connected("b", MODEL, NEED - 1, 0.0, bound=True) is None
            case "down":
                fleet.closed("b")
            case "draining":
                fleet.draining("b")
        assert fleet.successor("a", NEED, 0.0) is None

    def test_trouble_alone_moves_nobody(self) -> None:
        fleet = fleet_of(1, 1)
        fleet.troubled("a", 0.0)
        assert fleet.successor("a", NEED, 0.0) is None


class TestModel:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"name": "llama"}, "'llama', and this edge's clouds serve 'qwen'"),
            ({"vocabulary": "x"}, "another vocabulary"),
            ({"probes": "x"}, "another vocabulary"),
            ({"special": {"bos": None, "end_of_generation": [7]}}, "other ids that end an answer"),
        ],
    )
    def test_a_cloud_of_another_model_is_left_out(self, changes: dict[str, Any], named: str) -> None:
        fleet = fleet_of(1)
        fleet.add("b", 1)
        reason = fleet.connected("b", replace(MODEL, **changes), 8192, 0.0, bound=False)
        assert reason is not None
        assert named in reason
        assert fleet.standing("b", 0.0) is Standing.DOWN
        assert shares(fleet, 5) == {"a": 5}
        assert fleet.max_context == 4096

    def test_no_answer_goes_on_from_another_models_tokens(self) -> None:
        fleet = fleet_of(1)
        fleet.closed("a")
        other = replace(MODEL, name="llama")
        assert fleet.connected("a", other, 4096, 0.0, bound=True) is not None
        assert fleet.choose(NEED, 0.0) is None
        assert fleet.connected("a", MODEL, 4096, 0.0, bound=True) is None

    def test_when_nothing_depends_on_it_the_next_cloud_decides_anew(self) -> None:
        fleet = fleet_of(1, 1)
        other = replace(MODEL, name="llama")
        fleet.closed("a")
        assert fleet.connected("a", other, 4096, 0.0, bound=False) is not None, "b still serves the first"
        fleet.closed("b")
        assert fleet.connected("a", other, 2048, 0.0, bound=False) is None
        assert fleet.max_context == 2048
        assert fleet.connected("b", MODEL, 4096, 0.0, bound=False) is not None

    def test_what_is_served_is_read_from_welcome(self) -> None:
        fingerprint = {
            "vocabulary": "v",
            "probes": "p",
            "special": {"bos": 1},
            "tokenizer": "bpe",
            "n_vocab": 9,
        }
        assert Served.of({"name": "m", "context_train": 5}, fingerprint) == Served("m", "v", "p", {"bos": 1})
        assert Served.of({}, fingerprint).name == ""
