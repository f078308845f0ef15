"""The units, as `bin/install` puts them somewhere, against systemd's own analyses."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from ecd.config import CloudConfig, EdgeConfig, load_config

HOME = Path(__file__).parents[1]
UNITS = ("ecd-cloud.service", "ecd-edge.service", "ecd-edge.socket")
# What `systemd-analyze security` may find at most, in tenths.
MOST_EXPOSURE = 20

analyses = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def install(root: Path) -> None:
    subprocess.run([HOME / "bin" / "install"], env={**os.environ, "DESTDIR": str(root)}, check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where it was installed to, with programs in their places and systemd's own targets."""
    install(tmp_path)
    for path in ("opt/ecd/.venv/bin/ecd", "bin/kill"):
        program = tmp_path / path
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    targets = tmp_path / "usr/lib/systemd/system"
    targets.mkdir(parents=True)
    for unit in Path("/usr/lib/systemd/system").glob("*.target"):
        shutil.copy(unit, targets)
    return tmp_path


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@analyses
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong(root: Path, unit: str) -> None:
    assert run("systemd-analyze", "verify", "--man=no", f"--root={root}", unit) == ""


@analyses
@pytest.mark.parametrize("unit", [name for name in UNITS if name.endswith(".service")])
def test_little_is_exposed(root: Path, unit: str) -> None:
    run(
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--root={root}",
        f"--threshold={MOST_EXPOSURE}",
        unit,
    )


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("systemd-tmpfiles") is None, reason="needs systemd-tmpfiles and root"
)
def test_user_and_folders_are_made(root: Path) -> None:
    run("systemd-sysusers", f"--root={root}", "ecd.conf")
    (user,) = [line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("ecd:")]
    assert user.endswith(":/var/lib/ecd:/usr/sbin/nologin")
    run("systemd-tmpfiles", f"--root={root}", "--create", "ecd.conf")
    models = (root / "var/lib/ecd/models").stat()
    assert models.st_uid == int(user.split(":")[2])
    assert stat.S_IMODE(models.st_mode) == stat.S_IMODE((root / "etc/ecd").stat().st_mode) == 0o750


def test_settings_are_valid_and_agree_with_the_units(root: Path) -> None:
    cloud = load_config(CloudConfig, root / "etc/ecd/cloud.yaml", {})
    edge = load_config(EdgeConfig, root / "etc/ecd/edge.yaml", {})
    units = {name: (root / "etc/systemd/system" / name).read_text() for name in UNITS}
    assert f"ListenStream={edge.socket}\n" in units["ecd-edge.socket"]
    assert f"RuntimeDirectory={edge.socket.parent.name}\n" in units["ecd-edge.service"]
    assert f"RuntimeDirectory={cloud.socket.parent.name}\n" in units["ecd-cloud.service"]
    for config, unit in ((cloud, "ecd-cloud.service"), (edge, "ecd-edge.service")):
        (stop,) = [line for line in units[unit].splitlines() if line.startswith("TimeoutStopSec=")]
        assert int(stop.partition("=")[2]) > config.drain_s


@pytest.mark.parametrize("role", ["cloud", "edge"])
def test_a_crash_leaves_no_image_of_memory_on_the_disk(role: str) -> None:
    unit = (HOME / "systemd" / f"ecd-{role}.service").read_text()
    assert "\nLimitCORE=0\n" in unit
    assert "\nWatchdogSec=" in unit  # which ends it with SIGABRT


@pytest.mark.parametrize("role", ["cloud", "edge"])
def test_there_are_descriptors_for_all_connections(role: str) -> None:
    assert "\nLimitNOFILE=65536\n" in (HOME / "systemd" / f"ecd-{role}.service").read_text()


def test_installing_again_keeps_the_settings(root: Path) -> None:
    mine = root / "etc/ecd/edge.yaml"
    mine.write_text("model: mine\n")
    unit = root / "etc/systemd/system/ecd-edge.service"
    unit.write_text("old")
    install(root)
    assert mine.read_text() == "model: mine\n"
    assert "Type=notify" in unit.read_text()
    assert stat.S_IMODE((root / "etc/ecd/cloud.yaml").stat().st_mode) == 0o640
