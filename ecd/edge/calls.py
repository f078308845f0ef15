"""What the edge offers on its control socket: `run` and the calls that look at or steer what runs.

Owns the request's and the result's shape, as docs/PROTOCOL.md lists them.
"""

import math
import random
from collections.abc import Callable
from dataclasses import asdict
from time import process_time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from ecd.control import Handler, Notify
from ecd.edge.answer import Answer, Chunk
from ecd.edge.pacing import Objective
from ecd.edge.request import Request
from ecd.edge.service import EdgeService
from ecd.errors import BadRequest, EcdError
from ecd.prompt import Tokenizer, prompt_tokens
from ecd.sampling import Sampling
from ecd.text import check_stop
from ecd.wire.messages import Finish

MAX_U32 = (1 << 32) - 1


class RunArgs(BaseModel):
    """Arguments of `run`. A text prompt under `chat` is one user message; `seed` None draws one.

    objective, patience_ms (how long the cloud may hold a step back), hint_tokens (the hints it waits for, and
    that go into a frame), ahead_tokens: the edge's settings where they are None.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | list[dict[str, str]]
    chat: bool = True
    mode: str = "exact"
    seed: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: list[Annotated[tuple[int, float], Strict(False)]] = Field(default_factory=list)
    max_tokens: int = Field(default=256, ge=1, le=1 << 20)
    stop: list[str] = Field(default_factory=list)
    draft: bool = True
    objective: Annotated[Objective, Strict(False)] | None = None
    patience_ms: float | Literal["rounds"] | None = None
    hint_tokens: int | None = Field(default=None, ge=1, le=64)
    ahead_tokens: int | None = Field(default=None, ge=0, le=1024)

    def sampling(self) -> Sampling:
        """The sampling settings, a seed drawn where none is given. Raises BadRequest."""
        seed = self.seed if self.seed is not None else random.SystemRandom().getrandbits(32)
        return Sampling.of(
            self.mode,
            self.temperature,
            seed=seed,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(self.logit_bias),
        )


def parse_run(args: dict[str, Any]) -> RunArgs:
    """Validated arguments. Raises BadRequest that names the argument."""
    try:
        return RunArgs.model_validate(args)
    except ValidationError as e:
        first = e.errors()[0]
        where = first["loc"][0] if first["loc"] else "arguments"
        raise BadRequest(f"{where}: {first['msg']}") from None


def patience_us(patience_ms: float | Literal["rounds"] | None) -> int | None:
    """Patience as OPEN carries it; `rounds` is as long as the cloud ever waits, None the controller's."""
    if patience_ms is None:
        return None
    if patience_ms == "rounds":
        return MAX_U32
    if not 0 <= patience_ms <= MAX_U32 / 1000:
        raise BadRequest(f"patience_ms must be in [0, {MAX_U32 // 1000}] or `rounds`, not {patience_ms!r}")
    return int(patience_ms * 1000)


def result_of(answer: Answer, finish: Finish, model: dict[str, Any]) -> dict[str, Any]:
    """The result of a finished answer."""
    request, tally = answer.generation.request, answer.generation.tally
    ids = answer.generation.committed
    first, last = answer.first_at or answer.started_at, answer.last_at or answer.started_at
    later = len(ids) - answer.first_tokens
    return {
        "id": answer.id,
        "model": model.get("name"),
        "text": answer.text.text,
        "token_ids": list(ids),
        "prompt_token_ids": list(request.prompt),
        "origins": [origin.label for origin in answer.generation.origins],
        "finish_reason": finish.name.lower(),
        "seed": request.sampling.seed,
        "sampling": request.sampling.to_map(),
        "stop": list(request.stop),
        "max_tokens": request.max_tokens,
        "usage": {
            "prompt_tokens": len(request.prompt),
            "completion_tokens": len(ids),
            "total_tokens": len(request.prompt) + len(ids),
        },
        "stats": {
            "ttft_ms": (first - answer.started_at) * 1000,
            "total_ms": (last - answer.started_at) * 1000,
            "tokens_per_s": later / (last - first) if later and last > first else 0.0,
            "drafted": tally.drafted,
            "hints_sent": tally.sent,
            "settled": tally.settled,
            "right": tally.right,
            "alternates_sent": tally.alternates_sent,
            "alternates_used": tally.alternates_used,
            "verified": tally.verified,
            "accepted": tally.accepted,
            "acceptance_rate": tally.accepted / tally.verified if tally.verified else 0.0,
            "target_forwards": tally.forwards,
            "target_forwards_without_hints": tally.forwards_without_hints,
            "target_step_ms": tally.step_us / 1000,
            "wire_bytes_up": answer.wire_up,
            "wire_bytes_down": answer.wire_down,
            "rtt_ms": answer.rtt_ms,
            "resumed": tally.resumed,
        },
    }


