"""Whose turn it is in vLLM's scheduler, and who gives way: the scheduler as it is, and no engine."""

from collections.abc import Sequence
from typing import Any

import pytest

from ecd.cloud.verifier import Work
from ecd.models.fetch import resolve
from ecd.sampling import Sampling

pytest.importorskip("vllm")

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from ecd.cloud.vllm_verifier import TurnScheduler, VllmVerifier, _Engine

pytestmark = pytest.mark.vllm

BLOCK = 16


def scheduler_of(blocks: int, watermark: float = 0.0) -> TurnScheduler:
    """One with room for so many blocks, of which it keeps the share `watermark` free where it can."""
    config = EngineArgs(
        model=str(resolve("smollm2-135m-hf")),
        max_model_len=8 * BLOCK,
        max_num_seqs=4,
        async_scheduling=False,
        scheduling_policy="priority",
        enable_prefix_caching=False,
        watermark=watermark,
        speculative_config={
            "method": "custom_class",
            "model": "ecd.cloud.vllm_worker.NoDrafts",
            "num_speculative_tokens": 4,
        },
    ).create_engine_config()
    # One is vLLM's own.
    config.cache_config.num_gpu_blocks = blocks + 1
    layers = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    room = KVCacheConfig(blocks + 1, [], [KVCacheGroupSpec(["layer"], layers)])
    return TurnScheduler(config, room, StructuredOutputManager(config), block_size=BLOCK)


def ask(scheduler: TurnScheduler, name: str, tokens: int) -> Request:
    """A request with a prompt of its own."""
    params = SamplingParams(temperature=0.0, max_tokens=8 * BLOCK, ignore_eos=True)
    request = Request(name, [ord(name)] * tokens, params, None)
    scheduler.add_request(request)
    return request


def step(scheduler: TurnScheduler, turn: Sequence[Request]) -> SchedulerOutput:
    """One step for these, in which each that has been read gets one token more."""
    work = {
        request.request_id: Work(key, list(request.all_token_ids), 1, Sampling(), [])
        for key, request in enumerate(turn)
    }
    scheduler.begin(work)
    return computed(scheduler)[0]


def computed(scheduler: TurnScheduler) -> tuple[SchedulerOutput, Any]:
    """What is scheduled, and what comes out where a model says 7 each time."""
    output = scheduler.schedule()
    names = list(output.num_scheduled_tokens)
    said = [[7] if name in scheduler.rows else [] for name in names]
    places = {name: place for place, name in enumerate(names)}
    made = ModelRunnerOutput(names, places, sampled_token_ids=said)
    return output, scheduler.update_from_output(output, made)


class Core:
    """As much of vLLM's engine core as a verifier drives, without a model."""

    def __init__(self, scheduler: TurnScheduler):
        self.scheduler = scheduler
        self.request_block_hasher = None
        self.add_request = scheduler.add_request

    def abort_requests(self, names: list[str]) -> None:
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    def step_fn(self) -> tuple[Any, bool]:
        return computed(self.scheduler)[1], True


def test_one_parked_session_gives_way_where_that_is_enough() -> None:
    scheduler = scheduler_of(6)
    running, *parked = (ask(scheduler, name, 2 * BLOCK - 1) for name in "abc")
    assert len(step(scheduler, [running, *parked]).num_scheduled_tokens) == 3
    step(scheduler, [running])
    # Its third block; all six are taken.
    assert step(scheduler, [running]).num_scheduled_tokens == {"a": 1}
    assert (scheduler.evictions, scheduler.preemptions) == (1, 0)


def test_parked_sessions_give_way_to_one_that_vllm_finds_no_room_for() -> None:
    scheduler = scheduler_of(6, watermark=0.9)
    parked = ask(scheduler, "a", 2 * BLOCK - 1)
    step(scheduler, [parked])
    # Four blocks are free and two would do, but vLLM wants most of them left.
    waiting = ask(scheduler, "b", 2 * BLOCK - 1)
    assert step(scheduler, [waiting]).num_scheduled_tokens == {"b": 2 * BLOCK - 1}
    assert scheduler.evictions == 1
    # And the other way round, from what is left of its text.
    assert step(scheduler, [parked]).num_scheduled_tokens == {"a": 2 * BLOCK}
    assert scheduler.evictions == 2


def test_a_text_that_is_as_long_as_may_be_can_be_read_ahead_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = scheduler_of(8)
    monkeypatch.setattr(VllmVerifier, "_start", lambda self: _Engine(Core(scheduler), {}))
    verifier = VllmVerifier("no model", sessions=4, context_tokens=8 * BLOCK, max_verify=4, engine_args={})
    full = [5] * verifier.capacity.session_tokens
    for _ in range(2):
        result = verifier.step([Work(1, full, len(full), Sampling(), [])])
        assert not result.failed
        assert result.judged[1].verdict.tokens == (7,)
