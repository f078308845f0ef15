"""The connection as conversations: bytes and time in, events and frames out, no socket anywhere."""

import itertools
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ecd.errors import AuthError, Code
from ecd.wire.connection import (
    ALLOWED,
    FEATURES,
    FRAME_S,
    HANDSHAKE_FRAME_BYTES,
    HANDSHAKE_FRAMES,
    HANDSHAKE_ITEMS,
    MAJOR,
    MAX_PONG_BYTES,
    MAX_REASON_CHARACTERS,
    MAX_STREAM,
    MAX_UNANSWERED_PINGS,
    MINOR,
    PRIORITY,
    Closed,
    Connected,
    Connection,
    Event,
    Outgoing,
    PeerDraining,
    Priority,
    Received,
    Role,
    Rtt,
    Settings,
    State,
)
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.frames import LENGTH_BYTES, MAX_FRAME_BYTES, FrameReader, encode_frame
from ecd.wire.messages import (
    BY_TYPE,
    Audit,
    Commit,
    Credit,
    Draft,
    Error,
    Finish,
    Goaway,
    Hello,
    Kv,
    KvOp,
    Message,
    Open,
    Origin,
    Pace,
    Ping,
    Pong,
    Reset,
    Tokens,
    Welcome,
    from_fields,
    to_fields,
)

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
EDGE = Settings(Role.EDGE, "edge under test", FINGERPRINT)
CLOUD = Settings(
    Role.CLOUD, "cloud under test", FINGERPRINT, limits={"max_streams": 2}, model={"name": "big"}
)
HELLO = Hello(0, MAJOR, MINOR, FEATURES, None, {}, FINGERPRINT.to_map(), "a test")
WELCOME = Welcome(0, MAJOR, MINOR, FEATURES, {"max_ahead": 8}, FINGERPRINT.to_map(), {}, "a test")
BYE = Error(0, Code.INTERNAL, "bye")


def knows_secret(shown: bytes | None) -> str:
    """Whose token it is."""
    if shown != b"secret":
        raise AuthError("not this one")
    return "berlin"


def an_open(stream: int) -> Open:
    return Open(stream, None, 0, (1, 2, 3), (), {"rule": "greedy"}, 16, (), Pace(0, 1))


def a_draft(stream: int) -> Draft:
    return Draft(stream, 3, 3, (4, 5))


def tokens(stream: int, finish: Finish = Finish.NONE) -> Tokens:
    return Tokens(stream, 3, (4,), 1, 1, 30, finish)


def kv(stream: int) -> Kv:
    return Kv(stream, KvOp.DROP, b"m", 3, 3, 0, 1, "", 0, b"")


SAMPLES: dict[type[Message], Message] = {
    type(message): message
    for message in (
        HELLO,
        WELCOME,
        an_open(2),
        a_draft(1),
        tokens(1),
        Commit(1, 3, (4,), Origin.EDGE_CONFIDENT, 4),
        Audit(1, 3, b"\x01", 1),
        kv(1),
        Credit(1, 5),
        Ping(0, 5),
        Pong(0, 5, {}),
        Goaway(0, Code.DRAINING, "leaving"),
        Reset(1, Code.CANCELLED, "enough"),
        BYE,
    )
}


def frame(message: Message, width: int = 2) -> bytes:
    return encode_frame(to_fields(message, width))


def read(data: Iterable[Outgoing], width: int = 2) -> list[Message]:
    """What frames say."""
    reader = FrameReader()
    arrays = [fields for out in data for fields, _ in reader.feed(out.data)]
    return [message for fields in arrays if (message := from_fields(fields, width)) is not None]


class Talk:
    """One connection under test and the test as its peer, on a clock that the test moves."""

    def __init__(self, settings: Settings, width: int = 2):
        self.now = 0.0
        self.width = width
        self.connection = Connection(settings, self.now)

    def hear(self, *messages: Message) -> list[Event]:
        """The connection receives these, in one piece."""
        return self.connection.receive(b"".join(frame(m, self.width) for m in messages), self.now)

    def said(self) -> list[Message]:
        """What the connection has wanted to say since it was last asked."""
        return read(self.connection.output(), self.width)

    def after(self, seconds: float) -> list[Event]:
        """Time passes; what is due is done."""
        self.now += seconds
        return self.connection.timeout(self.now)


def connected(role: Role, *, streams: int = 1, **settings: Any) -> Talk:
    """A talk past the handshake with so many streams open, everything said until then forgotten."""
    talk = Talk(replace(EDGE if role is Role.EDGE else CLOUD, **settings))
    (event,) = talk.hear(WELCOME if role is Role.EDGE else HELLO)
    assert isinstance(event, Connected)
    for number in range(1, streams + 1):
        if role is Role.EDGE:
            assert talk.connection.new_stream() == number
        else:
            talk.hear(an_open(number))
    talk.said()
    return talk


def assert_failed(talk: Talk, events: list[Event], code: Code, words: str) -> None:
    """The connection has ended for this reason, said so once, and is silent from now on."""
    (closed,) = events
    assert isinstance(closed, Closed)
    assert closed.code is code
    assert words in closed.message
    assert talk.said() == [Error(0, code, closed.message)]
    assert_silent(talk)


