"""docs/SECURITY.md against the code: its settings are valid, its numbers are ours, its tests are there."""

import re
from pathlib import Path

import pytest
import yaml

from ecd.cloud.links import CHARGED_BYTES
from ecd.cloud.listener import ACCEPTS_PER_S, REFUSED
from ecd.cloud.service import OPENING
from ecd.config import CloudConfig, EdgeConfig, load_config
from ecd.trust.settings import Limits
from ecd.wire.connection import FRAME_S, HANDSHAKE_FRAMES
from ecd.wire.link import MAX_QUEUED_BYTES, STUCK_S
from ecd.wire.prefix import BLOCK_TOKENS

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "SECURITY.md").read_text(encoding="utf-8")
PROSE = " ".join(TEXT.split())
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```yaml\n(# (\w+)\.yaml\n.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("settings", "role"), FILES)
def test_its_files_are_valid_and_secure(settings: str, role: str, tmp_path: Path) -> None:
    file = tmp_path / f"{role}.yaml"
    file.write_text(settings)
    assert load_config({"cloud": CloudConfig, "edge": EdgeConfig}[role], file, {}).dangers() == []


def test_there_is_a_file_for_each_daemon() -> None:
    assert [role for _, role in FILES] == ["cloud", "edge"]


def test_limits_are_told_with_their_defaults() -> None:
    told = dict(re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+?) \|", TEXT, re.MULTILINE))
    expected = {name: getattr(Limits(), name) for name in Limits.model_fields}
    assert told.keys() == expected.keys()
    for name, value in expected.items():
        in_words = {"none": None, "32 MiB": 32 << 20}
        assert in_words.get(told[name], told[name]) in (value, f"{value:g}" if value else None), name
        listed = "none" if value is None else f"{value:.0f}"
        assert re.search(rf"^\| `limits\.{name}` \| .* \| {listed} \|", README, re.MULTILINE), name


def test_other_numbers_are_those_of_the_code() -> None:
    assert f"{ACCEPTS_PER_S:g} are accepted per second" in PROSE
    assert f"each {CHARGED_BYTES} bytes and each {BLOCK_TOKENS} tokens of a known prefix" in PROSE
    assert f"each OPEN as {OPENING}" in PROSE
    assert round(1 / REFUSED) == 10
    assert "a refused one counts as a tenth of one" in PROSE
    assert f"sends a frame in drips | {FRAME_S:g} s after its beginning" in PROSE
    assert f"when {MAX_QUEUED_BYTES >> 20} MiB wait for it" in PROSE
    assert f"did not go out in {STUCK_S:g} s" in PROSE
    assert f"{HANDSHAKE_FRAMES} frames, one of at most 64 KiB" in PROSE


def test_the_tests_that_it_names_are_there() -> None:
    files = set(re.findall(r"`([\w/]+\.py)`", TEXT))
    assert len(files) > 8
    for file in files:
        assert (TESTS / file).is_file(), file
    for file, start in re.findall(r"`([\w/]+\.py)`: `(test_\w+?)_?\.\.\.`", TEXT):
        assert f"def {start}" in (TESTS / file).read_text(), start


def test_the_units_settings_are_valid_with_what_they_suggest() -> None:
    for role, kind in (("cloud", CloudConfig), ("edge", EdgeConfig)):
        file = TESTS.parent / "systemd" / f"{role}.yaml"
        suggested = re.sub(r"^# (?=(tls|token|tokens): )", "", file.read_text(), flags=re.MULTILINE)
        assert kind.model_validate(yaml.safe_load(suggested)).tls is not None
