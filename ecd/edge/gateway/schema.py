"""What HTTP clients may ask for: the bodies of OpenAI's API, as far as they are understood here.

Owns names, types and ranges. What OpenAI's API has and this one has not is listed, with the values that ask
for nothing, so that it is refused by name and shows in the OpenAPI document. Knows nothing of answers.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, from_json
from pydantic_core.core_schema import no_info_before_validator_function

from ecd.config import Agreement, Threshold
from ecd.edge.gateway.errors import Refused
from ecd.edge.pacing import Objective
from ecd.edge.request import LinkLoss
from ecd.logprobs import MAX_TOP
from ecd.sampling import MAX_BIASES
from ecd.text import MAX_STOP_CHARACTERS, MAX_STOPS

# Answers that one HTTP request may start.
MAX_CHOICES = 128
MAX_U64 = (1 << 64) - 1
MAX_ID = (1 << 24) - 1
# Names in all objects of a body: pydantic takes some 4 us for each, and nothing else runs meanwhile.
MAX_NAMES = 1 << 14
# Of a name that is told in an error.
TOLD_CHARACTERS = 80

TokenId = Annotated[int, Field(ge=0, le=MAX_ID)]
# Fail fast: an error for each of the millions of elements that a body has room for would take many seconds.
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
MaxTokens = Annotated[int, Field(ge=1, le=1 << 20)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
# One spelling for each id, so that none is there twice.
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,7})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Nothing:
    """Marks a parameter of OpenAI's that nothing here does. Null, and the given values, ask for nothing."""

    def __init__(self, *values: Any):
        self._values = (None, *values)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": list(self._values), "description": "not supported: these values ask for nothing"}

    def _checked(self, given: Any) -> None:
        # Python's 0 is its False, and JSON's is not.
        if not any(type(given) is type(value) and given == value for value in self._values):
            raise PydanticCustomError("unsupported", "not supported")


Unsupported = Annotated[None, Nothing()]
NoList = Annotated[None, Nothing([])]
# Whoever has no tools may say so, or let the model choose among none.
NoTool = Annotated[None, Nothing("none", "auto")]

# What pydantic adds to the location of an error: the branch of a union, such as `list[int]`, or `[key]`.
_BRANCH = re.compile(r"(constrained-)?(str|int|float)|(list|literal)\[.*\]|\[key\]")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class EcdOptions(BaseModel):
    """What only ecd has. As the arguments of `run` in docs/PROTOCOL.md."""

    model_config = _STRICT

    mode: (
        Literal["exact", "confident", "edge-only", "cloud-only", "greedy", "coupled", "rejection"] | None
    ) = None
    threshold: Threshold | None = None
    target_agreement: Agreement | None = None
    draft: bool = True
    alternates: bool = True
    link_loss: LinkLoss | None = None
    objective: Objective | None = None
    patience_ms: Annotated[float, Field(ge=0, le=4_000_000)] | Literal["rounds"] | None = None
    kv_cache: bool | None = None
    timeline: bool = False


class StreamOptions(BaseModel):
    """`include_usage`: one more chunk at the end, with the usage. `include_obfuscation`: false only."""

    model_config = _STRICT

    include_usage: bool | None = None
    include_obfuscation: bool | None = None

    @field_validator("include_obfuscation")
    @classmethod
    def _check_obfuscation(cls, asked: bool | None) -> bool | None:
        if asked:
            raise ValueError("chunks are not padded here to hide the lengths of tokens; false, or left out")
        return asked


