"""What a user may and may not ask of vLLM's engine, said without vLLM."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.engine.vllm_args import OWN, REFUSED, SETTINGS, SINGLE, refusal

FREE = ("tensor_parallel_size", "quantization", "gpu_memory_utilization", "max_model_len", "dtype")


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"},
        {"max_model_len": 1024, "quantization": "awq"},
        {"pipeline_parallel_size": 1, "data_parallel_size": 1},
    ],
)
def test_what_vllm_alone_decides_is_let_through(args: dict[str, Any]) -> None:
    assert refusal(args) is None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"scheduler_cls": "x.Y"}, "engine_args.scheduler_cls is ecd's own"),
        ({"scheduling_policy": "fcfs"}, "engine_args.scheduling_policy is ecd's own"),
        ({"worker_cls": "auto"}, "engine_args.worker_cls is ecd's own"),
        ({"speculative_config": {"method": "ngram"}}, "engine_args.speculative_config is ecd's own"),
        ({"async_scheduling": False}, "engine_args.async_scheduling is ecd's own"),
        ({"model": "a/b"}, "the setting `model`"),
        ({"max_num_seqs": 8}, "the setting `sessions`"),
        ({"pipeline_parallel_size": 2}, "engine_args.pipeline_parallel_size 2 is not supported"),
        ({"pipeline_parallel_size": "2"}, "tensor_parallel_size spreads a model"),
        ({"data_parallel_size": 4}, "an `ecd cloud` for each replica"),
        ({"spec_tokens": 3}, "engine_args.spec_tokens is ecd's own"),
        ({"max_num_active_seqs": 3}, "the setting `sessions`"),
        ({"tokenizer": "a/b"}, "engine_args.tokenizer is not taken: tokenizer and"),
        ({"override_generation_config": {"top_k": 1}}, "sampling settings come with each request; leave it"),
        ({"enable_lora": True}, "no request names an adapter"),
    ],
)
def test_what_is_refused_is_named_with_what_to_do(args: dict[str, Any], said: str) -> None:
    reason = refusal(args)
    assert reason is not None
    assert said in reason


@given(
    st.dictionaries(st.sampled_from(FREE), st.integers(), max_size=3),
    st.sampled_from([*OWN, *SETTINGS, *SINGLE, *REFUSED]),
)
def test_no_company_hides_a_refused_one(others: dict[str, Any], name: str) -> None:
    assert refusal(others) is None
    reason = refusal(others | {name: 2})
    assert reason is not None
    assert f"engine_args.{name}" in reason


def test_vllm_is_not_imported() -> None:
    code = "import sys, ecd.engine.vllm_args, ecd.config; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
