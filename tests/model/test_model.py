"""Edge, cloud and link as one model: whatever is done to them, the invariants of docs/PROTOCOL.md hold.

Hypothesis chooses what happens: bytes that arrive or do not, drafts and steps that take their time, cuts,
silence, restarts of either side, lost engines, and peers that lie. At the end all is left alone, and every
answer must come to its end.
"""

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ecd.edge.request import Request
from ecd.errors import Code
from ecd.wire.connection import Connection, Role, Settings
from ecd.wire.messages import Message
from tests.model.choices import GARBAGE, HOSTILE, HOSTILE_DRAFTS, LIES, MAX_AHEADS, REQUESTS, frame
from tests.model.cloud import FINGERPRINT, Cloud
from tests.model.edge import Edge
from tests.model.wire import End, Wire
from tests.toy import guessed

MAX_ANSWERS = 5
ALL = 1 << 30
# Turns in which everything must have come to its end; most take a few hundred.
TURNS = 20_000


class System(RuleBasedStateMachine):
    """One edge with up to MAX_ANSWERS answers in its life, one cloud, and who else connects to it."""

    def __init__(self) -> None:
        super().__init__()
        self.begin_with(0, "near", (20, 8))

    def begin_with(self, seed: int, drafter: str, of_cloud: tuple[int, int]) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.drafter, self.cloud_settings = drafter, of_cloud
        self.cloud = Cloud(*of_cloud)
        self.edge = self._new_edge()

    @initialize(
        seed=st.integers(0, 1 << 30),
        drafter=st.sampled_from(["near", "near", "near", "wrong", "random", "runs", "late"]),
        max_ahead=MAX_AHEADS,
        max_verify=st.sampled_from([0, 4, 8, 8]),
        requests=st.lists(REQUESTS, min_size=1, max_size=3),
    )
    def begin(
        self, seed: int, drafter: str, max_ahead: int, max_verify: int, requests: list[Request]
    ) -> None:
        self.begin_with(seed, drafter, (max_ahead, max_verify))
        self.connect()
        for request in requests:
            self.ask(request)

    def _new_edge(self) -> Edge:
        return Edge(lambda task: guessed(task, self.drafter, self.rng))

    # -- what users do

    @precondition(lambda self: len(self.edge.answers) < MAX_ANSWERS)
    @rule(request=REQUESTS)
    def ask(self, request: Request) -> None:
        self.edge.ask(request, self.now)

    @precondition(lambda self: self.edge.live)
    @rule(which=st.integers(0, 9), all_of_them=st.booleans())
    def users_leave(self, which: int, all_of_them: bool) -> None:
        """One cancels, or the edge is started again and its answers are nobody's any more."""
        if all_of_them:
            wire, self.edge = self.edge.wire, self._new_edge()
            if wire is not None:
                wire.cut()
                wire.edge.gone = True
        else:
            self.edge.cancel(self.edge.live[which % len(self.edge.live)])

    # -- what takes time

    @rule(count=st.integers(1, 120) | st.just(ALL), up=st.booleans())
    def bytes_arrive(self, count: int, up: bool) -> None:
        wire = self.edge.wire
        if wire is not None:
            wire.deliver(wire.cloud if up else wire.edge, count, self.now)

    @precondition(lambda self: self._old_wires())
    @rule(count=st.integers(1, 120) | st.just(ALL))
    def old_bytes_arrive(self, count: int) -> None:
        """On connections that their edge has given up, or that others made."""
        for wire in self._old_wires():
            wire.deliver(wire.cloud, count, self.now)

    def _old_wires(self) -> list[Wire]:
        return [wire for wire in self.cloud.wires if wire is not self.edge.wire]

    @rule(goes_on=st.booleans())
    def the_engine_is_ready(self, goes_on: bool) -> None:
        if not self.cloud.end_step(self.now) or goes_on:
            self.cloud.begin_step(self.now)

    @rule(goes_on=st.booleans())
    def the_drafter_is_ready(self, goes_on: bool) -> None:
        if not self.edge.end_draft(self.now) or goes_on:
            self.edge.begin_draft(self.now)

    @rule()
    def the_edge_steers(self) -> None:
        self.edge.steer(self.now)

    @rule(seconds=st.sampled_from([0.001, 0.005, 0.02, 0.1, 0.5, 2.5, 7.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._timers()

    @rule(turns=st.integers(1, 40))
    def go_on(self, turns: int) -> None:
        """Nothing goes wrong for a while."""
        for _ in range(turns):
            self._turn()
            self.now += 0.005

    # Hypothesis chooses among rules alike, and most of a life is not spent on faults.
    go_on_again = rule(turns=st.integers(20, 60))(lambda self, turns: self.go_on(turns))
    go_on_for_long = rule(turns=st.integers(50, 200))(lambda self, turns: self.go_on(turns))

    # -- what goes wrong

    @rule()
    def connect(self) -> None:
        if self.edge.wire is None:
            connection = Connection(Settings(Role.EDGE, "edge", FINGERPRINT), self.now)
            self.edge.wire = self._wire(connection, self.edge)

    @rule(arrives=st.integers(0, 200), edge_first=st.booleans())
    def cut(self, arrives: int, edge_first: bool) -> None:
        """At any byte; who does not find out at once does so later."""
        wire = self.edge.wire
        if wire is not None:
            wire.deliver(wire.edge, arrives, self.now)
            wire.deliver(wire.cloud, arrives, self.now)
            wire.cut()
            wire.lose(wire.edge if edge_first else wire.cloud)

    @precondition(lambda self: self.edge.wire is not None)
    @rule()
    def half_open(self) -> None:
        """All is lost, and only the silence tells."""
        wire = self.edge.wire
        wire.cut()
        wire.swallows, wire.edge.ended, wire.cloud.ended = True, False, False

    @rule(max_ahead=MAX_AHEADS)
    def restart_the_cloud(self, max_ahead: int) -> None:
        for wire in list(self.cloud.wires):
            wire.cut()
            wire.cloud.gone = True
        self.cloud_settings = max_ahead, self.cloud_settings[1]
        self.cloud = Cloud(*self.cloud_settings)

    @rule(drain=st.booleans())
    def the_engine_is_lost_or_the_cloud_drains(self, drain: bool) -> None:
        if drain:
            self.cloud.drain()
        else:
            self.cloud.end_step(self.now, lost=True)

    # -- who lies

    @rule(data=HOSTILE_DRAFTS.map(frame) | GARBAGE)
    def the_edge_hints_nonsense(self, data: bytes) -> None:
        if self.edge.wire is not None:
            self._inject(self.edge.wire, self.edge.wire.cloud, data)

    @rule(data=GARBAGE | LIES.map(frame))
    def the_cloud_lies(self, data: bytes) -> None:
        if self.edge.wire is not None:
            self._inject(self.edge.wire, self.edge.wire.edge, data)

    @precondition(lambda self: len(self.cloud.wires) < 4)
    @rule(messages=st.lists(HOSTILE, max_size=6), garbage=st.binary(max_size=20), bytewise=st.booleans())
    def a_stranger_connects(self, messages: list[Message], garbage: bytes, bytewise: bool) -> None:
        """With a true handshake, and then with anything; nobody reads what it is told."""
        wire = self._wire(Connection(Settings(Role.EDGE, "stranger", FINGERPRINT), self.now), None)
        wire.flush(wire.edge)
        self._inject(wire, wire.cloud, b"".join(map(frame, messages)) + garbage)
        while wire.cloud.inbox and wire.deliver(wire.cloud, 7 if bytewise else ALL, self.now):
            pass

    @staticmethod
    def _inject(wire: Wire, end: End, data: bytes) -> None:
        """Behind whole frames, as a peer would."""
        wire.flush(wire.other(end))
        if not (wire.swallows or end.ended):
            wire.tampered = True
            end.inbox += data

    # -- what always holds

    @invariant()
    def all_is_well(self) -> None:
        self.cloud.check()
        self.edge.check()
        self._check_sessions()
        for asked in self.edge.answers:
            match asked.error:
                case Code.ENGINE_RESTARTED:
                    assert asked.engine_losses > 3
                case Code.BUSY:
                    assert not asked.emitted
                case other:
                    assert other in (None, Code.CANCELLED)

    def _check_sessions(self) -> None:
        """The cloud is never behind what its edge knows, and has the same text."""
        for asked in self.edge.live:
            g = asked.generation
            key = self.cloud.by_address.get((self.edge.wire, g.stream)) if self.edge.wire else None
            session = None if key is None else self.cloud.batcher.get(key)
            if session is not None:
                assert session.tokens[: len(g.tokens)] == g.tokens
                known = session.tokens[len(g.request.prompt) :]
                assert known == asked.expected[0][: len(known)]

    # -- time

    def _wire(self, edge: Connection, owner: Edge | None) -> Wire:
        cloud = self.cloud
        wire = Wire(
            End(edge, lambda wire, event: owner.on_event(wire, event, self.now) if owner else None),
            End(cloud.accept(self.now), lambda wire, event: cloud.on_event(wire, event, self.now)),
        )
        cloud.wires.append(wire)
        return wire

    def _timers(self) -> None:
        """Whatever is due is done. An edge that was restarted has no say any more."""
        for wire in [*self.cloud.wires, *([self.edge.wire] if self.edge.wire else [])]:
            for end in (wire.edge, wire.cloud):
                while not end.gone and (due := end.connection.next_timer()) is not None and due <= self.now:
                    wire.tell(end, end.connection.timeout(self.now))
                    wire.flush(end)
        self.edge.tend(self.now)
        self.cloud.wires = [wire for wire in self.cloud.wires if not wire.cloud.gone]

    def _turn(self) -> bool:
        """Everybody does what there is to do; whether anything was done."""
        self._timers()
        if self.edge.wire is None:
            self.connect()
        done = False
        for wire in list(self.cloud.wires):
            done |= wire.deliver(wire.cloud, ALL, self.now)
        if self.edge.wire is not None:
            done |= self.edge.wire.deliver(self.edge.wire.edge, ALL, self.now)
        self.edge.steer(self.now)
        done |= self.edge.begin_draft(self.now) or self.edge.end_draft(self.now)
        due = self.cloud.step_due
        done |= (
            self.cloud.begin_step(self.now)
            if due is None
            else due <= self.now and self.cloud.end_step(self.now)
        )
        return done

    def _next_timer(self) -> float:
        wires = {*self.cloud.wires, *([self.edge.wire] if self.edge.wire else [])}
        due = [
            *(end.connection.next_timer() for w in wires for end in (w.edge, w.cloud) if not end.gone),
            *(asked.generation.next_timer() for asked in self.edge.live),
            self.cloud.batcher.next_timer() if self.cloud.step_due is None else self.cloud.step_due,
            self.now + 0.25,
        ]
        return max(self.now + 1e-3, min(when for when in due if when is not None))

    def teardown(self) -> None:
        """Left alone, every answer ends, and then nothing of it is left anywhere."""
        for _ in range(TURNS):
            self.all_is_well()
            alone = all(wire is self.edge.wire for wire in self.cloud.wires)
            if not self.edge.live and not self.cloud.by_key and alone:
                break
            if self.cloud.draining and not self.cloud.by_key:
                self.restart_the_cloud(*self.cloud_settings[:1])
            self.now = self.now + 0.005 if self._turn() else self._next_timer()
        else:
            raise AssertionError(f"at a standstill: {[asked.generation for asked in self.edge.live]}")
        assert not self.cloud.batcher.running
        assert not self.cloud.batcher.queue
        assert all(asked.over for asked in self.edge.answers)


LIVES = settings(
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_whatever_happens_the_text_is_the_targets_and_nothing_is_left_behind() -> None:
    run_state_machine_as_test(System, settings=settings(LIVES, max_examples=120))


@pytest.mark.large
def test_the_same_in_many_more_lives() -> None:
    """Twenty minutes."""
    run_state_machine_as_test(System, settings=settings(LIVES, max_examples=20_000))
