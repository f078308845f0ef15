"""The token file and its commands: modes, halves, concurrent changes, and what a daemon notices."""

import json
import logging
import os
import stat
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecd.cli import cli
from ecd.errors import AuthError, BadRequest, ConfigError, EcdError
from ecd.trust.files import MAX_FILE_BYTES, TokenFile, change_tokens, load_tokens, read_private


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def ecd(*arguments: object) -> str:
    """What the command prints; raises what `ecd` would tell."""
    result = CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def create(file: Path, name: str, *flags: object) -> str:
    return ecd("token", "create", name, "--file", file, *flags).strip()


def test_a_made_token_lets_in_until_it_is_revoked(file: Path) -> None:
    secret = create(file, "berlin")
    assert load_tokens(file).tokens[0].name == "berlin"
    tokens = TokenFile(file)
    assert tokens.identify(secret.encode()) == "berlin"
    ecd("token", "revoke", "berlin", "--file", file)
    tokens.refresh()
    with pytest.raises(AuthError, match="revoked"):
        tokens.identify(secret.encode())
    with pytest.raises(AuthError, match="revoked"):
        tokens.check("berlin")


def test_the_file_is_for_its_owner_alone_and_holds_no_secret(file: Path) -> None:
    secret = create(file, "berlin")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text()


def test_a_changed_file_keeps_mode_and_group_and_leaves_nothing_beside_it(file: Path) -> None:
    create(file, "berlin")
    file.chmod(0o640)
    create(file, "paris")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [each.name for each in file.parent.iterdir()] == ["tokens.json"]


def test_limits_and_expiry_are_the_token_s_own(file: Path) -> None:
    create(file, "guest", "--days", 7, "--sessions", 2, "--hints-per-s", 50)
    (entry,) = json.loads(ecd("token", "list", "--file", file, "--json"))
    assert (entry["name"], entry["limits"]) == ("guest", {"sessions": 2, "hints_per_s": 50.0})
    assert entry["state"].startswith("good until")
    assert "sha256" not in entry


def test_the_list_says_which_are_good(file: Path) -> None:
    create(file, "berlin")
    create(file, "guest", "--sessions", 2)
    ecd("token", "revoke", "berlin", "--file", file)
    first, second = ecd("token", "list", "--file", file).splitlines()
    assert "revoked" in first
    assert second.startswith("guest")
    assert second.endswith("sessions 2")


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o666, 0o644])
def test_a_file_that_others_could_see_or_change_is_refused(file: Path, mode: int) -> None:
    create(file, "berlin")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        TokenFile(file)
    with pytest.raises(ConfigError, match="chmod 600"):
        create(file, "paris")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(file: Path) -> None:
    create(file, "berlin")
    os.chown(file, 4321, -1)
    with pytest.raises(ConfigError, match="belongs to uid 4321"):
        TokenFile(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no token file"),
        ("[]", "no token file"),
        ("{", "no token file"),
        ('{"tokens": [{"name": "a"}]}', "tokens.0.sha256"),
        ('{"tokens": [], "more": 1}', "more"),
        ("x" * (MAX_FILE_BYTES + 1), "is longer than"),
    ],
)
def test_what_is_no_token_file_is_told(file: Path, content: str, said: str) -> None:
    file.touch(mode=0o600)
    file.write_text(content)
    with pytest.raises(ConfigError, match=said) as error:
        load_tokens(file)
    assert str(file) in str(error.value)


def test_a_missing_file_is_told_and_a_missing_folder_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        TokenFile(tmp_path / "tokens.json")
    with pytest.raises(ConfigError, match="cannot use the folder"):
        change_tokens(tmp_path / "nowhere" / "tokens.json", lambda tokens: tokens)
    with pytest.raises(ConfigError, match=r"tls\.key: cannot read"):
        read_private(tmp_path / "key", "tls.key")


def test_a_change_that_fails_leaves_the_file_as_it_was(file: Path) -> None:
    create(file, "berlin")
    before = file.read_bytes()
    for arguments in (("create", "berlin"), ("revoke", "paris")):
        with pytest.raises(BadRequest):
            ecd("token", *arguments, "--file", file)
    assert file.read_bytes() == before


def test_tokens_made_at_the_same_time_are_all_kept(file: Path) -> None:
    threads = [threading.Thread(target=create, args=(file, f"t{n}")) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(token.name for token in load_tokens(file).tokens) == [f"t{n}" for n in range(8)]


def test_a_file_that_breaks_while_the_daemon_runs_changes_nothing_and_is_told_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = create(file, "berlin")
    tokens = TokenFile(file)
    good = file.read_bytes()
    file.write_text("{")
    with caplog.at_level(logging.ERROR):
        tokens.refresh()
        tokens.refresh()
    assert [record.message for record in caplog.records if "stay as they were" in record.message] == [
        caplog.records[0].message
    ]
    assert tokens.identify(secret.encode()) == "berlin"
    file.unlink()
    tokens.refresh()
    assert tokens.identify(secret.encode()) == "berlin"
    file.touch(mode=0o600)
    file.write_bytes(good.replace(b"berlin", b"paris"))
    tokens.refresh()
    assert tokens.identify(secret.encode()) == "paris"


def test_a_mode_that_is_mended_is_noticed(file: Path) -> None:
    create(file, "berlin")
    tokens = TokenFile(file)
    secret = create(file, "paris")
    file.chmod(0o644)
    tokens.refresh()
    with pytest.raises(EcdError):
        tokens.identify(secret.encode())
    file.chmod(0o600)
    tokens.refresh()
    assert tokens.identify(secret.encode()) == "paris"
