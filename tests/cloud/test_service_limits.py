"""What one OPEN may cost the cloud: refused by its lengths alone, before its text is looked at."""

import socket

from ecd.addresses import split_address
from ecd.engine.llama import LlamaModel
from ecd.lab.system import DaemonProcess, address_of
from ecd.wire.connection import Connection, Received, Role, Settings
from ecd.wire.messages import Open, Pace, Reset


def answer_to(cloud: DaemonProcess, target: LlamaModel, **fields: object) -> Reset:
    """The RESET that an OPEN with these fields gets."""
    connection = Connection(Settings(Role.EDGE, "test", target.fingerprint()), 0.0)
    with socket.create_connection(split_address(address_of(cloud))) as sock:
        while True:
            sock.sendall(b"".join(frame.data for frame in connection.output()))
            for event in connection.receive(sock.recv(1 << 16), 0.0):
                if isinstance(event, Received):
                    assert isinstance(event.message, Reset)
                    return event.message
            if connection.peer is not None and not connection.streams:
                whole = {
                    "prefix_hash": None,
                    "prefix_len": 0,
                    "prompt": (1,),
                    "committed": (),
                    "sampling": {},
                    "max_tokens": 8,
                    "stop": (),
                    "pace": Pace(0, 1),
                }
                connection.send(Open(connection.new_stream(), **(whole | fields)))  # type: ignore[arg-type]


def test_a_huge_answer_to_replay_is_refused_at_once(cloud: DaemonProcess, target: LlamaModel) -> None:
    reset = answer_to(cloud, target, committed=(5,) * 1_900_000, max_tokens=(1 << 32) - 1)
    assert "do not fit the cloud's context" in reset.message
    assert cloud.call("status")["running"] == 0


def test_many_stop_strings_are_refused(cloud: DaemonProcess, target: LlamaModel) -> None:
    reset = answer_to(cloud, target, stop=tuple(f"stop {n}" for n in range(4000)))
    assert "4000 stop strings are more than 16" in reset.message


def test_a_prefix_that_the_cloud_does_not_hold_is_told(cloud: DaemonProcess, target: LlamaModel) -> None:
    assert "send the whole prompt" in answer_to(cloud, target, prefix_hash=b"x" * 32, prefix_len=64).message
