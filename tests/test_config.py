"""Settings files: what is read, what is refused and in which words."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ecd.config import (
    CloudAddress,
    CloudConfig,
    EdgeConfig,
    Http,
    KvCache,
    KvDisk,
    default_socket,
    load_config,
)
from ecd.errors import ConfigError
from ecd.trust.settings import EdgeTls


def written(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text)
    return file


def test_a_file_is_read_with_defaults_around_it(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "model: m\nkeepalive:\n  ping_interval_s: 0.5\n"
        "ahead_tokens: 8\npatience_ms: rounds\nobjective: cost\n",
    )
    config = load_config(EdgeConfig, file, {})
    assert (config.model, config.ahead_tokens, config.patience_ms) == ("m", 8, "rounds")
    assert (config.objective, config.hint_tokens, config.lookup) == ("cost", None, True)
    assert (config.keepalive.ping_interval_s, config.keepalive.silence_s) == (0.5, 6.0)
    assert (config.cloud, config.threads, config.log_level) == ("127.0.0.1:7040", 1, "info")


def test_flags_go_over_the_file_unless_they_are_not_given(tmp_path: Path) -> None:
    file = written(tmp_path, "model: m\nsessions: 3\nthreads: 2\n")
    config = load_config(CloudConfig, file, {"sessions": 5, "threads": None, "insecure": False})
    assert (config.model, config.sessions, config.threads) == ("m", 5, 2)


def test_a_flag_for_a_section_leaves_the_rest_of_it_as_the_file_has_it(tmp_path: Path) -> None:
    file = written(tmp_path, "model: m\nhttp:\n  api_keys: [secret]\n")
    http = load_config(EdgeConfig, file, {"http__listen": "0.0.0.0:8082", "http": None}).http
    assert http == Http(listen="0.0.0.0:8082", api_keys=["secret"])
    assert load_config(EdgeConfig, file, {"http": False}).http is None
    assert load_config(EdgeConfig, file, {"http": False, "http__listen": "0.0.0.0:8082"}).http is None
    off = written(tmp_path, "model: m\nhttp: off\n")
    assert load_config(EdgeConfig, off, {}).http is None
    assert load_config(EdgeConfig, off, {"http__listen": "[::1]:1"}).http == Http(listen="[::1]:1")


def test_http_is_on_for_this_machine_alone_unless_something_else_is_said() -> None:
    http = load_config(EdgeConfig, None, {"model": "m"}).http
    assert http == Http(listen="127.0.0.1:8082", socket=None, api_keys=[], cors_origins=[])


@pytest.mark.parametrize("kind", [CloudConfig, EdgeConfig])
def test_texts_that_are_over_are_kept_in_memory_unless_something_else_is_said(
    kind: type[CloudConfig] | type[EdgeConfig], tmp_path: Path
) -> None:
    assert load_config(kind, None, {"model": "m"}).kv_cache == KvCache(max_bytes=256 << 20, disk=None)
    for off in ("off", "null", "false"):
        assert load_config(kind, written(tmp_path, f"model: m\nkv_cache: {off}\n"), {}).kv_cache is None
    disk = written(tmp_path, "model: m\nkv_cache:\n  max_bytes: 0\n  disk: {path: /x, max_bytes: 9999999}\n")
    kept = KvCache(max_bytes=0, disk=KvDisk(path=Path("/x"), max_bytes=9_999_999))
    assert load_config(kind, disk, {}).kv_cache == kept


def test_clouds_are_one_or_several_with_weights(tmp_path: Path) -> None:
    assert load_config(EdgeConfig, None, {"model": "m"}).clouds == []
    one = load_config(EdgeConfig, written(tmp_path, "model: m\nclouds: 127.0.0.1:1\n"), {})
    assert one.clouds == [CloudAddress(address="127.0.0.1:1")]
    text = "model: m\nclouds: ['[::1]:2', {address: 127.0.0.1:1, weight: 2.5}]\n"
    several = load_config(EdgeConfig, written(tmp_path, text), {}).clouds
    assert [(each.address, each.weight) for each in several] == [("[::1]:2", 1.0), ("127.0.0.1:1", 2.5)]


def test_flags_alone_are_enough() -> None:
    config = load_config(CloudConfig, None, {"model": "m", "max_verify": 0})
    assert (config.model, config.max_verify) == ("m", 0)


def test_an_empty_file_is_a_file_without_settings(tmp_path: Path) -> None:
    assert load_config(EdgeConfig, written(tmp_path, "# nothing\n"), {"model": "m"}).model == "m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: m\nahed_tokens: 3\n",
            "ahed_tokens is no setting; known here: ahead_tokens, assist, audit_share, cloud",
        ),
        ("model: m\nkeepalive:\n  ping_interval: 3\n", "keepalive.ping_interval is no setting"),
        ("model: m\nreconnect: {first_ms: 3}\n", "reconnect.first_ms is no setting"),
        ("model: m\nlink_wait_s: 5s\n", "link_wait_s: Input should be a valid number"),
        ("model: m\nlink_wait_s: 0\n", "link_wait_s: Input should be greater than 0"),
        ("model: m\nkeepalive:\n  silence_s: 100000\n", "keepalive.silence_s: Input should be less than"),
        ("model: m\nsessions: 0\n", "sessions: Input should be greater than"),
        ("model: m\nsessions: 2.5\n", "sessions: Input should be a valid integer"),
        ("model: m\nthreads: many\n", "threads: Input should be a valid integer"),
        ("model: m\nlog_level: loud\n", "log_level: Input should be 'debug', 'info', 'warning' or 'error'"),
        ("model: m\ntoken: ''\n", "token: String should have at least 1 character"),
        ("model: m\npatience_ms: soon\n", "patience_ms"),
        ("model: m\nobjective: speed\n", "objective: Input should be 'latency', 'balanced' or 'cost'"),
        ("model: m\nhint_tokens: 0\n", "hint_tokens: Input should be greater than or equal to 1"),
        ("model: m\nmode: fast\n", "mode: Input should be 'exact', 'confident', 'edge-only' or 'cloud-only'"),
        ("model: m\nthreshold: 1.5\n", "threshold"),
        ("model: m\ntarget_agreement: 1\n", "target_agreement: Input should be less than or equal to 0.999"),
        ("model: m\naudit_share: -0.1\n", "audit_share: Input should be greater than or equal to 0"),
        ("model: m\nconfidence: {strategy: gut}\n", "confidence.strategy: Input should be 'max_prob'"),
        (
            "model: m\nconfidence: {weights: {max_prob: 0}}\n",
            "confidence: weights: one of them must be above 0",
        ),
        ("model: m\nahead_tokens: -1\n", "ahead_tokens: Input should be greater than or equal to 0"),
        ("model: m\nlookup: often\n", "lookup: Input should be a valid boolean"),
        ("model: m\ncloud: nowhere\n", "cloud: must be HOST:PORT, for example 127.0.0.1:7040"),
        ("model: m\ncloud: 127.0.0.1:70400\n", "cloud: must be HOST:PORT"),
        (
            "model: m\ncloud: 10.0.0.7:7040\n",
            "the cloud 10.0.0.7:7040 is another machine and the edge shows no token",
        ),
        ("model: m\ncloud: 127.0.0.1:0\n", "port 0 is no address to connect to"),
        ("model: m\nclouds: []\n", "clouds: Value should have at least 1 item"),
        ("model: m\nclouds: [127.0.0.1]\n", "clouds.0.address: must be HOST:PORT"),
        (
            "model: m\nclouds: [{adress: 127.0.0.1:1}]\n",
            "clouds.0.adress is no setting; known here: address,",
        ),
        ("model: m\nclouds: [{weight: 2}]\n", "clouds.0.address is missing; set it in the file"),
        ("model: m\nclouds: [{address: '127.0.0.1:1', weight: 0}]\n", "clouds.0.weight: Input should be"),
        ("model: m\nclouds: 127.0.0.1:0\n", "clouds: port 0 is no address to connect to"),
        ("model: m\nclouds: [127.0.0.1:1, 10.0.0.7:1]\n", "the cloud 10.0.0.7:1 is another machine"),
        ("model: m\nclouds: clouds.example:1\n", "the cloud clouds.example:1 is another machine"),
        ("model: m\ncloud: 127.0.0.1:1\nclouds: 127.0.0.1:2\n", "`cloud` and `clouds` are both set"),
        ("model: m\nlink_loss: retry\n", "link_loss: Input should be 'wait', 'degrade' or 'fail'"),
        ("model: m\nkeepalive: {silence_s: 1}\n", "silence_s must be longer than ping_interval_s"),
        ("model: m\nreconnect: {first_s: 9}\n", "longest_s must not be shorter than first_s"),
        ("model: m\nhttp: {lissten: 1}\n", "http.lissten is no setting; known here: allowed_hosts, api_keys"),
        ("model: m\nhttp: {listen: 0.0.0.0:80}\n", "can be reached from other machines; set `api_keys`"),
        ("model: m\nhttp: {listen: null}\n", "http: listen and socket are both null"),
        ("model: m\nhttp: {api_keys: ['']}\n", "http.api_keys.0: String should match"),
        ("model: m\nhttp: {allowed_hosts: ['http://a']}\n", "http.allowed_hosts.0: String should match"),
        ("model: m\nhttp: 5\n", "http: Input should be a valid dictionary"),
        ("model: m\nkv_cache: 5\n", "kv_cache: Input should be a valid dictionary"),
        ("model: m\nkv_cache: {bytes: 5}\n", "kv_cache.bytes is no setting; known here: disk, max_bytes"),
        ("model: m\nkv_cache: {max_bytes: -1}\n", "kv_cache.max_bytes: Input should be greater than"),
        ("model: m\nkv_cache: {disk: {}}\n", "kv_cache.disk.path is missing"),
        ("model: m\nkv_cache: {disk: {pth: x}}\n", "kv_cache.disk.pth is no setting; known here: max_bytes"),
        ("sessions: 3\n", "model is missing; set it in the file or with --model"),
        ("- model\n", "must hold settings by name, not a list"),
        ("just text\n", "must hold settings by name, not a str"),
        ("model: [unclosed\n", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_path(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(EdgeConfig, file, {})
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(CloudConfig, written(tmp_path, "max_verify: -1\nqueu: 2\n"), {})
    for part in ("model is missing", "max_verify: ", "queu is no setting"):
        assert part in str(error.value)


def test_without_a_file_none_is_blamed() -> None:
    with pytest.raises(ConfigError, match=r"^bad settings: model is missing"):
        load_config(EdgeConfig, None, {"model": None})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nothing\.yaml: No such file"):
        load_config(EdgeConfig, tmp_path / "nothing.yaml", {})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not YAML"):
        load_config(EdgeConfig, binary, {})


def test_an_unknown_key_in_a_section_is_told_the_names_of_that_section(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(EdgeConfig, written(tmp_path, "model: m\nkeepalive:\n  ping_interval: 3\n"), {})
    assert str(error.value).endswith(
        "keepalive.ping_interval is no setting; known here: handshake_s, ping_interval_s, silence_s"
    )


@pytest.mark.parametrize("value", [-5, 4_000_001, float("nan"), float("inf")])
def test_impossible_patience_is_refused_at_start(value: float) -> None:
    with pytest.raises(ConfigError, match="patience_ms"):
        load_config(EdgeConfig, None, {"model": "m", "patience_ms": value})


@pytest.mark.parametrize("text", ["[]\n", "0\n", "false\n"])
def test_a_file_of_something_else_is_refused_even_when_that_is_empty(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="must hold settings by name"):
        load_config(EdgeConfig, written(tmp_path, text), {"model": "m"})


def test_defaults_and_ranges_of_what_the_engine_holds() -> None:
    cloud, edge = (load_config(kind, None, {"model": "m"}) for kind in (CloudConfig, EdgeConfig))
    for config in (cloud, edge):
        assert (config.sessions, config.context_tokens) == (8, 4096)


def test_threads_are_the_assists_where_the_target_runs_on_vllm() -> None:
    flags = {"model": "m", "engine": "vllm", "threads": 4, "assist": "d"}
    assert load_config(CloudConfig, None, flags).threads == 4


def test_vllm_takes_arguments_by_name(tmp_path: Path) -> None:
    file = written(
        tmp_path, "model: m\nengine: vllm\nengine_args:\n  tensor_parallel_size: 2\n  dtype: bfloat16\n"
    )
    config = load_config(CloudConfig, file, {})
    assert (config.engine, config.engine_args) == ("vllm", {"tensor_parallel_size": 2, "dtype": "bfloat16"})
    assert load_config(CloudConfig, None, {"model": "m"}).engine == "llama"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"engine": "tgi"}, "engine: Input should be 'llama' or 'vllm'"),
        ({"engine_args": {"dtype": "float32"}}, "engine_args are for `engine: vllm`"),
        ({"engine": "vllm", "engine_args": ["dtype"]}, "engine_args: Input should be a valid dictionary"),
        (
            {"engine": "vllm", "engine_args": {"pipeline_parallel_size": 2}},
            "engine_args.pipeline_parallel_size 2",
        ),
        ({"engine": "vllm", "engine_args": {"worker_cls": "x"}}, "engine_args.worker_cls is ecd's own"),
        ({"engine": "vllm", "threads": 2}, "threads is for `engine: llama`"),
        ({"engine": "vllm", "stable": True}, "stable is for `engine: llama`"),
        ({"engine": "vllm", "kv_cache": {}}, "kv_cache is for `engine: llama`"),
    ],
)
def test_what_does_not_go_with_the_engine_is_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(CloudConfig, None, {"model": "m", **flags})
    assert message in str(error.value)


def test_the_pacing_controller_decides_what_is_not_fixed() -> None:
    edge = load_config(EdgeConfig, None, {"model": "m"})
    assert edge.objective == "balanced"
    assert (edge.ahead_tokens, edge.patience_ms, edge.hint_tokens, edge.lookup) == (None, None, None, True)


@pytest.mark.parametrize(
    ("kind", "name", "most"),
    [
        (CloudConfig, "max_verify", 62),
        (EdgeConfig, "patience_ms", 4_000_000),
        (EdgeConfig, "hint_tokens", 64),
        (EdgeConfig, "ahead_tokens", 1024),
    ],
)
def test_the_longest_are_taken_and_one_more_is_not(
    kind: type[CloudConfig] | type[EdgeConfig], name: str, most: int
) -> None:
    assert getattr(load_config(kind, None, {"model": "m", name: most}), name) == most
    with pytest.raises(ConfigError, match=name):
        load_config(kind, None, {"model": "m", name: most + 1})


OTHER_MACHINES = ["10.1.2.3:7040", "0.0.0.0:7040", "[::]:7040", "cloud.example:7040"]
PAIR = {"certificate": "cloud.crt", "key": "cloud.key"}


@pytest.mark.parametrize("address", OTHER_MACHINES)
@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ({}, ["the link is not encrypted (no `tls`)", "edges need no token (no `tokens`)"]),
        ({"tls": PAIR}, ["edges need no token (no `tokens`)"]),
        ({"tokens": "tokens.json"}, ["the link is not encrypted (no `tls`)"]),
        ({"tls": PAIR, "tokens": "tokens.json"}, []),
    ],
)
def test_a_cloud_that_others_can_reach_has_tls_and_tokens_or_says_that_it_is_insecure(
    address: str, given: dict[str, Any], lacking: list[str]
) -> None:
    settings = {"model": "m", "listen": address, **given}
    if lacking:
        with pytest.raises(ConfigError, match="insecure: true") as error:
            load_config(CloudConfig, None, settings)
        assert lacking[0] in str(error.value)
    else:
        assert load_config(CloudConfig, None, settings).dangers() == []
    # And then it is warned of each, at every start.
    told = load_config(CloudConfig, None, settings | {"insecure": True}).dangers()
    assert len(told) == len(lacking)
    for warning, each in zip(told, lacking, strict=True):
        assert warning.startswith(f"{address} can be reached from other machines and {each}; set `t")


@pytest.mark.parametrize("address", OTHER_MACHINES)
def test_an_edge_of_a_cloud_elsewhere_encrypts_by_itself_and_needs_a_token(address: str) -> None:
    with pytest.raises(ConfigError, match=r"shows no token.*`ecd token create`"):
        load_config(EdgeConfig, None, {"model": "m", "cloud": address})
    config = load_config(EdgeConfig, None, {"model": "m", "cloud": address, "token": "t"})
    assert (config.tls, config.dangers()) == (EdgeTls(), [])
    plain = load_config(EdgeConfig, None, {"model": "m", "cloud": address, "insecure": True})
    assert plain.tls is None
    assert [f"the cloud {address} is another machine" in each for each in plain.dangers()] == [True, True]
    half = load_config(EdgeConfig, None, {"model": "m", "cloud": address, "insecure": True, "tls": {}})
    assert ["no `token`" in each for each in half.dangers()] == [True]


def test_tls_settings_are_checked_by_name() -> None:
    with pytest.raises(ConfigError, match=r"tls\.key is missing"):
        load_config(CloudConfig, None, {"model": "m", "tls": {"certificate": "c"}})
    with pytest.raises(ConfigError, match="certificate and key belong together"):
        load_config(EdgeConfig, None, {"model": "m", "tls": {"certificate": "c"}})
    with pytest.raises(
        ConfigError, match=r"tls\.cert is no setting; known here: certificate, client_ca, key"
    ):
        load_config(CloudConfig, None, {"model": "m", "tls": PAIR | {"cert": "c"}})
    with pytest.raises(ConfigError, match=r"limits\.hints is no setting; known here: bytes_in_flight"):
        load_config(CloudConfig, None, {"model": "m", "limits": {"hints": 3}})


def test_a_limit_may_be_taken_away() -> None:
    limits = load_config(CloudConfig, None, {"model": "m", "limits": {"hints_per_s": None}}).limits
    assert (limits.hints_per_s, limits.sessions) == (None, 64)


@pytest.mark.parametrize("address", ["127.0.0.1:7040", "127.3.4.5:1", "localhost:7040", "[::1]:7040"])
def test_loopback_needs_no_leave(address: str) -> None:
    assert load_config(CloudConfig, None, {"model": "m", "listen": address}).listen == address
    assert load_config(EdgeConfig, None, {"model": "m", "cloud": address}).cloud == address


def test_the_socket_lies_in_the_users_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_socket("edge") == Path("/run/user/7/ecd/edge.sock")
    assert load_config(CloudConfig, None, {"model": "m"}).socket == Path("/run/user/7/ecd/cloud.sock")
    assert load_config(EdgeConfig, None, {"model": "m"}).socket == Path("/run/user/7/ecd/edge.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket("cloud") == Path(f"/tmp/ecd-{os.getuid()}/cloud.sock")
    assert load_config(EdgeConfig, None, {"model": "m", "socket": "/x/y.sock"}).socket == Path("/x/y.sock")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_the_folder_in_place_of_that_one_is_this_user_s_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    user = 3_000_000_000 + os.getpid()
    monkeypatch.setattr(os, "getuid", lambda: user)
    folder = Path(f"/tmp/ecd-{user}")
    folder.mkdir(mode=0o700)
    try:
        with pytest.raises(ConfigError, match="belongs to somebody else"):
            default_socket("edge")
        os.chown(folder, user, -1)
        assert default_socket("edge") == folder / "edge.sock"
        folder.chmod(0o777)
        with pytest.raises(ConfigError, match="others can change it"):
            default_socket("edge")
    finally:
        folder.rmdir()
    folder.symlink_to("/tmp")
    try:
        os.lchown(folder, user, -1)
        with pytest.raises(ConfigError, match="belongs to somebody else"):
            default_socket("edge")
    finally:
        folder.unlink()


def test_metrics_stay_on_this_machine_unless_told_otherwise() -> None:
    assert CloudConfig(model="m", metrics="127.0.0.1:9464").metrics == "127.0.0.1:9464"
    with pytest.raises(ValidationError, match=r"metrics 0\.0\.0\.0:9464 can be read from other machines"):
        CloudConfig(model="m", metrics="0.0.0.0:9464")
    (danger,) = CloudConfig(model="m", metrics="0.0.0.0:9464", insecure=True).dangers()
    assert "by anybody; listen on 127.0.0.1" in danger


def test_a_hand_over_without_a_token_is_warned_of_on_loopback_too() -> None:
    (warning,) = EdgeConfig(model="m", handover="127.0.0.1:7041").warnings()
    assert "be it another user of this machine, may hand answers over (no `token`)" in warning
    assert EdgeConfig(model="m", handover="127.0.0.1:7041", token="ecd_x").warnings() == []


@pytest.mark.parametrize(
    ("mode", "settings", "said"),
    [
        (
            0o644,
            "token: ecd_x",
            "holds `token` and others than its owner could read or change it (mode 0644)",
        ),
        (0o660, "http: {api_keys: [a-key-that-is-long-enough]}", "holds `http.api_keys` and others"),
        (0o640, "token: ecd_x", None),
        (0o600, "token: ecd_x", None),
        (0o644, "sessions: 3", None),
    ],
)
def test_a_file_with_secrets_that_others_can_read_is_warned_of(
    tmp_path: Path, mode: int, settings: str, said: str | None
) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text(f"model: m\n{settings}\n")
    file.chmod(mode)
    config = load_config(EdgeConfig, file, {})
    # It starts all the same.
    assert config.dangers() == []
    if said is None:
        assert config.warnings() == []
    else:
        (warning,) = config.warnings()
        assert said in warning
        assert warning.endswith(f"`chmod 600 {file}`")


def test_a_hand_over_stays_on_this_machine_unless_told_otherwise() -> None:
    assert EdgeConfig(model="m", handover="127.0.0.1:7041").dangers() == []
    with pytest.raises(ValidationError, match=r"handover 0\.0\.0\.0 is not this machine.*`insecure: true`"):
        EdgeConfig(model="m", handover="0.0.0.0:7041")
    (danger,) = EdgeConfig(model="m", handover="0.0.0.0:7041", insecure=True).dangers()
    assert "what is handed over is not encrypted; go through a tunnel" in danger
