"""Answers end at the edge as they do in the cloud."""

import pytest

from ecd.cloud.session import Session, Vocabulary
from ecd.edge.ending import Ending
from ecd.sampling import Sampling, Verdict
from ecd.text import TextStream
from ecd.wire.messages import Finish, Open, Pace

END = 0


def piece(token: int) -> bytes:
    return b"" if token == END else bytes([token])


@pytest.mark.parametrize(
    ("text", "stop", "room"),
    [
        (b"abc", (), 3),
        (b"abc", (), 9),
        (b"ab\0", (), 9),
        (b"ab\0", (), 3),
        (b"abc", ("bc",), 9),
        (b"abc", ("bc",), 3),
        (b"a\xc3\xa9x", ("é",), 9),
        (b"abcd", ("cx", "d", "bcd"), 9),
    ],
)
def test_as_the_cloud_ends_them(text: bytes, stop: tuple[str, ...], room: int) -> None:
    ending = Ending(TextStream(stop), piece, frozenset({END}), room)
    opened = Open(1, None, 0, (9,), (), Sampling().to_map(), room, stop, Pace(0, 1))
    session = Session.of(opened, Vocabulary(256, frozenset({END}), piece), 64, 0.0)
    for token in text:
        there = session.commit(Verdict((token,), 0), 0, 0.0, None).finish
        assert ending.after(token) is there
        if there is not Finish.NONE:
            break
