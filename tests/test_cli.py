"""`ecd`'s options that are more than a number or a name."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ecd.cli import cli
from ecd.errors import ConfigError


def check_cloud(*flags: str) -> Result:
    return CliRunner().invoke(cli, ["cloud", "--check", "--model", "m", *flags])


def test_engine_args_are_json() -> None:
    result = check_cloud(
        "--engine", "vllm", "--engine-args", '{"tensor_parallel_size": 2, "dtype": "float32"}'
    )
    assert (result.output, result.exit_code) == ("settings are valid\n", 0)


@pytest.mark.parametrize("given", ['{"dtype": }', "dtype=float32", "[1]", "2", "null", ""])
def test_engine_args_of_another_form_are_refused_with_an_example(given: str) -> None:
    result = check_cloud("--engine", "vllm", "--engine-args", given)
    assert result.exit_code == 2
    assert "Invalid value for '--engine-args'" in result.output
    assert f"{given!r} is not" in result.output
    assert "for example '{\"max_model_len\": 8192}'" in result.output


def test_engine_args_go_over_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cloud.yaml"
    file.write_text("engine: vllm\nengine_args: {pipeline_parallel_size: 2}\n")
    assert check_cloud("--config", str(file), "--engine-args", '{"dtype": "float32"}').exit_code == 0
    assert isinstance(check_cloud("--config", str(file)).exception, ConfigError)


def test_engine_args_without_vllm_are_refused() -> None:
    said = str(check_cloud("--engine-args", '{"dtype": "float32"}').exception)
    assert said == "bad settings: engine_args are for `engine: vllm`; set that, or leave them out"
