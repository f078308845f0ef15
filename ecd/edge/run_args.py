"""What `run` takes, and the request that it makes.

Owns the names and ranges of the arguments, as docs/PROTOCOL.md lists them; the edge's own settings stand in
for what is not given. Knows no answers and no sockets.
"""

import random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from ecd.config import Agreement, EdgeConfig, PatienceMs, Share, Threshold
from ecd.edge.pacing import Objective
from ecd.edge.request import LinkLoss, Mode, Request
from ecd.errors import BadRequest
from ecd.logprobs import MAX_TOP
from ecd.prompt import Tokenizer, prompt_tokens
from ecd.sampling import Rule, Sampling
from ecd.text import check_stop

MAX_U32 = (1 << 32) - 1


class RunArgs(BaseModel):
    """Arguments of `run`. A text prompt under `chat` is one user message, token ids are taken as they are;
    `seed` None draws one.

    mode: a `Mode`, or a sampling rule by name, which is exact under that rule. alternates: whether the
    draft's second choices are followed too. objective, patience_ms (how long the cloud may hold a step back),
    hint_tokens (the hints it waits for, and that go into a frame), ahead_tokens: the edge's settings where
    they are None. logprobs: how many of the most likely tokens to tell with each token's logprob, nothing
    where it is None. link_loss: what to do while no cloud takes the answer. kv_cache: False to use nothing
    that was computed for earlier texts. mode, threshold, target_agreement, audit_share, link_loss, kv_cache:
    the edge's settings too where they are None.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | list[int] | list[dict[str, str]]
    chat: bool = True
    mode: str | None = None
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
    threshold: Threshold | None = None
    target_agreement: Agreement | None = None
    audit_share: Share | None = None
    alternates: bool = True
    objective: Annotated[Objective, Strict(False)] | None = None
    patience_ms: float | Literal["rounds"] | None = None
    hint_tokens: int | None = Field(default=None, ge=1, le=64)
    ahead_tokens: int | None = Field(default=None, ge=0, le=1024)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    kv_cache: bool | None = None
    link_loss: Annotated[LinkLoss, Strict(False)] | None = None

    def sampling(self) -> Sampling:
        """The sampling settings, a seed drawn where none is given. Raises BadRequest."""
        seed = self.seed if self.seed is not None else random.SystemRandom().getrandbits(32)
        rule = self.mode if self.mode is not None and self.mode not in list(Mode) else "exact"
        return Sampling.of(
            rule,
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


class AnswerSettings(BaseModel):
    """The edge's settings for requests that do not say, as `EdgeConfig` has them; `change` changes them."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode = Mode.EXACT
    threshold: Threshold = "adaptive"
    target_agreement: Agreement = 0.95
    audit_share: Share = 0.2
    objective: Objective = Objective.BALANCED
    ahead_tokens: int | None = Field(default=None, ge=0, le=1024)
    patience_ms: PatienceMs | Literal["rounds"] | None = None
    hint_tokens: int | None = Field(default=None, ge=1, le=64)
    kv_cache: bool = True
    link_loss: LinkLoss = LinkLoss.WAIT

    @classmethod
    def of(cls, config: EdgeConfig) -> "AnswerSettings":
        """Those of the daemon's settings."""
        same = {name: getattr(config, name) for name in cls.model_fields}
        return cls.model_validate(same | {"kv_cache": config.kv_cache is not None})

    def change(self, given: dict[str, Any]) -> None:
        """Sets all that is given, or nothing. Raises BadRequest that names the setting."""
        known = AnswerSettings.model_fields
        if unknown := sorted(map(str, given.keys() - known.keys())):
            raise BadRequest(f"{', '.join(unknown)} cannot be set while running; {', '.join(known)} can")
        try:
            changed = AnswerSettings.model_validate(self.model_dump() | given)
        except ValidationError as e:
            raise _refusal(e, "settings") from None
        for name in given:
            setattr(self, name, getattr(changed, name))


def parse_run(args: dict[str, Any]) -> RunArgs:
    """Validated arguments. Raises BadRequest that names the argument."""
    try:
        return RunArgs.model_validate(args)
    except ValidationError as e:
        raise _refusal(e, "arguments") from None


