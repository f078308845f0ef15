"""Which characters count as control characters: those that Unicode calls so."""

import sys
import unicodedata

from ecd.control_characters import CONTROL, CONTROL_IN_TEXT

ALL = [chr(each) for each in range(sys.maxunicode + 1)]


def test_they_are_those_of_unicode() -> None:
    assert [each for each in ALL if CONTROL.match(each)] == [
        each for each in ALL if unicodedata.category(each) == "Cc"
    ]


def test_a_text_may_have_tabs_and_lines() -> None:
    assert {each for each in ALL if CONTROL.match(each) and not CONTROL_IN_TEXT.match(each)} == {"\t", "\n"}
    assert not [each for each in ALL if CONTROL_IN_TEXT.match(each) and not CONTROL.match(each)]
