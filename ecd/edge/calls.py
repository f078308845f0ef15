"""What the edge offers on its control socket: `run` and the calls that look at or steer what runs.

Owns the calls and their events, as docs/PROTOCOL.md lists them.
"""

from collections.abc import Callable
from typing import Any

from ecd.control import Handler, Notify
from ecd.edge.answer import Chunk
from ecd.edge.answering import answering, arrivals
from ecd.edge.handing import Handing
from ecd.edge.pacing_stats import state
from ecd.edge.results import check_result_fits, logprobs_entry, result_of
from ecd.edge.run_args import AnswerSettings, parse_run, request_of
from ecd.edge.service import EdgeService
from ecd.edge.told import stats_told, status_told
from ecd.errors import BadRequest
from ecd.prompt import Tokenizer
from ecd.tracing import GENERATION, tell_trace
from ecd.wire.messages import Finish


class EdgeCalls:
    """Handlers of the edge's control socket; `settings` are for requests that do not say."""

    def __init__(
        self,
        service: EdgeService,
        handing: Handing,
        tokenizer: Tokenizer,
        settings: AnswerSettings,
        *,
        model_name: str,
        on_drained: Callable[[], None],
    ):
        self._service = service
        self._handing = handing
        self._tokenizer = tokenizer
        self._settings = settings
        self._model_name = model_name
        self._on_drained = on_drained

    def handlers(self) -> dict[str, Handler]:
        """By name of the call."""
        return {
            "run": self.run,
            "status": self.status,
            "stats": self.stats,
            "sessions": self.sessions,
            "cancel": self.cancel,
            "migrate": self.migrate,
            "set": self.set,
            "trace": self.trace,
            "drain": self.drain,
        }

    async def run(self, given: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """One prompt to its end; an event per piece of text. Cancelling the call cancels the session."""
        args = parse_run(given)
        check_result_fits(args.max_tokens, args.logprobs)
        request = request_of(args, self._tokenizer, self._settings)
        with answering(self._service, request) as answer:
            await emit(
                {
                    "event": "started",
                    "id": answer.id,
                    "seed": request.sampling.seed,
                    "prompt_tokens": len(request.prompt),
                    "link": self._link_state(),
                }
            )
            finish = Finish.NONE
            async for arrival in arrivals(answer):
                match arrival:
                    case Chunk() as chunk:
                        event = {
                            "event": "text",
                            "text": chunk.text,
                            "pieces": chunk.pieces,
                            "ids": chunk.ids,
                            "origins": chunk.origins,
                            **logprobs_entry(chunk.logprobs),
                        }
                        await emit(event)
                    case Finish():
                        finish = arrival
            return result_of(answer, finish, self._service.cloud_model)

    def _link_state(self) -> str:
        link = self._service.uplinks.link
        return "draining" if link and link.connection.peer_draining else str(self._service.uplinks.state)

    async def status(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """The link and what is served over it."""
        return status_told(self._service, self._model_name)

    async def stats(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Counters since start, finished answers only, and what follows from them."""
        return stats_told(self._service)

    async def sessions(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """One line per running answer."""
        return {
            "sessions": [
                {
                    "id": a.id,
                    "phase": "alone" if a.generation.alone else a.generation.phase.name.lower(),
                    "state": state(a.generation),
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

    async def migrate(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Hands the session with number `id` over to the edge at `to`."""
        match args:
            case {"id": int() as number, "to": str() as to} if to and type(number) is int:
                return await self._handing.migrate(number, to)
        raise BadRequest(
            "migrate needs the session's number as `id`, and `to`: a socket's path or HOST[:PORT]"
        )

    async def set(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Changes settings for requests from here on, all of the given or none; tells what holds now."""
        match args:
            case {"settings": dict(given)} if len(args) == 1:
                self._settings.change(given)
                return self._settings.model_dump(mode="json")
            case _:
                raise BadRequest("set needs `settings`, a map of values by name")

    async def trace(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """What happened in session `id`, running or ended, as far as it is kept."""
        return await tell_trace(self._service.ring, GENERATION, args, emit)

    async def drain(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Finishes what runs, takes nothing new, and then ends the daemon."""
        await self._service.drain()
        self._on_drained()
        return {"drained": True}