def _refusal(error: ValidationError, whole: str) -> BadRequest:
    first = error.errors()[0]
    where = first["loc"][0] if first["loc"] else whole
    return BadRequest(f"{where}: {first['msg']}")


def patience_us(patience_ms: float | Literal["rounds"] | None) -> int | None:
    """Patience as OPEN carries it; `rounds` is as long as the cloud ever waits, None the controller's."""
    if patience_ms is None:
        return None
    if patience_ms == "rounds":
        return MAX_U32
    if not 0 <= patience_ms <= MAX_U32 / 1000:
        raise BadRequest(f"patience_ms must be in [0, {MAX_U32 // 1000}] or `rounds`, not {patience_ms!r}")
    return int(patience_ms * 1000)


def request_of(args: RunArgs, tokenizer: Tokenizer, settings: AnswerSettings) -> Request:
    """What the arguments ask for. Raises BadRequest."""
    check_stop(args.stop)
    mode = _mode(args, settings)
    threshold = settings.threshold if args.threshold is None else args.threshold
    return Request(
        prompt=_prompt(args, tokenizer),
        sampling=args.sampling(),
        max_tokens=args.max_tokens,
        stop=tuple(args.stop),
        draft=args.draft and mode is not Mode.CLOUD_ONLY,
        mode=mode,
        threshold=None if threshold == "adaptive" else threshold,
        target_agreement=args.target_agreement or settings.target_agreement,
        audit_share=settings.audit_share if args.audit_share is None else args.audit_share,
        alternates=args.alternates,
        objective=args.objective or settings.objective,
        ahead=settings.ahead_tokens if args.ahead_tokens is None else args.ahead_tokens,
        patience_us=patience_us(settings.patience_ms if args.patience_ms is None else args.patience_ms),
        hint_tokens=settings.hint_tokens if args.hint_tokens is None else args.hint_tokens,
        logprobs=args.logprobs,
        fresh=not (settings.kv_cache if args.kv_cache is None else args.kv_cache),
        link_loss=_link_loss(args, settings),
    )


def _link_loss(args: RunArgs, settings: AnswerSettings) -> LinkLoss:
    """What was asked for, or the edge's setting where the answer can do that. Raises BadRequest."""
    without_drafts, with_logprobs = not args.draft or args.ahead_tokens == 0, args.logprobs is not None
    if args.link_loss is LinkLoss.DEGRADE and without_drafts:
        raise BadRequest(
            "link_loss degrade goes on with drafts, and this answer is to have none", param="link_loss"
        )
    if args.link_loss is LinkLoss.DEGRADE and with_logprobs:
        raise BadRequest(
            "link_loss degrade goes on without the target, and logprobs are the target's", param="link_loss"
        )
    chosen = args.link_loss or settings.link_loss
    impossible = without_drafts or with_logprobs
    return LinkLoss.WAIT if chosen is LinkLoss.DEGRADE and impossible else chosen


def _mode(args: RunArgs, settings: AnswerSettings) -> Mode:
    asked = settings.mode if args.mode is None else args.mode
    if asked not in (*Mode, *Rule):
        raise BadRequest(f"mode {asked!r} is not known; use {', '.join(Mode)}, or a rule: {', '.join(Rule)}")
    mode = Mode.EXACT if asked in list(Rule) else Mode(asked)
    if mode.edge_commits:
        if args.logprobs is not None:
            raise BadRequest(
                f"logprobs are the target's, which mode {mode} does not ask for every token; use mode exact",
                param="logprobs",
            )
        if not args.draft:
            raise BadRequest(f"mode {mode} is not without drafts; use mode cloud-only", param="draft")
    return mode


def _prompt(args: RunArgs, tokenizer: Tokenizer) -> tuple[int, ...]:
    match args.prompt:
        case []:
            raise BadRequest(
                "the prompt is empty; give at least one message, or one token of text", param="prompt"
            )
        case [int(), *_] as ids:
            return tuple(ids)  # type: ignore[arg-type]  # pydantic has seen that all of them are ids
        case given:
            return prompt_tokens(tokenizer, given, chat=args.chat)  # type: ignore[arg-type]
