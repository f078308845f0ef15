"""From what comes of an answer to the objects of OpenAI's API, whole or chunk by chunk.

Pure. Owns the shapes of responses: choices, log-probabilities, usage, and the object `ecd`, which OpenAI's
API does not have. The two kinds of response differ in a `Dialect` only.
"""

import codecs
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ecd.edge.answer import Chunk
from ecd.edge.timeline import Happened, as_map
from ecd.logprobs import TokenLogprobs
from ecd.prompt import Tokenizer


@dataclass(slots=True)
class Spelling:
    """Tokens as texts, one by one, and where each begins in the answer's text, in characters."""

    tokenizer: Tokenizer
    offset: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def name(self, token: int) -> str:
        """The token's text; control tokens by name, bytes that are no character as U+FFFD."""
        return self.piece(token).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The token's bytes."""
        return self.tokenizer.piece(token, control=True)

    def pass_over(self, token: int) -> int:
        """Where the token begins; the next one begins behind it."""
        offset = self.offset
        self.offset += len(self._decoder.decode(self.tokenizer.piece(token)))
        return offset


def _chat_logprobs(spelling: Spelling, ids: Sequence[int], told: Sequence[TokenLogprobs]) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": spelling.name(token),
            "logprob": logprob,
            "bytes": list(spelling.piece(token)),
        }

    content = [
        entry(token, each.logprob) | {"top_logprobs": [entry(*pair) for pair in each.top]}
        for token, each in zip(ids, told, strict=True)
    ]
    return {"content": content, "refusal": None}


def _completion_logprobs(
    spelling: Spelling, ids: Sequence[int], told: Sequence[TokenLogprobs]
) -> dict[str, Any]:
    return {
        "tokens": [spelling.name(token) for token in ids],
        "token_logprobs": [each.logprob for each in told],
        # Of tokens with one text, such as parts of characters, the likeliest stays.
        "top_logprobs": [
            {spelling.name(token): logprob for token, logprob in reversed(each.top)} for each in told
        ],
        "text_offset": [spelling.pass_over(token) for token in ids],
    }


@dataclass(frozen=True, slots=True)
class Dialect:
    """What `/v1/chat/completions` and `/v1/completions` do differently.

    piece: what a choice of a chunk has for a text, which is the answer's first or not; the last chunk's has
    `end`. whole: what a choice of a whole response has.
    """

    id_prefix: str
    object: str
    chunk_object: str
    piece: Callable[[str, bool], dict[str, Any]]
    end: dict[str, Any]
    whole: Callable[[str], dict[str, Any]]
    logprobs: Callable[[Spelling, Sequence[int], Sequence[TokenLogprobs]], dict[str, Any]]


CHAT = Dialect(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text, first: {"delta": ({"role": "assistant"} if first else {}) | {"content": text}},
    {"delta": {}},
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    _chat_logprobs,
)
COMPLETION = Dialect(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda text, first: {"text": text},
    {"text": ""},
    lambda text: {"text": text},
    _completion_logprobs,
)


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one response have in common. `created`: seconds since 1970."""

    dialect: Dialect
    id: str
    created: int
    model: str
    fingerprint: str

    def whole(
        self, choices: list[dict[str, Any]], results: list[dict[str, Any]], prompts: int
    ) -> dict[str, Any]:
        """The whole response to so many prompts."""
        return self._object(self.dialect.object, choices) | {
            "usage": usage(results, prompts),
            "ecd": summary(results, tokens=True),
        }

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A chunk of the response."""
        return self._object(self.dialect.chunk_object, choices) | more

    def _object(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


@dataclass(slots=True)
class Reply:
    """One choice on its way to the client."""

    dialect: Dialect
    index: int
    spelling: Spelling
    echo: str = ""
    _begun: bool = False

    def piece(self, chunk: Chunk) -> dict[str, Any]:
        """A streamed choice with what is new."""
        text = chunk.text if self._begun else self.echo + chunk.text
        piece = self.dialect.piece(text, not self._begun)
        self._begun = True
        return self._choice(piece, chunk.ids, chunk.logprobs, None)

    def end(self, finish_reason: str) -> dict[str, Any]:
        """The last streamed choice: without text, with the reason."""
        return self._choice(self.dialect.end, (), None, finish_reason)

    def whole(self, result: dict[str, Any], told: Sequence[TokenLogprobs] | None) -> dict[str, Any]:
        """The choice in one piece."""
        part = self.dialect.whole(self.echo + result["text"])
        return self._choice(part, result["token_ids"], told, result["finish_reason"])

    def _choice(
        self,
        part: dict[str, Any],
        ids: Sequence[int],
        told: Sequence[TokenLogprobs] | None,
        finish_reason: str | None,
    ) -> dict[str, Any]:
        logprobs = None if told is None else self.dialect.logprobs(self.spelling, ids, told)
        return {"index": self.index, **part, "logprobs": logprobs, "finish_reason": finish_reason}


def tokens_told(chunk: Chunk) -> dict[str, Any]:
    """A chunk's `ecd`: its tokens, which never wait for text, who chose each, and what text it brought."""
    return {"ids": chunk.ids, "origins": chunk.origins, "pieces": chunk.pieces}


def timeline_told(events: Sequence[Happened], live: dict[str, Any]) -> dict[str, Any]:
    """What is added to it for those who ask for a timeline: what happened, and what the answer has taken."""
    return {"timeline": [as_map(event) for event in events], "live": live}


def usage(results: Sequence[dict[str, Any]], prompts: int) -> dict[str, int]:
    """Tokens of all choices; each of the prompts counts once, however many answers it has."""
    each_prompt = results[:: len(results) // prompts]
    prompt = sum(result["usage"]["prompt_tokens"] for result in each_prompt)
    completion = sum(result["usage"]["completion_tokens"] for result in results)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def summary(results: Sequence[dict[str, Any]], *, tokens: bool) -> dict[str, Any]:
    """The `ecd` of finished choices, all together: what they took, and with `tokens` each token's origin.

    Tokens stand in the order of the choices. Rates are 0 where nothing was verified or committed.
    """
    stats = [result["stats"] for result in results]
    origins = [origin for result in results for origin in result["origins"]]
    verified, accepted, forwards = (
        sum(each[name] for each in stats) for name in ("verified", "accepted", "target_forwards")
    )
    listed = {"ids": [token for result in results for token in result["token_ids"]], "origins": origins}
    return {
        **(listed if tokens else {"ids": [], "origins": []}),
        "origin_counts": dict(Counter(origins)),
        "acceptance_rate": accepted / verified if verified else 0.0,
        "forwards_per_token": forwards / len(origins) if origins else 0.0,
        "rtt_ms": next((each["rtt_ms"] for each in reversed(stats) if each["rtt_ms"] is not None), None),
        "seeds": [result["seed"] for result in results],
        "ttft_ms": min(each["ttft_ms"] for each in stats),
        "tokens_per_s": sum(each["tokens_per_s"] for each in stats),
        "wire_bytes": sum(each["wire_bytes_up"] + each["wire_bytes_down"] for each in stats),
    }
