"""A disk without room and an expired token, as whoever meets them sees them."""

import subprocess
import sys
from pathlib import Path

import pytest

from ecd.errors import AuthError
from ecd.lab.hardship import LOG_ROOM_BYTES, EdgeToken, fill_disk, free_disk
from ecd.trust.files import TokenFile

# Writes files of so many bytes as it is told, and logs beside it.
WRITER = """
import sys
for line in sys.stdin:
    name, size = line.split()
    try:
        with open(name, "ab") as file:
            file.write(bytes(int(size)))
        print("written", flush=True)
    except OSError as e:
        print(e.strerror, flush=True)
"""


def test_a_process_finds_no_room_but_for_its_log_until_there_is_some_again(tmp_path: Path) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    log.write_bytes(bytes(4 * LOG_ROOM_BYTES))
    command = [sys.executable, "-c", WRITER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def write(path: Path, size: int) -> str:
            print(path, size, file=process.stdin, flush=True)
            return process.stdout.readline().strip()

        fill_disk(process.pid, log)
        assert write(log, LOG_ROOM_BYTES // 2) == "written"
        assert write(state, 6 * LOG_ROOM_BYTES) == "File too large"
        free_disk(process.pid)
        assert write(state, 6 * LOG_ROOM_BYTES) == "written"
        process.stdin.close()
    assert process.returncode == 0


def test_a_token_expires_and_is_good_again(tmp_path: Path) -> None:
    token = EdgeToken.create(tmp_path / "tokens.json")
    seen_by_cloud = TokenFile(token.file)
    assert seen_by_cloud.identify(token.secret.encode()) == "soak"
    token.expire()
    seen_by_cloud.refresh()
    with pytest.raises(AuthError, match=token.error):
        seen_by_cloud.check("soak")
    token.renew()
    seen_by_cloud.refresh()
    assert seen_by_cloud.check("soak").name == "soak"
