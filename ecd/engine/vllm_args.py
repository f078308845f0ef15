"""Which of vLLM's engine arguments a user may set: those that neither ecd sets itself nor cannot bear.

Pure; vLLM need not be installed. Whether vLLM knows an argument, and takes its value, is vLLM's to say.
"""

from collections.abc import Mapping
from typing import Any

# Without these ecd's hints do not get into vLLM's steps.
OWN = ("scheduler_cls", "scheduling_policy", "worker_cls", "speculative_config", "async_scheduling")
# What has a setting of ecd's for it.
SETTINGS = {"model": "model", "max_num_seqs": "sessions"}
# Only 1 of each: what ecd drives is one engine core in lock step, and more has not been shown to work.
SINGLE = {
    "pipeline_parallel_size": "tensor_parallel_size spreads a model over several GPUs and nodes",
    "data_parallel_size": "run an `ecd cloud` for each replica",
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
    return None
