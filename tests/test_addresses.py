"""Addresses of settings: how they are split, and which mean this machine alone."""

import pytest

from ecd.addresses import is_loopback, split_address


def test_only_loopback_is_loopback() -> None:
    assert [is_loopback(h) for h in ("localhost", "127.0.0.1", "::1")] == [True] * 3
    assert [is_loopback(h) for h in ("localhost.example", "128.0.0.1", "::", "", "127.0.0.1.example")] == [
        False
    ] * 5


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("host:1", ("host", 1)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses_are_split(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "host", "host:", ":7040", "host:x", "host:-1", "host:65536", "7040"])
def test_bad_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address(address)
