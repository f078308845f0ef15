"""From a request of OpenAI's API to the answers that it asks for.

Pure: defaults, names and choices are translated here, and nothing is started. Several choices are several
answers, whose seeds count up from the request's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ecd.edge.gateway.schema import MAX_U64, Asked, ChatRequest, CompletionRequest, EcdOptions
from ecd.edge.request import Request
from ecd.edge.run_args import AnswerSettings, RunArgs, request_of
from ecd.errors import BadRequest
from ecd.prompt import Tokenizer

# OpenAI's defaults, where they differ from those of `run`.
TEMPERATURE = 1.0
COMPLETION_TOKENS = 16
# What `ignore_eos` adds to the logit of a token that ends a text: no difference of logits makes up for it.
NEVER = -1000.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What requests are translated by: ids that end a text, and the room behind so many prompt tokens."""

    tokenizer: Tokenizer
    n_vocab: int
    settings: AnswerSettings
    ends: frozenset[int]
    room_behind: Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a response. `echo` is the text that it starts with."""

    request: Request
    echo: str = ""


def chat_choices(asked: ChatRequest, terms: Terms) -> list[Choice]:
    """The answers to a conversation, unless told as long as the context lets them be. Raises BadRequest."""
    max_tokens = asked.max_completion_tokens or asked.max_tokens
    request = _request(
        asked,
        terms,
        prompt=[message.to_map() for message in asked.messages],
        max_tokens=max_tokens or 1,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
    if max_tokens is None:
        request = replace(request, max_tokens=terms.room_behind(len(request.prompt)))
    return _each_seed(asked, Choice(request))


def completion_choices(asked: CompletionRequest, terms: Terms) -> list[Choice]:
    """The answers to one or more prompts, in the order of the prompts. Raises BadRequest."""
    choices = []
    for prompt in asked.prompts:
        request = _request(
            asked,
            terms,
            prompt=prompt,
            chat=False,
            max_tokens=asked.max_tokens or COMPLETION_TOKENS,
            logprobs=asked.logprobs,
        )
        choices += _each_seed(asked, Choice(request, _echo(prompt, terms) if asked.echo else ""))
    return choices


def _echo(prompt: str | list[int], terms: Terms) -> str:
    if isinstance(prompt, str):
        return prompt
    # llama.cpp ends the process when it is asked for the text of an id that it does not have.
    if max(prompt) >= terms.n_vocab:
        raise BadRequest(
            f"the prompt has a token id that is not in the vocabulary of {terms.n_vocab}", param="prompt"
        )
    return text_of(prompt, terms.tokenizer)


def parameter_of(argument: str, *, chat: bool) -> str:
    """What requests call an argument of `run`."""
    if argument in EcdOptions.model_fields:
        return f"ecd.{argument}"
    return "messages" if argument == "prompt" and chat else argument


def text_of(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of token ids, names of control tokens included."""
    return b"".join(tokenizer.piece(token, control=True) for token in ids).decode(errors="replace")


def _request(asked: Asked, terms: Terms, **args: Any) -> Request:
    options = asked.ecd or EcdOptions()
    biases = [(int(token), bias) for token, bias in (asked.logit_bias or {}).items()]
    if asked.ignore_eos:
        biases += [(token, NEVER) for token in sorted(terms.ends)]
    given: dict[str, Any] = {
        "seed": None if asked.seed is None else asked.seed & MAX_U64,
        "temperature": asked.temperature,
        "top_k": None if asked.top_k == -1 else asked.top_k,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
    }
    # Mode greedy means temperature 0 unless another is asked for.
    default: dict[str, Any] = {"temperature": 0.0 if options.mode == "greedy" else TEMPERATURE}
    run = RunArgs(
        **args,
        **default | {name: value for name, value in given.items() if value is not None},
        logit_bias=biases,
        stop=asked.stops,
        mode=options.mode,
        threshold=options.threshold,
        target_agreement=options.target_agreement,
        draft=options.draft,
        alternates=options.alternates,
        link_loss=options.link_loss,
        objective=options.objective,
        patience_ms=options.patience_ms,
        kv_cache=options.kv_cache,
    )
    return replace(request_of(run, terms.tokenizer, terms.settings), timeline=options.timeline)


def _each_seed(asked: Asked, first: Choice) -> list[Choice]:
    request = first.request
    seeds = [(request.sampling.seed + index) & MAX_U64 for index in range(asked.n or 1)]
    return [
        replace(first, request=replace(request, sampling=replace(request.sampling, seed=seed)))
        for seed in seeds
    ]
