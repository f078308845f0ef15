"""Which of vLLM's engine arguments a user may set: those that ecd neither sets itself nor cannot bear.

Pure; vLLM need not be installed. Whether vLLM knows an argument, and takes its value, is vLLM's to say.
"""

from collections.abc import Mapping
from typing import Any

# Without these ecd's hints do not get into vLLM's steps.
OWN = (
    "scheduler_cls",
    "scheduling_policy",
    "worker_cls",
    "speculative_config",
    "spec_method",
    "spec_model",
    "spec_tokens",
    "async_scheduling",
)
# What has a setting of ecd's for it.
SETTINGS = {"model": "model", "max_num_seqs": "sessions", "max_num_active_seqs": "sessions"}
# Only 1 of each: what ecd drives is one engine core in lock step, and more has not been shown to work.
SINGLE = {
    "pipeline_parallel_size": "tensor_parallel_size spreads a model over several GPUs and nodes",
    "data_parallel_size": "run an `ecd cloud` for each replica",
}
# vLLM would take these. Most would then not be heeded, and nobody would notice.
_FOLDER = "tokenizer and configuration are those of `model`; give a folder that has them beside the weights"
_REQUEST = "sampling settings come with each request"
_ELSEWHERE = "whose turn it is cannot be kept to where KV cache is elsewhere"
REFUSED = {
    "tokenizer": _FOLDER,
    "tokenizer_revision": _FOLDER,
    "hf_config_path": _FOLDER,
    "generation_config": _REQUEST,
    "override_generation_config": _REQUEST,
    "logits_processors": _REQUEST,
    "logprobs_mode": "log-probabilities are those of the raw distribution",
    "enable_lora": "no request names an adapter; merge it into the model",
    "kv_transfer_config": _ELSEWHERE,
    "kv_offloading_size": _ELSEWHERE,
}


def refusal(args: Mapping[str, Any]) -> str | None:
    """Why vLLM is not started with these engine arguments, and what to do instead; None where it may be."""
    for name in args:
        if name in OWN:
            return f"engine_args.{name} is ecd's own to set, verification depends on it; leave it out"
        if name in SETTINGS:
            return f"engine_args.{name} is given by the setting `{SETTINGS[name]}`; set that instead"
        if name in SINGLE and args[name] != 1:
            return f"engine_args.{name} {args[name]!r} is not supported, only 1 is; {SINGLE[name]}"
        if name in REFUSED:
            return f"engine_args.{name} is not taken: {REFUSED[name]}; leave it out"
    return None