class Asked(BaseModel):
    """What both kinds of request have; null is the default. top_k 0 and -1 are off.

    Seeds are modulo 2^64: OpenAI's may be negative.
    """

    model_config = _STRICT

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=MAX_U64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_ID)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=MAX_BIASES)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    max_tokens: MaxTokens | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    ecd: EcdOptions | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> "Asked":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only for `stream: true`")
        return self

    @property
    def stops(self) -> list[str]:
        """All stop texts."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(BaseModel):
    """A part of a message's content; other types than text are refused."""

    model_config = _STRICT

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message. A developer's is a system message, as templates know it."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: Unsupported = None
    refusal: Unsupported = None
    audio: Unsupported = None
    tool_calls: NoList = None
    function_call: Unsupported = None
    annotations: NoList = None

    def to_map(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class TextFormat(BaseModel):
    """The only format there is."""

    model_config = _STRICT

    type: Literal["text"]


class ChatRequest(Asked):
    """`POST /v1/chat/completions`. `top_logprobs` above 0 only with `logprobs: true`."""

    messages: Messages
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Annotated[None, Nothing(False)] = None
    tools: NoList = None
    tool_choice: NoTool = None
    parallel_tool_calls: Annotated[None, Nothing(True, False)] = None
    functions: NoList = None
    function_call: NoTool = None
    audio: Unsupported = None
    metadata: Annotated[None, Nothing({})] = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    prompt_cache_key: Unsupported = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with `logprobs: true`")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of the two")
        return self


class CompletionRequest(Asked):
    """`POST /v1/completions`. `best_of` must be `n`: the best of more is not chosen here."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: Unsupported = None

    @model_validator(mode="after")
    def _check(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: only as many as `n`; the best of more is not chosen here")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: not with logprobs; there are none of the prompt's tokens")
        if len(self.prompts) * (self.n or 1) > MAX_CHOICES:
            raise ValueError(f"n: more than {MAX_CHOICES} answers in one request")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt: a text, or token ids."""
        given: Any = self.prompt
        alone = isinstance(given, str) or isinstance(given[0], int)
        return [given] if alone else given


class TokenizeRequest(BaseModel):
    """`POST /tokenize`: a text as it is, or a conversation through the chat template."""

    model_config = _STRICT

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class DetokenizeRequest(BaseModel):
    """`POST /detokenize`."""

    model_config = _STRICT

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


R = TypeVar("R", bound=BaseModel)


def parsed(kind: type[R], body: bytes) -> R:
    """The body of a request. Raises Refused, which names the parameter."""
    # Each name has a colon behind it; texts may have colons too.
    if body.count(b":") > MAX_NAMES and _has_many_names(body):
        raise Refused(f"the body's objects have more than {MAX_NAMES} names")
    try:
        return kind.model_validate_json(body)
    except ValidationError as e:
        raise _refusal(e) from None


def _has_many_names(body: bytes) -> bool:
    try:
        todo: list[Any] = [from_json(body, cache_strings=False)]
    except ValueError:
        # Whoever parses it next says what is wrong with it.
        return False
    names = 0
    while todo and names <= MAX_NAMES:
        here = todo.pop()
        if isinstance(here, dict):
            names += len(here)
            here = here.values()
        elif not isinstance(here, list):
            continue
        todo += [each for each in here if isinstance(each, dict | list)]
    return names > MAX_NAMES


def _progress(error: Any) -> tuple[int, bool, list[int]]:
    # Lists fail fast: a branch whose list failed at a later element has taken those before.
    indices = [part for part in error["loc"] if isinstance(part, int)]
    return len(error["loc"]), not error["type"].endswith("_type"), indices


def _refusal(error: ValidationError) -> Refused:
    # Every branch of a union reports; the one that got furthest is the one that was meant.
    errors: list[Any] = error.errors(include_url=False)
    deepest = max(errors, key=_progress)
    where = [str(part) for part in deepest["loc"]]
    where = where[:1] + [part for part in where[1:] if not _BRANCH.fullmatch(part)]
    where = [part[:TOLD_CHARACTERS] for part in where]
    message = str(deepest["msg"]).removeprefix("Value error, ")
    if not where:
        param, colon, _ = message.partition(": ")
        if colon and param.isidentifier():
            return Refused(message, param=param, code="invalid_value")
        return Refused(message)
    name = ".".join(where)
    match deepest["type"]:
        case "extra_forbidden":
            return Refused(f"{name} is not a parameter known here", param=name, code="unknown_parameter")
        case "unsupported":
            return Refused(f"{name} is not supported here", param=name, code="unsupported_parameter")
        case "missing":
            return Refused(f"{name} is missing", param=name, code="missing_required_parameter")
        case "literal_error":
            return Refused(
                f"{name}: {message}, not {deepest['input']!r:.40}", param=name, code="invalid_value"
            )
        case _:
            return Refused(f"{name}: {message}", param=name, code="invalid_value")
