"""schemathesis on the gateway's own OpenAPI document: nothing fails, and nothing is answered undocumented."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.edge.gateway.instant_cloud import InstantCloud, serving


@pytest.mark.slow
@pytest.mark.parametrize("http", [{}, {"api_keys": ["key"]}], ids=["open", "with keys"])
async def test_every_request_is_answered_as_documented(tmp_path: Path, http: dict[str, list[str]]) -> None:
    """All of its checks but one: that what a schema allows can be done, which also depends on the context."""
    if http:
        (tmp_path / "schemathesis.toml").write_text('[auth.openapi.key]\nbearer = "key"\n')
    cloud = InstantCloud()
    async with serving(cloud, **http) as url:
        fuzzer = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--phases", "coverage,fuzzing"),
            *("--exclude-checks", "positive_data_acceptance", "--generation-deterministic"),
            *("--max-examples", "15", "--continue-on-failure"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await fuzzer.communicate()
    assert fuzzer.returncode == 0, output.decode()[-4000:]
    assert cloud.service.totals.finished > 0
    assert not cloud.service.answers