def assert_silent(talk: Talk) -> None:
    connection = talk.connection
    assert connection.state is State.CLOSED
    assert connection.streams == set()
    assert talk.hear(HELLO, WELCOME, Ping(0, 1), BYE) == []
    assert connection.receive(b"\xff" * 16, talk.now) == []
    assert talk.after(1e6) == []
    assert connection.next_timer() is None
    assert connection.send(tokens(1)) == 0
    connection.drain("late")
    assert connection.close(Code.INTERNAL, "again") == []
    assert connection.lost("again") == []
    assert connection.output() == []


class TestHandshake:
    def test_edge_speaks_first_and_cloud_answers(self) -> None:
        edge, cloud = (
            Talk(replace(EDGE, token="secret", limits={"a": 1})),
            Talk(replace(CLOUD, identify=knows_secret)),
        )
        assert cloud.said() == []
        (hello,) = edge.said()
        assert hello == Hello(0, 1, 0, FEATURES, b"secret", {"a": 1}, FINGERPRINT.to_map(), "edge under test")
        assert cloud.hear(hello) == [Connected(hello)]
        welcome, ping = cloud.said()
        assert welcome == Welcome(
            0, 1, 0, FEATURES, {"max_streams": 2}, FINGERPRINT.to_map(), {"name": "big"}, "cloud under test"
        )
        assert edge.hear(welcome, ping) == [Connected(welcome)]
        assert edge.said() == [Ping(0, 1), Pong(0, 1, {})]
        assert (edge.connection.peer, cloud.connection.peer) == (welcome, hello)

    @pytest.mark.parametrize("major", [0, MAJOR + 1, 65535])
    def test_another_major_version_is_refused_by_the_cloud(self, major: int) -> None:
        talk = Talk(CLOUD)
        assert_failed(talk, talk.hear(replace(HELLO, major=major)), Code.VERSION, f"version {major} is not 1")

    def test_another_major_version_is_refused_by_the_edge(self) -> None:
        talk = Talk(EDGE)
        talk.said()
        assert_failed(talk, talk.hear(replace(WELCOME, major=2)), Code.VERSION, "version 2 is not 1")

    def test_a_wrong_version_counts_before_everything_else_that_is_wrong(self) -> None:
        talk = Talk(replace(CLOUD, identify=knows_secret))
        events = talk.hear(replace(HELLO, major=2, auth=b"no", fingerprint={}))
        assert_failed(talk, events, Code.VERSION, "same release")

    @pytest.mark.parametrize(("ours", "theirs"), [(MINOR, 0), (0, 9), (MINOR + 3, MINOR + 5)])
    def test_the_smaller_minor_version_is_agreed_on(
        self, ours: int, theirs: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ecd.wire.connection.MINOR", ours)
        talk = Talk(CLOUD)
        talk.hear(replace(HELLO, minor=theirs))
        welcome = talk.said()[0]
        assert isinstance(welcome, Welcome)
        assert welcome.minor == min(ours, theirs)

    @pytest.mark.parametrize(
        ("offered", "agreed"),
        [
            ((), ()),
            (("q",), ("q",)),
            (("later", "q", "q"), ("q",)),
            (("alternates", "later", "q"), ("q", "alternates")),
            ((*reversed(FEATURES), "later"), FEATURES),
            (("later",), ()),
        ],
    )
    def test_features_that_both_know_are_agreed_on(
        self, offered: tuple[str, ...], agreed: tuple[str, ...]
    ) -> None:
        talk = Talk(CLOUD)
        talk.hear(replace(HELLO, features=offered))
        welcome = talk.said()[0]
        assert isinstance(welcome, Welcome)
        assert welcome.features == agreed

    @pytest.mark.parametrize("auth", [None, b"", b"secre", b"secret ", b"SECRET", b"\xff"])
    def test_a_token_that_is_missing_or_wrong_is_refused(self, auth: bytes | None) -> None:
        talk = Talk(replace(CLOUD, identify=knows_secret))
        events = talk.hear(replace(HELLO, auth=auth))
        assert_failed(talk, events, Code.AUTH, "not this one")

    def test_a_wrong_token_learns_nothing_of_the_fingerprint(self) -> None:
        talk = Talk(replace(CLOUD, identify=knows_secret))
        events = talk.hear(replace(HELLO, auth=b"no", fingerprint=replace(FINGERPRINT, probes="x").to_map()))
        assert_failed(talk, events, Code.AUTH, "not this one")

    @pytest.mark.parametrize("given", [None, b"", b"any"])
    def test_a_token_that_nobody_asked_for_is_let_in(self, given: bytes | None) -> None:
        talk = Talk(CLOUD)
        hello = replace(HELLO, auth=given)
        assert talk.hear(hello) == [Connected(hello)]
        assert talk.connection.tenant == ""

    def test_the_right_token_says_whose_connection_it_is(self) -> None:
        talk = Talk(replace(CLOUD, identify=knows_secret))
        hello = replace(HELLO, auth=b"secret")
        assert talk.hear(hello) == [Connected(hello)]
        assert talk.connection.tenant == "berlin"

    @pytest.mark.parametrize("role", Role)
    def test_frames_of_unknown_types_do_not_keep_a_handshake_going(self, role: Role) -> None:
        talk = Talk(EDGE if role is Role.EDGE else CLOUD)
        talk.said()
        unknown = encode_frame([99, 0])
        assert talk.connection.receive(unknown * HANDSHAKE_FRAMES, talk.now) == []
        assert_failed(
            talk, talk.connection.receive(unknown, talk.now), Code.PROTOCOL, "no handshake among them"
        )

    @pytest.mark.parametrize("role", Role)
    def test_other_models_are_refused_naming_every_difference_edge_first(self, role: Role) -> None:
        other = Fingerprint(2000, "ab", {"bos": 7}, "spm", "bc")
        talk = Talk(EDGE if role is Role.EDGE else CLOUD)
        talk.said()
        message = replace(WELCOME if role is Role.EDGE else HELLO, fingerprint=other.to_map())
        events = talk.hear(message)
        words = (
            "vocabulary size (1000 against 2000); token that starts every prompt (id 1 against id 7); "
            "tokenizer behaviour (the same text gives different ids, such as 'Hello, world!  Two space'); "
            "tokenizer (bpe against spm). "
        )
        if role is Role.CLOUD:
            words = words.replace("1000 against 2000", "2000 against 1000").replace(
                "id 1 against id 7", "id 7 against id 1"
            )
            words = words.replace("bpe against spm", "spm against bpe")
        assert_failed(talk, events, Code.FINGERPRINT, words)

    def test_what_another_model_calls_itself_is_one_harmless_line(self) -> None:
        talk = Talk(EDGE)
        talk.said()
        other = replace(FINGERPRINT, n_vocab=1001, tokenizer="a\u202eb\u2028c")
        events = talk.hear(replace(WELCOME, fingerprint=other.to_map()))
        assert_failed(talk, events, Code.FINGERPRINT, "tokenizer (bpe against a?b?c)")

    @pytest.mark.parametrize("fingerprint", [{}, {"n_vocab": True}, {**FINGERPRINT.to_map(), "special": 1}])
    def test_a_broken_fingerprint_is_a_protocol_error(self, fingerprint: dict[str, Any]) -> None:
        talk = Talk(CLOUD)
        events = talk.hear(replace(HELLO, fingerprint=fingerprint))
        assert_failed(talk, events, Code.PROTOCOL, "a fingerprint needs")

    def test_an_error_from_the_cloud_ends_it_without_an_answer(self) -> None:
        talk = Talk(EDGE)
        talk.said()
        assert talk.hear(Error(0, Code.AUTH, "no token")) == [Closed(Code.AUTH, "no token")]
        assert_silent(talk)

    def test_nothing_may_be_sent_before_it_is_done(self) -> None:
        talk = Talk(EDGE)
        talk.said()
        assert talk.connection.send(an_open(talk.connection.new_stream())) == 0
        assert talk.said() == []

    @pytest.mark.parametrize("role", Role)
    def test_must_be_done_in_time_whatever_arrives_meanwhile(self, role: Role) -> None:
        talk = Talk(replace(EDGE if role is Role.EDGE else CLOUD, handshake_s=5.0))
        talk.said()
        assert talk.connection.next_timer() == 5.0
        assert talk.after(4.5) == []
        assert talk.connection.receive(encode_frame([99, 0]), talk.now) == []
        assert talk.connection.next_timer() == 5.0
        assert_failed(talk, talk.after(0.5), Code.TIMEOUT, "no handshake within 5 s")

    def test_closed_before_it_is_done_tells_the_peer(self) -> None:
        talk = Talk(CLOUD)
        assert_failed(talk, talk.connection.close(Code.DRAINING, "stopping"), Code.DRAINING, "stopping")

    @pytest.mark.parametrize("code", Code)
    def test_only_refusals_that_would_come_again_are_not_worth_a_retry(self, code: Code) -> None:
        assert Closed(code, "").retry == (code not in {Code.VERSION, Code.FINGERPRINT, Code.AUTH})


@pytest.mark.parametrize("kind", list(BY_TYPE.values()), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", [State.HANDSHAKE, State.OPEN], ids=lambda state: state.name)
@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
def test_a_message_is_taken_where_the_table_allows_it_and_nowhere_else(
    role: Role, state: State, kind: type[Message]
) -> None:
    if state is State.OPEN:
        talk = connected(role)
    else:
        talk = Talk(EDGE if role is Role.EDGE else CLOUD)
        talk.said()
    events = talk.hear(SAMPLES[kind])
    if kind not in ALLOWED[role, state]:
        words = f"{kind.__name__.upper()} is not allowed from this peer in state {state.name}"
        assert_failed(talk, events, Code.PROTOCOL, words)
    elif kind is Error:
        assert events == [Closed(Code.INTERNAL, "bye")]
        assert_silent(talk)
    else:
        assert talk.connection.state is State.OPEN


@pytest.mark.parametrize("message", SAMPLES.values(), ids=lambda message: type(message).__name__)
def test_a_message_on_the_wrong_kind_of_stream_ends_the_connection(message: Message) -> None:
    role = next(role for (role, _), kinds in ALLOWED.items() if type(message) in kinds)
    if isinstance(message, Credit):
        assert connected(role).hear(replace(message, stream=0)) == []
        return
    talk = (
        Talk(EDGE if role is Role.EDGE else CLOUD) if type(message) in {Hello, Welcome} else connected(role)
    )
    talk.said()
    wrong = 0 if message.stream else 1
    events = talk.hear(replace(message, stream=wrong))
    assert_failed(talk, events, Code.PROTOCOL, f"cannot travel on stream {wrong}")


class TestStreams:
    def test_are_numbered_by_the_edge_from_one_on(self) -> None:
        talk = connected(Role.EDGE, streams=0)
        assert [talk.connection.new_stream() for _ in range(3)] == [1, 2, 3]

    def test_carry_messages_with_their_size_on_the_wire(self) -> None:
        talk = connected(Role.CLOUD, streams=0)
        sent = [an_open(1), a_draft(1), Commit(1, 3, (4,), Origin.EDGE_OFFLINE, 4), kv(1), Credit(1, 5)]
        assert talk.hear(*sent) == [Received(message, len(frame(message))) for message in sent]

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_numbers_must_grow(self, number: int) -> None:
        talk = connected(Role.CLOUD, streams=0)
        talk.hear(an_open(3))
        assert_failed(talk, talk.hear(an_open(number)), Code.PROTOCOL, f"OPEN on stream {number} after 3")

    def test_numbers_may_leave_gaps_and_reach_31_bits(self) -> None:
        talk = connected(Role.CLOUD, streams=0)
        assert len(talk.hear(an_open(7), an_open(MAX_STREAM))) == 2
        assert talk.connection.streams == {7, MAX_STREAM}

    def test_numbers_beyond_31_bits_are_refused(self) -> None:
        talk = connected(Role.CLOUD, streams=0)
        assert_failed(talk, talk.hear(an_open(MAX_STREAM + 1)), Code.PROTOCOL, "numbers must grow")

    @pytest.mark.parametrize(
        ("role", "message"),
        [
            (Role.CLOUD, a_draft(2)),
            (Role.CLOUD, Reset(2, Code.CANCELLED, "")),
            (Role.CLOUD, kv(2)),
            (Role.CLOUD, Credit(2, 1)),
            (Role.EDGE, tokens(2)),
            (Role.EDGE, Reset(2, Code.BUSY, "")),
        ],
        ids=lambda value: getattr(value, "name", type(value).__name__),
    )
    def test_that_were_never_opened_carry_nothing(self, role: Role, message: Message) -> None:
        talk = connected(role, streams=1)
        assert_failed(talk, talk.hear(message), Code.PROTOCOL, "on stream 2, which was never opened")

    @pytest.mark.parametrize("message", [a_draft(1), kv(1), Credit(1, 1), Reset(1, Code.CANCELLED, "")])
    def test_that_have_ended_ignore_what_was_on_its_way(self, message: Message) -> None:
        talk = connected(Role.CLOUD)
        assert talk.connection.send(tokens(1, Finish.STOP)) == len(frame(tokens(1, Finish.STOP)))
        assert talk.hear(message) == []
        assert talk.connection.state is State.OPEN

    @pytest.mark.parametrize("end", [Reset(1, Code.CANCELLED, "enough"), tokens(1, Finish.LENGTH)])
    def test_end_for_the_sender_with_the_last_message(self, end: Message) -> None:
        talk = connected(Role.CLOUD if isinstance(end, Tokens) else Role.EDGE)
        assert talk.connection.send(end) == len(frame(end))
        assert talk.connection.send(end) == 0
        assert talk.said() == [end]
        assert talk.connection.streams == set()

    @pytest.mark.parametrize("end", [Reset(1, Code.ENGINE, "broken"), tokens(1, Finish.STOP)])
    def test_end_for_the_receiver_with_the_last_message(self, end: Tokens | Reset) -> None:
        talk = connected(Role.EDGE)
        assert talk.hear(end, tokens(1)) == [Received(end, len(frame(end)))]
        assert talk.connection.send(a_draft(1)) == 0
        assert talk.said() == []

    def test_beyond_the_limit_are_reset_and_the_connection_lives(self) -> None:
        talk = connected(Role.CLOUD, streams=2)
        assert talk.hear(an_open(3), a_draft(3), a_draft(1)) == [Received(a_draft(1), len(frame(a_draft(1))))]
        assert talk.said() == [Reset(3, Code.BUSY, "this connection already has 2 sessions")]
        talk.hear(Reset(1, Code.CANCELLED, "enough"))
        assert talk.hear(an_open(4)) == [Received(an_open(4), len(frame(an_open(4))))]

    def test_that_were_reset_as_too_many_have_used_up_their_number(self) -> None:
        talk = connected(Role.CLOUD, streams=2)
        talk.hear(an_open(3))
        talk.said()
        assert_failed(talk, talk.hear(an_open(3)), Code.PROTOCOL, "after 3")


class TestDrain:
    def test_is_told_once_and_ends_no_stream(self) -> None:
        talk = connected(Role.CLOUD)
        talk.connection.drain("going home")
        talk.connection.drain("going home")
        assert talk.said() == [Goaway(0, Code.DRAINING, "going home")]
        assert talk.connection.send(tokens(1)) > 0

    def test_resets_streams_opened_across_it(self) -> None:
        talk = connected(Role.CLOUD)
        talk.connection.drain("going home")
        talk.said()
        assert talk.hear(an_open(2), a_draft(2), a_draft(1)) == [Received(a_draft(1), len(frame(a_draft(1))))]
        (reset,) = talk.said()
        assert isinstance(reset, Reset)
        assert (reset.stream, reset.code) == (2, Code.DRAINING)

    def test_of_the_peer_is_an_event(self) -> None:
        talk = connected(Role.EDGE)
        assert talk.hear(Goaway(0, Code.DRAINING, "going home")) == [PeerDraining("going home")]
        assert talk.connection.peer_draining

    def test_asked_for_during_the_handshake_holds_after_it(self) -> None:
        talk = Talk(CLOUD)
        talk.connection.drain("going home")
        talk.hear(HELLO, an_open(1))
        said = talk.said()
        assert [type(m) for m in said[:3]] == [Welcome, Goaway, Ping]
        assert said[1] == Goaway(0, Code.DRAINING, "going home")
        assert [m.code for m in said if isinstance(m, Reset)] == [Code.DRAINING]


class TestEnd:
    def test_close_tells_the_peer_why(self) -> None:
        talk = connected(Role.CLOUD)
        assert_failed(talk, talk.connection.close(Code.SLOW_READER, "read!"), Code.SLOW_READER, "read!")

    def test_lost_tells_nobody(self) -> None:
        talk = connected(Role.EDGE)
        assert talk.connection.lost("cable cut") == [Closed(Code.UNAVAILABLE, "cable cut")]
        assert_silent(talk)

    def test_what_came_before_a_violation_counts_and_nothing_after_it(self) -> None:
        talk = connected(Role.CLOUD)
        events = talk.hear(a_draft(1), HELLO, a_draft(1))
        assert events[0] == Received(a_draft(1), len(frame(a_draft(1))))
        assert_failed(talk, events[1:], Code.PROTOCOL, "HELLO")

    def test_what_was_queued_before_a_close_is_still_said(self) -> None:
        talk = connected(Role.CLOUD)
        talk.connection.send(tokens(1))
        talk.connection.close(Code.DRAINING, "stopping")
        assert talk.said() == [tokens(1), Error(0, Code.DRAINING, "stopping")]


class TestKeepAlive:
    def test_pings_at_once_and_then_at_its_interval(self) -> None:
        talk = Talk(replace(CLOUD, ping_interval_s=2.0, silence_s=60.0))
        talk.hear(HELLO)
        assert talk.said()[1:] == [Ping(0, 1)]
        assert talk.connection.next_timer() == 2.0
        assert talk.after(1.9) == []
        assert talk.said() == []
        talk.after(0.1)
        assert talk.said() == [Ping(0, 2)]
        assert talk.connection.next_timer() == 4.0

    def test_answers_every_ping_with_its_cookie_and_the_load(self) -> None:
        talk = connected(Role.CLOUD)
        talk.connection.load = lambda: {"running": 3}
        assert talk.hear(Ping(0, 7), Ping(0, 2**64 - 1)) == []
        assert talk.said() == [Pong(0, 7, {"running": 3}), Pong(0, 2**64 - 1, {"running": 3})]

    def test_a_frame_that_drips_in_ends_the_connection_however_lively_it_is(self) -> None:
        talk = connected(Role.CLOUD, ping_interval_s=1000.0, silence_s=20.0)
        drops = iter(frame(replace(an_open(2), prompt=(7,) * 1000)))
        began = talk.now
        while talk.now < began + FRAME_S - 5:
            assert talk.connection.receive(bytes([next(drops)]), talk.now) == []
            assert talk.after(5) == []
        assert talk.connection.next_timer() == began + FRAME_S
        assert_failed(talk, talk.after(5), Code.TIMEOUT, "not complete within 60 s")

    def test_frames_that_are_cut_and_complete_may_follow_each_other_for_ever(self) -> None:
        talk = connected(Role.CLOUD, ping_interval_s=1000.0, silence_s=10.0)
        ping = frame(Ping(0, 1))
        talk.connection.receive(ping[:3], talk.now)
        for _ in range(100):
            talk.now += 5
            assert talk.connection.receive(ping[3:] + ping[:3], talk.now) == []
            assert talk.after(0) == []

    def test_silence_ends_the_connection_and_any_byte_breaks_it(self) -> None:
        talk = connected(Role.EDGE, ping_interval_s=100.0, silence_s=6.0)
        assert talk.after(5.9) == []
        talk.connection.receive(frame(Ping(0, 1))[:1], talk.now)
        assert talk.connection.next_timer() == pytest.approx(11.9)
        assert talk.after(5.9) == []
        assert_failed(talk, talk.after(0.2), Code.TIMEOUT, "silent for 6 s")

    def test_a_peer_that_was_not_listened_to_is_neither_silent_nor_late(self) -> None:
        talk = connected(Role.CLOUD, ping_interval_s=1000.0, silence_s=6.0)
        talk.connection.receive(frame(Ping(0, 1))[:3], talk.now)
        for _ in range(int(3 * FRAME_S / 5)):
            talk.now += 5.0
            talk.connection.not_heard(talk.now)
            assert talk.after(0.0) == []
        assert_failed(talk, talk.after(6.1), Code.TIMEOUT, "silent for 6 s")

    def test_smooths_the_round_trip_time_as_rfc_6298_does(self) -> None:
        talk = Talk(replace(CLOUD, ping_interval_s=10.0, silence_s=1000.0))
        talk.hear(HELLO)
        expected: list[tuple[float, float]] = []
        for cookie, rtt in enumerate((0.1, 0.2, 0.05, 0.05), 1):
            talk.now += rtt
            talk.hear(Pong(0, cookie, {"n": cookie}))
            if not expected:
                srtt, rttvar = rtt, rtt / 2
            else:
                rttvar = 0.75 * rttvar + 0.25 * abs(srtt - rtt)
                srtt = 0.875 * srtt + 0.125 * rtt
            expected.append((srtt, rttvar))
            rtt_state = talk.connection.rtt
            assert (rtt_state.smoothed_s, rtt_state.variation_s) == pytest.approx((srtt, rttvar))
            assert talk.connection.peer_load == {"n": cookie}
            talk.after(10.0)
        assert expected[1] == pytest.approx((0.1125, 0.0625))

    def test_rtt_starts_with_half_of_the_first_sample_as_variation(self) -> None:
        rtt = Rtt()
        assert rtt.smoothed_s is None
        rtt.sample(0.2)
        assert (rtt.smoothed_s, rtt.variation_s) == (0.2, 0.1)

    def test_ignores_a_pong_that_nobody_waits_for(self) -> None:
        talk = connected(Role.CLOUD)
        talk.now = 1.0
        assert talk.hear(Pong(0, 99, {"x": 1})) == []
        assert talk.connection.rtt.smoothed_s is None
        assert talk.connection.peer_load == {}
        talk.hear(Pong(0, 1, {}))
        assert talk.connection.rtt.smoothed_s == 1.0
        talk.now = 9.0
        talk.hear(Pong(0, 1, {}))
        assert talk.connection.rtt.smoothed_s == 1.0

    @pytest.mark.parametrize("role", Role)
    def test_a_pong_that_tells_too_much_ends_the_connection(self, role: Role) -> None:
        talk = connected(role)

        def pong(size: int) -> Pong:
            around = len(frame(Pong(0, 1, {"told": "x" * 4000}))) - 4000
            return Pong(0, 1, {"told": "x" * (size - around)})

        assert talk.hear(pong(MAX_PONG_BYTES)) == []
        assert talk.connection.peer_load == pong(MAX_PONG_BYTES).load
        told = talk.hear(pong(MAX_PONG_BYTES + 1))
        assert_failed(talk, told, Code.PROTOCOL, "a PONG of 4097 bytes is over the limit of 4096")

    def test_an_answered_ping_makes_older_ones_void(self) -> None:
        talk = connected(Role.CLOUD, silence_s=100.0)
        talk.after(2.0)
        talk.now = 2.5
        talk.hear(Pong(0, 2, {}))
        talk.now = 50.0
        talk.hear(Pong(0, 1, {}))
        assert talk.connection.rtt.smoothed_s == 0.5

    def test_remembers_only_the_last_unanswered_pings(self) -> None:
        talk = connected(Role.CLOUD, ping_interval_s=1.0, silence_s=1000.0)
        for _ in range(99):
            talk.after(1.0)
        assert talk.said()[-1] == Ping(0, 100)
        talk.hear(Pong(0, 100 - MAX_UNANSWERED_PINGS, {}))
        assert talk.connection.rtt.smoothed_s is None
        talk.hear(Pong(0, 100 - MAX_UNANSWERED_PINGS + 1, {}))
        assert talk.connection.rtt.smoothed_s == MAX_UNANSWERED_PINGS - 1

    def test_a_timer_called_early_does_nothing(self) -> None:
        talk = connected(Role.CLOUD)
        assert talk.after(0.5) == []
        assert talk.said() == []


class TestOutput:
    @pytest.mark.parametrize(
        "message", [m for m in SAMPLES.values() if m.stream], ids=lambda message: type(message).__name__
    )
    def test_carries_priority_and_stream(self, message: Message) -> None:
        talk = connected(Role.EDGE, streams=2)
        talk.connection.send(message)
        (out,) = talk.connection.output()
        assert out == Outgoing(PRIORITY.get(type(message), Priority.CONTROL), message.stream, frame(message))

    def test_uses_three_bytes_per_id_for_a_large_vocabulary(self) -> None:
        large = replace(FINGERPRINT, n_vocab=65537)
        talk = Talk(replace(CLOUD, fingerprint=large), width=3)
        talk.hear(replace(HELLO, fingerprint=large.to_map()))
        message = replace(an_open(1), prompt=(65536, 1))
        assert talk.hear(message) == [Received(message, len(frame(message, 3)))]


class TestLimits:
    @pytest.mark.parametrize("role", Role)
    def test_before_the_handshake_frames_are_short(self, role: Role) -> None:
        talk = Talk(EDGE if role is Role.EDGE else CLOUD)
        talk.said()
        length = (HANDSHAKE_FRAME_BYTES + 1).to_bytes(LENGTH_BYTES, "big")
        assert_failed(talk, talk.connection.receive(length, 0.0), Code.PROTOCOL, "frame length 65537")

    def test_after_the_handshake_frames_may_be_long_even_in_the_same_chunk(self) -> None:
        talk = Talk(CLOUD)
        long = replace(an_open(1), prompt=tuple(range(1000)) * 100)
        assert len(frame(long)) > HANDSHAKE_FRAME_BYTES
        assert talk.hear(HELLO, long)[1] == Received(long, len(frame(long)))

    def test_before_the_handshake_arrays_are_short(self) -> None:
        longest = encode_frame([99, 0, *[0] * (HANDSHAKE_ITEMS - 2)])
        longer = encode_frame([99, 0, *[0] * (HANDSHAKE_ITEMS - 1)])
        talk = Talk(CLOUD)
        assert talk.connection.receive(longest, 0.0) == []
        assert_failed(talk, talk.connection.receive(longer, 0.0), Code.PROTOCOL, "max_array_len")
        assert connected(Role.CLOUD).connection.receive(longer, 0.0) == []

    def test_before_the_handshake_arrays_that_are_nested_reserve_little(self) -> None:
        # As many levels as fit, each of which declares as much as it may.
        body = b"\x93\x63\x00" + (b"\xdc" + HANDSHAKE_ITEMS.to_bytes(2, "big")) * 20_000
        data = len(body).to_bytes(LENGTH_BYTES, "big") + body
        talk = Talk(CLOUD)
        tracemalloc.start()
        try:
            (closed,) = talk.connection.receive(data, 0.0)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
        assert isinstance(closed, Closed)

    @pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
    def test_after_the_handshake_a_length_is_judged_from_four_bytes(self, length: int) -> None:
        talk = connected(Role.CLOUD)
        events = talk.connection.receive(length.to_bytes(LENGTH_BYTES, "big"), 0.0)
        assert_failed(talk, events, Code.PROTOCOL, f"frame length {length}")

    def test_a_refusal_is_short_enough_for_the_refused(self) -> None:
        many = replace(FINGERPRINT, special={"bos": [2**62] * 250})
        edge, cloud = Talk(replace(EDGE, fingerprint=many)), Talk(CLOUD)
        (closed,) = cloud.hear(*edge.said())
        assert isinstance(closed, Closed)
        assert closed.code is Code.FINGERPRINT
        (told,) = edge.hear(*cloud.said())
        assert isinstance(told, Closed)
        assert told.code is Code.FINGERPRINT

    def test_a_reason_too_long_for_a_frame_is_cut_short(self) -> None:
        talk = connected(Role.CLOUD)
        assert talk.connection.send(Reset(1, Code.BAD_REQUEST, "x" * MAX_FRAME_BYTES)) > 0
        talk.connection.drain("y" * MAX_FRAME_BYTES)
        talk.connection.close(Code.INTERNAL, "z" * MAX_FRAME_BYTES)
        assert talk.said() == [
            Reset(1, Code.BAD_REQUEST, "x" * MAX_REASON_CHARACTERS),
            Goaway(0, Code.DRAINING, "y" * MAX_REASON_CHARACTERS),
            Error(0, Code.INTERNAL, "z" * MAX_REASON_CHARACTERS),
        ]

    def test_a_reason_of_the_widest_characters_fits_before_the_handshake(self) -> None:
        talk = Talk(CLOUD)
        talk.connection.close(Code.INTERNAL, "😀" * MAX_FRAME_BYTES)
        assert sum(len(outgoing.data) for outgoing in talk.connection.output()) < HANDSHAKE_FRAME_BYTES

    @pytest.mark.parametrize("role", Role)
    @pytest.mark.parametrize("limit", [-1, 2**32, True, 1.0, "5", None, [1]], ids=repr)
    def test_of_the_peer_are_numbers(self, role: Role, limit: Any) -> None:
        talk = Talk(EDGE if role is Role.EDGE else CLOUD)
        talk.said()
        events = talk.hear(replace(WELCOME if role is Role.EDGE else HELLO, limits={"max_ahead": limit}))
        assert [type(event) for event in events] == [Closed]
        assert talk.connection.state is State.CLOSED

    def test_of_the_peer_may_be_zero_and_the_largest_and_unknown(self) -> None:
        talk = Talk(EDGE)
        talk.said()
        welcome = replace(WELCOME, limits={"max_ahead": 0, "max_context": 2**32 - 1, "later": 7})
        assert talk.hear(welcome) == [Connected(welcome)]


class TestUnknown:
    @pytest.mark.parametrize("kind", [0, 63, 64, 2**32 - 1])
    def test_frame_types_are_ignored_before_and_after_the_handshake(self, kind: int) -> None:
        talk = Talk(CLOUD)
        unknown = encode_frame([kind, 5, {"a": 1}])
        assert talk.connection.receive(unknown, 0.0) == []
        assert talk.hear(HELLO) == [Connected(HELLO)]
        assert talk.connection.receive(unknown, 0.0) == []
        assert talk.connection.state is State.OPEN

    def test_trailing_fields_are_ignored(self) -> None:
        talk = connected(Role.CLOUD)
        data = encode_frame([*to_fields(Ping(0, 3), 2), "later", [1]])
        talk.connection.receive(data, 0.0)
        assert talk.said() == [Pong(0, 3, {})]


# -- hostile bytes

CONVERSATION = b"".join(
    frame(m)
    for m in (
        HELLO,
        an_open(1),
        a_draft(1),
        Ping(0, 4),
        an_open(5),
        Draft(5, 3, 3, ()),
        an_open(6),
        Credit(0, 9),
        Reset(1, Code.CANCELLED, "enough"),
        a_draft(1),
        Goaway(0, Code.DRAINING, "leaving"),
    )
)


def outcome(data: bytes, cuts: Iterable[int]) -> tuple[list[Event], list[Outgoing]]:
    """What a cloud makes of bytes that arrive in these pieces."""
    connection = Connection(CLOUD, 0.0)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    events: list[Event] = []
    for a, b in itertools.pairwise(edges):
        events += connection.receive(data[a:b], 1.0)
    return events, connection.output()


def assert_orderly(data: bytes, cuts: Iterable[int] = ()) -> None:
    """No exception; either it goes on, or exactly one ERROR and one Closed, and then silence."""
    talk = Talk(CLOUD)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    events: list[Event] = []
    for a, b in itertools.pairwise(edges):
        events += talk.connection.receive(data[a:b], talk.now)
    said = talk.said()
    closed = [event for event in events if isinstance(event, Closed)]
    errors = [message for message in said if isinstance(message, Error)]
    if talk.connection.state is not State.CLOSED:
        assert closed == errors == []
        return
    assert closed == events[-1:]
    if errors:  # none when it was the peer that sent ERROR
        assert errors == said[-1:] == [Error(0, closed[0].code, closed[0].message)]
    assert_silent(talk)


@given(st.lists(st.integers(0, 10_000), max_size=20))
@example(range(len(CONVERSATION)))
def test_any_chunking_of_a_conversation_gives_the_same_events_and_answers(cuts: Iterable[int]) -> None:
    whole = outcome(CONVERSATION, [])
    assert len(whole[0]) == 7
    assert outcome(CONVERSATION, cuts) == whole


@given(st.integers(0, 10_000), st.binary(max_size=40), st.lists(st.integers(0, 10_000), max_size=6))
def test_any_chunking_of_a_broken_conversation_gives_the_same_events_and_answers(
    at: int, noise: bytes, cuts: list[int]
) -> None:
    at %= len(CONVERSATION)
    data = CONVERSATION[:at] + noise + CONVERSATION[at:]
    assert outcome(data, cuts) == outcome(data, [])


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4))
def test_changed_bytes_never_raise(changes: list[tuple[int, int]]) -> None:
    data = bytearray(CONVERSATION)
    for at, flip in changes:
        data[at % len(data)] ^= flip
    assert_orderly(bytes(data))


