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


@pytest.mark.parametrize(
    ("where", "command", "flags"),
    [
        ("ecd.edge.http.LIBRARIES", "edge", ("--http", "127.0.0.1:8082")),
        ("ecd.cloud.main.METRICS_LIBRARIES", "cloud", ("--metrics", "127.0.0.1:9090")),
    ],
)
def test_settings_are_not_valid_where_their_libraries_are_missing(
    where: str, command: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = [command, "--check", "--model", "m"]
    assert CliRunner().invoke(cli, [*check, *flags]).output == "settings are valid\n"
    monkeypatch.setattr(where, ("no_such_library",))
    result = CliRunner().invoke(cli, [*check, *flags])
    assert isinstance(result.exception, ConfigError)
    assert "no_such_library is not installed; `pip install 'ecd[http]'`" in str(result.exception)
    # Who does not ask for it does without.
    assert CliRunner().invoke(cli, check).output == "settings are valid\n"


def test_spans_are_not_valid_without_their_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ecd.edge.telemetry.LIBRARIES", ("no_such_library",))
    file = tmp_path / "edge.yaml"
    file.write_text("model: m\notlp: http://127.0.0.1:4318\n")
    result = CliRunner().invoke(cli, ["edge", "--check", "--config", str(file)])
    assert "pip install 'ecd[otel]'" in str(result.exception)


def test_engine_args_without_vllm_are_refused() -> None:
    said = str(check_cloud("--engine-args", '{"dtype": "float32"}').exception)
    assert said == "bad settings: engine_args are for `engine: vllm`; set that, or leave them out"