class EdgeCalls:
    """Handlers of the edge's control socket.

    objective, ahead, patience, hint_tokens: the edge's settings, for requests that do not say.
    """

    def __init__(
        self,
        service: EdgeService,
        tokenizer: Tokenizer,
        *,
        model_name: str,
        objective: Objective,
        ahead: int | None,
        patience: float | Literal["rounds"] | None,
        hint_tokens: int | None,
        on_drained: Callable[[], None],
    ):
        self._service = service
        self._tokenizer = tokenizer
        self._model_name = model_name
        self._objective = objective
        self._ahead = ahead
        self._patience = patience
        self._hint_tokens = hint_tokens
        self._on_drained = on_drained

    def handlers(self) -> dict[str, Handler]:
        """By name of the call."""
        return {
            "run": self.run,
            "status": self.status,
            "stats": self.stats,
            "sessions": self.sessions,
            "cancel": self.cancel,
            "drain": self.drain,
        }

    async def run(self, given: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """One prompt to its end; an event per piece of text. Cancelling the call cancels the session."""
        args = parse_run(given)
        check_stop(args.stop)
        request = Request(
            prompt=prompt_tokens(self._tokenizer, args.prompt, chat=args.chat),
            sampling=args.sampling(),
            max_tokens=args.max_tokens,
            stop=tuple(args.stop),
            draft=args.draft,
            objective=args.objective or self._objective,
            ahead=self._ahead if args.ahead_tokens is None else args.ahead_tokens,
            patience_us=patience_us(self._patience if args.patience_ms is None else args.patience_ms),
            hint_tokens=self._hint_tokens if args.hint_tokens is None else args.hint_tokens,
        )
        answer = self._service.start(request)
        try:
            await emit(
                {
                    "event": "started",
                    "id": answer.id,
                    "seed": request.sampling.seed,
                    "prompt_tokens": len(request.prompt),
                    "link": self._link_state(),
                }
            )
            while True:
                match await answer.chunks.get():
                    case Chunk() as chunk:
                        event = {
                            "event": "text",
                            "text": chunk.text,
                            "ids": chunk.ids,
                            "origins": chunk.origins,
                        }
                        await emit(event)
                    case Finish() as finish:
                        return result_of(answer, finish, self._service.cloud_model)
                    case EcdError() as error:
                        raise error
        finally:
            if answer.id in self._service.answers:
                self._service.cancel(answer.id)

    def _link_state(self) -> str:
        link = self._service.uplink.link
        return "draining" if link and link.connection.peer_draining else str(self._service.uplink.state)

    async def status(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """The link and what is served over it."""
        uplink = self._service.uplink
        rtt = uplink.link.connection.rtt if uplink.link else None
        load = uplink.link.connection.peer_load if uplink.link else {}
        return {
            "role": "edge",
            "state": "draining" if self._service.draining else "serving",
            "draft_model": self._model_name,
            "target_model": self._service.cloud_model,
            "link": {
                "state": str(uplink.state),
                "draining": uplink.link is not None and uplink.link.connection.peer_draining,
                "cloud": f"{uplink.host}:{uplink.port}",
                "reason": uplink.reason,
                "refused": uplink.refused is not None,
                "connects": uplink.connects,
                "rtt_ms": rtt.smoothed_s * 1000 if rtt and rtt.smoothed_s is not None else None,
                "rtt_variation_ms": rtt.variation_s * 1000 if rtt and rtt.smoothed_s is not None else None,
                "cloud_load": load,
            },
            "sessions": len(self._service.answers),
        }

    async def stats(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Counters since start, finished answers only, and what follows from them."""
        totals = self._service.totals
        wire_in, wire_out = self._service.uplink.wire_bytes
        packets_in, packets_out = self._service.uplink.packet_bytes
        return {
            **asdict(totals),
            "conditions": self._conditions(),
            "drafters": self._service.acceptance.totals(),
            "pace": self._pace(),
            "cpu_s": process_time(),
            "running": len(self._service.answers),
            "acceptance_rate": totals.accepted / totals.verified if totals.verified else 0.0,
            "forwards_per_token": totals.target_forwards / totals.committed if totals.committed else 0.0,
            "link_connects": self._service.uplink.connects,
            "wire_bytes_in": wire_in,
            "wire_bytes_out": wire_out,
            "wire_bytes_per_token": (wire_in + wire_out) / totals.committed if totals.committed else 0.0,
            "packet_bytes_in": packets_in,
            "packet_bytes_out": packets_out,
            "packet_bytes_per_token": (packets_in + packets_out) / totals.committed
            if totals.committed
            else 0.0,
        }

    def _conditions(self) -> dict[str, float | None]:
        """What the pacing controller goes by; None where it is not measured yet."""
        meter = self._service.meter
        settled = sum(self._service.survival.settled)
        return {
            "rtt_ms": None if meter.rtt_s is None else meter.rtt_s * 1000,
            "jitter_ms": None if meter.rtt_s is None else meter.jitter_s * 1000,
            "draft_ms": None if meter.draft_s is None else meter.draft_s * 1000,
            "step_ms": None if meter.step_s is None else meter.step_s * 1000,
            "slope": None if meter.token_s is None or not meter.step_s else meter.token_s / meter.step_s,
            "acceptance": sum(self._service.survival.right) / settled if settled else None,
        }

    def _pace(self) -> dict[str, float | int | bool | None]:
        """What the newest running answer does, and what it is predicted to give beside what it gives."""
        answer = next(reversed(self._service.answers.values()), None)
        if answer is None:
            return {}
        pace, forecast = answer.generation.pace, answer.generation.pace.forecast
        elapsed = (answer.last_at or 0.0) - (answer.first_at or 0.0)
        later = len(answer.generation.origins) - answer.first_tokens
        return {
            "drafting": pace.ahead > 0 and pace.model,
            "ahead": pace.ahead,
            "gather": pace.gather,
            # Of no end in a strict round, which JSON cannot say.
            "patience_ms": pace.patience_s * 1000 if math.isfinite(pace.patience_s) else None,
            "predicted_tokens_per_s": forecast.tokens_per_s if forecast else pace.plain_tokens_per_s,
            "plain_tokens_per_s": pace.plain_tokens_per_s,
            "tokens_per_s": later / elapsed if elapsed > 0 else None,
        }

    async def sessions(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """One line per running answer."""
        return {
            "sessions": [
                {
                    "id": a.id,
                    "phase": a.generation.phase.name.lower(),
                    "drafting": a.generation.slot is not None,
                    "prompt_tokens": len(a.generation.request.prompt),
                    "completion_tokens": len(a.generation.committed),
                    "ahead": a.generation.ahead,
                    "verified": a.generation.tally.verified,
                    "accepted": a.generation.tally.accepted,
                    "target_forwards": a.generation.tally.forwards,
                }
                for a in self._service.answers.values()
            ]
        }

    async def cancel(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Ends the session with number `id`."""
        number = args.get("id")
        if type(number) is not int:
            raise BadRequest("cancel needs the session's number as `id`")
        self._service.cancel(number)
        return {"cancelled": number}

    async def drain(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Finishes what runs, takes nothing new, and then ends the daemon."""
        await self._service.drain()
        self._on_drained()
        return {"drained": True}