def test_every_truncation_waits_for_more() -> None:
    for end in range(len(CONVERSATION)):
        events, _ = outcome(CONVERSATION[:end], [])
        assert not any(isinstance(event, Closed) for event in events)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_random_bytes_never_raise(data: bytes, cuts: list[int]) -> None:
    assert_orderly(data, cuts)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.integers(0, 15), st.integers(0, 6), st.lists(JSONISH, max_size=10))
def test_well_formed_frames_of_nonsense_never_raise(kind: int, stream: int, content: list[Any]) -> None:
    assert_orderly(encode_frame([kind, stream, *content]))
    assert_orderly(frame(HELLO) + frame(an_open(1)) + encode_frame([kind, stream, *content]))


@pytest.mark.parametrize("special", ["mixed keys", "deep"])
@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
def test_hostile_special_ids_never_raise(role: Role, special: str) -> None:
    # Frames may nest deeper than the encoder here goes: lists are headers in front of their one item.
    hostile = {"bos": 1, b"bos": 1} if special == "mixed keys" else {"bos": "HERE"}
    kind = WELCOME if role is Role.EDGE else HELLO
    fields = to_fields(replace(kind, fingerprint={**FINGERPRINT.to_map(), "special": hostile}), 2)
    body = encode_frame(fields)[LENGTH_BYTES:].replace(b"\xa4HERE", b"\x91" * 1015 + b"\x01")
    talk = Talk(EDGE if role is Role.EDGE else CLOUD)
    talk.said()
    events = talk.connection.receive(len(body).to_bytes(LENGTH_BYTES, "big") + body, 0.0)
    assert [type(event) for event in events] == [Closed]
