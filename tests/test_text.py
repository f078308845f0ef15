"""Bytes to text: characters stay whole, stop strings are found and cut, wherever the pieces are cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ecd.text import TextStream

REPLACEMENT = "�"


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """The data in pieces, cut at the given places (any numbers, some may repeat)."""
    places = sorted({0, len(data), *(n % (len(data) + 1) for n in at)})
    return [data[a:b] for a, b in pairwise(places)] or [b""]


def shown(stream: TextStream, pieces: list[bytes]) -> list[str]:
    return [stream.feed(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces)]


def expected(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text up to the stop string that is complete first, of those that end together the longest."""
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(found)[1]], True) if found else (text, False)


CUTS = st.lists(st.integers(0, 1000), max_size=20)
# Letters that make stop strings likely, and characters of two, three and four bytes.
LETTERS = st.text(st.sampled_from("aab\né中😀"), max_size=20)
STOPS = st.lists(st.text(st.sampled_from("aab\né中😀"), min_size=1, max_size=4), max_size=3).map(tuple)


@given(st.text(max_size=40), CUTS)
def test_text_is_the_same_wherever_it_is_cut(text: str, at: list[int]) -> None:
    stream = TextStream()
    parts = shown(stream, cut(text.encode(), at))
    assert "".join(parts) == text == stream.text
    assert not stream.stopped


@given(st.text(st.characters(exclude_characters=REPLACEMENT, exclude_categories=["Cs"]), max_size=40), CUTS)
def test_no_character_is_ever_split(text: str, at: list[int]) -> None:
    stream, so_far = TextStream(), b""
    for piece in cut(text.encode(), at):
        so_far += piece
        assert REPLACEMENT not in stream.feed(piece)
        assert stream.text == so_far.decode(errors="ignore")


@given(st.binary(max_size=40), CUTS)
def test_any_bytes_give_what_decoding_them_at_once_gives(data: bytes, at: list[int]) -> None:
    stream = TextStream()
    assert "".join(shown(stream, cut(data, at))) == data.decode(errors="replace")


@given(LETTERS, STOPS)
def test_the_stop_string_complete_first_ends_a_text_fed_at_once(text: str, stop: tuple[str, ...]) -> None:
    stream = TextStream(stop)
    assert stream.feed(text.encode(), last=True) == stream.text
    assert (stream.text, stream.stopped) == expected(text, stop)


@given(LETTERS, st.text(st.sampled_from("aab\né中😀"), min_size=1, max_size=5), CUTS)
def test_one_stop_string_is_found_wherever_the_text_is_cut(text: str, stop: str, at: list[int]) -> None:
    stream = TextStream((stop,))
    parts = shown(stream, cut(text.encode(), at))
    assert "".join(parts) == stream.text
    assert (stream.text, stream.stopped) == expected(text, (stop,))


@given(LETTERS, STOPS, CUTS)
def test_nothing_is_shown_that_a_stop_string_could_still_take_back(
    text: str, stop: tuple[str, ...], at: list[int]
) -> None:
    stream, so_far = TextStream(stop), b""
    for piece in cut(text.encode(), at):
        stream.feed(piece)
        so_far += piece
        if stream.stopped:
            break
        known = so_far.decode(errors="ignore")
        # A stop string may begin wherever the rest is the beginning of one.
        open_at = [i for i in range(len(known)) if any(s.startswith(known[i:]) for s in stop)]
        assert stream.text == known[: min(open_at, default=len(known))]
    assert not any(s in stream.text for s in stop)
    assert stream.stopped == any(s in text for s in stop)


@given(LETTERS, STOPS, CUTS)
def test_several_stop_strings_end_the_text_at_the_same_place_wherever_it_is_cut(
    text: str, stop: tuple[str, ...], at: list[int]
) -> None:
    stream = TextStream(stop)
    parts = shown(stream, cut(text.encode(), at))
    assert "".join(parts) == stream.text
    assert (stream.text, stream.stopped) == expected(text, stop)


def test_a_stop_string_inside_another_one_decides_because_it_is_complete_first() -> None:
    ends = set()
    for pieces in ([b"xabcd"], [b"xab", b"cd"], [b"x", b"a", b"b", b"c", b"d"]):
        stream = TextStream(("abc", "b"))
        shown(stream, pieces)
        ends.add(stream.text)
    assert ends == {"xa"}


def test_a_stop_string_may_span_pieces() -> None:
    stream = TextStream(("\n\nEND",))
    assert [stream.feed(piece) for piece in (b"one\n", b"\nE", b"ND two", b" three")] == ["one", "", "", ""]
    assert stream.stopped
    assert stream.text == "one"


def test_a_prefix_that_comes_to_nothing_is_shown_later() -> None:
    stream = TextStream(("STOP",))
    assert [stream.feed(piece) for piece in (b"a S", b"T", b"ST", b"O", b"x")] == ["a ", "", "ST", "", "STOx"]
    assert not stream.stopped


def test_what_was_held_back_comes_out_at_the_end() -> None:
    stream = TextStream(("STOP",))
    assert stream.feed(b"go STO") == "go "
    assert stream.feed(b"", last=True) == "STO"
    assert stream.text == "go STO"
    assert not stream.stopped


def test_stop_strings_that_overlap_themselves_and_each_other() -> None:
    stream = TextStream(("aab", "aba"))
    assert [stream.feed(letter.encode()) for letter in "aaab"] == ["", "", "a", ""]
    assert (stream.text, stream.stopped) == ("a", True)
    other = TextStream(("abc", "bcd"))
    other.feed(b"xabcd")
    assert other.text == "x"


def test_of_two_stop_strings_the_one_complete_first_wins_whatever_their_order() -> None:
    for stop in (("one", "two"), ("two", "one")):
        stream = TextStream(stop)
        stream.feed(b"zero two one")
        assert stream.text == "zero "


def test_an_unfinished_character_at_the_end_is_replaced() -> None:
    stream = TextStream()
    first, rest = "😀".encode()[:3], "😀".encode()[3:]
    assert stream.feed(b"a" + first) == "a"
    assert stream.feed(b"", last=True) == REPLACEMENT
    whole = TextStream()
    assert whole.feed(b"a" + first) + whole.feed(rest, last=True) == "a😀"


def test_nothing_comes_after_the_stop() -> None:
    stream = TextStream(("!",))
    assert stream.feed(b"hi! there") == "hi"
    assert stream.feed(b"more") == ""
    assert stream.feed("é".encode()[:1], last=True) == ""
    assert stream.text == "hi"


def test_streams_do_not_share_a_decoder() -> None:
    one, two = TextStream(), TextStream()
    one.feed("é".encode()[:1])
    assert two.feed(b"x") == "x"
    assert one.feed("é".encode()[1:]) == "é"


def test_of_stop_strings_that_end_together_the_longest_is_cut() -> None:
    for stop in (("abc", "c"), ("c", "abc")):
        stream = TextStream(stop)
        stream.feed(b"xabcd")
        assert stream.text == "x"
