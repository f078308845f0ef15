"""docs/DEPLOY.md against the code: its settings are valid, its engine arguments are let through."""

import json
import re
from pathlib import Path

import pytest

from ecd.config import CloudConfig, EdgeConfig, load_config
from ecd.engine.vllm_args import OWN, REFUSED, SETTINGS, SINGLE, refusal

TEXT = (Path(__file__).parents[1] / "docs" / "DEPLOY.md").read_text(encoding="utf-8")
KINDS = {"cloud": CloudConfig, "edge": EdgeConfig}
FILES = re.findall(r"^```yaml\n(# (\w+)\.yaml\n.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
ENGINE_ARGS = re.findall(r"--engine-args '(.*?)'", TEXT)


def test_there_are_files_and_commands_to_check() -> None:
    assert FILES
    assert len(FILES) == TEXT.count("```yaml")
    assert ENGINE_ARGS


@pytest.mark.parametrize(("settings", "role"), FILES)
def test_its_files_are_valid(settings: str, role: str, tmp_path: Path) -> None:
    file = tmp_path / f"{role}.yaml"
    file.write_text(settings)
    load_config(KINDS[role], file, {})


@pytest.mark.parametrize("given", ENGINE_ARGS)
def test_its_engine_arguments_are_not_refused(given: str) -> None:
    assert refusal(json.loads(given)) is None


def test_it_names_every_argument_that_is_refused() -> None:
    for name in (*OWN, *SETTINGS, *SINGLE, *REFUSED):
        assert f"`{name}`" in TEXT, name
