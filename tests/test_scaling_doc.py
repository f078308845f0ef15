"""docs/SCALING.md and README.md on several clouds: their settings are valid, their sums right."""

import math
import re
from pathlib import Path

import pytest

from ecd.config import EdgeConfig, load_config
from ecd.edge.fleet import QUIET_SLACK_S, SAME_S, TROUBLE_S
from ecd.edge.uplinks import LOOK_UP_S

ROOT = Path(__file__).parents[1]
SCALING, README = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/SCALING.md", "README.md"))
FILES = re.findall(
    r"^```yaml\n(# edge\.yaml\nclouds.*?|# edge\.yaml\nmodel.*?clouds.*?)^```", SCALING + README, re.M | re.S
)


def test_both_show_a_file() -> None:
    assert len(FILES) == 2


@pytest.mark.parametrize("settings", FILES)
def test_their_files_are_valid(settings: str, tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text(settings)
    assert len(load_config(EdgeConfig, file, {"model": "m"}).clouds) > 1


def test_times_are_those_of_the_code() -> None:
    assert f"{SAME_S * 1000:g} ms" in SCALING
    assert f"`ping_interval_s` + {QUIET_SLACK_S:g} s + 2 RTT" in SCALING
    assert f"not within {TROUBLE_S:g} s" in SCALING
    for text in (SCALING, README):
        assert f"looked up again every {LOOK_UP_S:g} s" in text


def test_its_sums_are_right() -> None:
    sessions, step_s, slope, rate = 1, 0.03, 0.02, 20
    while step_s * (1 + slope * sessions) <= 1 / rate:
        sessions += 1
    assert f"S <= {sessions}" in SCALING
    mean = 1000 / 300 * 12
    peak = round(mean + 3 * math.sqrt(mean))
    assert f"{mean:g} + 3 x {math.sqrt(mean):.1f} = {peak}" in SCALING
    beyond = 1 - sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(peak + 1))
    assert f"{beyond:.1%}".replace("%", " %") in SCALING
    for each in (38, 27):
        assert f"{peak} / {each}" in SCALING
        assert f"gives {math.ceil(peak / each)} + 1" in SCALING
