"""Tokens: who is let in, who is not and what they are told, and that no secret is kept."""

from datetime import UTC, datetime, timedelta

import pytest

from ecd.errors import AuthError, BadRequest, Code
from ecd.trust.settings import Limits
from ecd.trust.tokens import PREFIX, Tokens, new_secret

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECRET, OTHER = new_secret(), new_secret()
TWO = (
    Tokens()
    .created("berlin", SECRET, NOW, None, Limits())
    .created("guest", OTHER, NOW, NOW + DAY, Limits(sessions=2))
)


def refusal(tokens: Tokens, shown: str | None, now: datetime = NOW) -> str:
    with pytest.raises(AuthError) as error:
        tokens.identify(None if shown is None else shown.encode(), now)
    assert error.value.code is Code.AUTH
    return str(error.value)


def test_a_shown_token_names_its_tenant() -> None:
    assert TWO.identify(SECRET.encode(), NOW).name == "berlin"
    guest = TWO.identify(OTHER.encode(), NOW)
    assert (guest.name, guest.limits.sessions) == ("guest", 2)


@pytest.mark.parametrize(
    "shown", ["", "x", SECRET[:-1], SECRET + "x", SECRET.upper(), TWO.tokens[0].sha256, "sécret"]
)
def test_a_wrong_token_is_refused_without_a_name(shown: str) -> None:
    said = refusal(TWO, shown)
    assert "does not know this token; set `token` at the edge" in said
    assert "berlin" not in said


def test_bytes_that_are_no_text_are_refused_too() -> None:
    with pytest.raises(AuthError, match="does not know"):
        TWO.identify(b"\xff\x00", NOW)


def test_no_token_is_told_to_set_one() -> None:
    assert "the edge showed none; set `token`" in refusal(TWO, None)


def test_a_revoked_token_is_told_its_name_and_the_day() -> None:
    revoked = TWO.revoked("berlin", NOW + 3 * DAY)
    assert "'berlin' was revoked on 2026-05-04; ask the cloud's operator" in refusal(revoked, SECRET)
    assert revoked.identify(OTHER.encode(), NOW).name == "guest"


def test_a_token_expires_at_its_time_and_not_before() -> None:
    assert TWO.identify(OTHER.encode(), NOW + DAY - timedelta(seconds=1)).name == "guest"
    assert "'guest' expired on 2026-05-02" in refusal(TWO, OTHER, NOW + DAY)


def test_a_connection_s_token_is_judged_again_by_name() -> None:
    assert TWO.check("berlin", NOW + 1000 * DAY).name == "berlin"
    with pytest.raises(AuthError, match="expired"):
        TWO.check("guest", NOW + DAY)
    with pytest.raises(AuthError, match="revoked"):
        TWO.revoked("berlin", NOW).check("berlin", NOW)
    with pytest.raises(AuthError, match="'paris' is gone from the cloud's file"):
        TWO.check("paris", NOW)


def test_only_the_hash_is_kept_and_survives_the_way_through_a_file() -> None:
    text = TWO.revoked("guest", NOW).model_dump_json(exclude_unset=True)
    assert SECRET not in text
    assert SECRET.removeprefix(PREFIX) not in text
    assert Tokens.model_validate_json(text) == TWO.revoked("guest", NOW)
    # A limit that was not given for it stays the cloud's.
    assert Tokens.model_validate_json(text).tokens[1].limits.model_fields_set == {"sessions"}


def test_secrets_differ_and_are_recognisable() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    # 256 bits in base64.
    assert {len(secret) for secret in secrets} == {len(PREFIX) + 43}


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_names_that_logs_cannot_bear_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="no name for a token"):
        TWO.created(name, "s", NOW, None, Limits())


def test_a_name_is_given_once_and_revoked_once() -> None:
    with pytest.raises(BadRequest, match="'berlin' already"):
        TWO.created("berlin", "s", NOW, None, Limits())
    with pytest.raises(BadRequest, match="no token 'paris'"):
        TWO.revoked("paris", NOW)
    with pytest.raises(BadRequest, match="revoked on 2026-05-01 already"):
        TWO.revoked("berlin", NOW).revoked("berlin", NOW)
