"""What may be asked in the model, and what liars may say."""

from hypothesis import strategies as st

from ecd.edge.pacing import Objective
from ecd.edge.request import Request
from ecd.errors import Code
from ecd.sampling import Rule, Sampling
from ecd.wire.frames import encode_frame, id_width
from ecd.wire.messages import (
    ENDLESS_US,
    Alternate,
    Commit,
    Draft,
    Goaway,
    HintWeights,
    Kv,
    KvOp,
    Message,
    Open,
    Origin,
    Pace,
    Ping,
    Reset,
    Tokens,
    to_fields,
)
from tests.toy import NEVER_ENDING, SIZE

# The first are those of living answers, mostly.
STREAM_NUMBERS = st.sampled_from([1, 1, 2, 2, 3, 4, 5, 9])
IDS = st.lists(st.integers(0, SIZE + 1), max_size=6).map(tuple)
MAX_AHEADS = st.sampled_from([1, 8, 20, 20])
PACES = st.builds(Pace, st.sampled_from([0, 2000, 500_000, ENDLESS_US, ENDLESS_US]), st.integers(0, 5))
REQUESTS = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 6), min_size=1, max_size=8).map(tuple),
    sampling=st.sampled_from(
        [
            Sampling(),
            Sampling(repetition_penalty=1.3, frequency_penalty=0.4),
            Sampling(Rule.COUPLED, 5, 1.0),
            Sampling(Rule.COUPLED, 7, 1.2, logit_bias=NEVER_ENDING),
        ]
    ),
    max_tokens=st.sampled_from([1, 2, 7, 40, 40, 55]),
    stop=st.sampled_from([(), (), ("ab",), ("cde", "ga")]),
    draft=st.sampled_from([True, True, True, False]),
    alternates=st.booleans(),
    objective=st.sampled_from(Objective),
    ahead=st.none() | st.integers(0, 8),
    patience_us=st.none() | st.sampled_from([0, 2000, ENDLESS_US]),
    hint_tokens=st.none() | st.integers(1, 4),
)
HOSTILE_DRAFTS = st.builds(
    Draft,
    stream=STREAM_NUMBERS,
    seen=st.integers(0, 30),
    base=st.integers(0, 30),
    ids=IDS,
    confidence=st.none() | st.binary(max_size=6),
    q=st.none() | st.lists(st.just(HintWeights((1, 2), b"\x01\xff")), max_size=3).map(tuple),
    alternates=st.none() | st.lists(st.builds(Alternate, st.integers(0, 40), IDS), max_size=10).map(tuple),
    pace=st.none() | PACES,
)
HOSTILE_OPENS = st.builds(
    Open,
    stream=st.integers(1, 9),
    prefix_hash=st.none(),
    prefix_len=st.just(0),
    prompt=IDS,
    committed=IDS,
    sampling=st.sampled_from([{}, {"rule": "coupled", "temperature": 0.9}, {"rule": "none"}, {"top_p": -1}]),
    max_tokens=st.integers(0, 80),
    stop=st.sampled_from([(), ("ab",), ("",)]),
    pace=PACES,
)
HOSTILE: st.SearchStrategy[Message] = st.one_of(
    HOSTILE_DRAFTS,
    HOSTILE_OPENS,
    st.builds(
        Commit,
        *(st.integers(0, 8), st.integers(0, 40), IDS, st.sampled_from(Origin)),
        *(st.integers(0, 60), st.integers(0, 8)),
    ),
    st.builds(Tokens, st.integers(0, 8), st.integers(0, 40), IDS, st.just(0), st.just(0), st.just(1)),
    st.builds(Reset, st.integers(0, 8), st.sampled_from(Code), st.just("")),
    st.builds(Goaway, st.just(0), st.sampled_from(Code), st.just("")),
    st.builds(Ping, st.just(0), st.integers(0, 9)),
    st.just(Kv(1, KvOp.DROP, b"", 0, 0, 0, 0, "", 0, b"")),
)
# What an edge must not take for tokens of any answer: at a place beyond all of them; none, an unknown id, or
# more than any answer may have.
LIES = st.builds(
    lambda stream, base, ids: Tokens(stream, base, ids, 0, 0, 1),
    STREAM_NUMBERS,
    st.integers(0, 40),
    st.sampled_from([(), (SIZE,), (1,) * 99]),
) | st.builds(lambda stream: Tokens(stream, 1 << 20, (1,), 0, 0, 1), STREAM_NUMBERS)
GARBAGE = st.sampled_from([b"\xff" * 4, b"\0\0\0\0", b"\0\0\0\1\xc1", encode_frame([99, 0, "later"])])


def frame(message: Message) -> bytes:
    return encode_frame(to_fields(message, id_width(SIZE)))
