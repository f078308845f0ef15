"""Bearer tokens: what is kept of them, and whom a shown one names.

Pure; time is passed in. A token is 256 random bits, so its plain SHA-256 gives nothing away, and a slow hash
would only slow the cloud down.
"""

import hashlib
import hmac
import secrets
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ecd.errors import AuthError, BadRequest
from ecd.trust.settings import Limits

# So that a token is recognised where it should not be, in a log or a repository.
PREFIX = "ecd_"
SECRET_BYTES = 32

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def new_secret() -> str:
    """What an edge shows; it is kept nowhere else."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


class Token(BaseModel):
    """One token without its secret. `limits`: those given for it alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    limits: Limits = Limits()

    def check(self, now: datetime) -> None:
        """Raises AuthError when it is no longer good."""
        if self.revoked is not None:
            raise AuthError(
                f"the token {self.name!r} was revoked on {self.revoked:%Y-%m-%d}; "
                "ask the cloud's operator for a new one and set `token` at the edge"
            )
        if self.expires is not None and now >= self.expires:
            raise AuthError(
                f"the token {self.name!r} expired on {self.expires:%Y-%m-%d}; "
                "ask the cloud's operator for a new one and set `token` at the edge"
            )


class Tokens(BaseModel):
    """All tokens of one cloud, by unique names: what lies in its token file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: tuple[Token, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Tokens":
        if len({token.name for token in self.tokens}) < len(self.tokens):
            raise ValueError("two tokens have the same name")
        return self

    def identify(self, shown: bytes | None, now: datetime) -> Token:
        """The token that was shown. Raises AuthError when it is none of these, or no longer good."""
        if shown is None:
            raise AuthError(
                "the cloud demands a token and the edge showed none; set `token` at the edge, "
                "as `ecd token create` at the cloud printed it"
            )
        digest = hashlib.sha256(shown).hexdigest()
        found: Token | None = None
        # All of them, so that the time taken does not tell which one it is, or how near.
        for token in self.tokens:
            if hmac.compare_digest(digest, token.sha256):
                found = token
        if found is None:
            raise AuthError(
                "the cloud does not know this token; set `token` at the edge, "
                "as `ecd token create` at the cloud printed it"
            )
        found.check(now)
        return found

    def check(self, name: str, now: datetime) -> Token:
        """The token of a connection that was let in. Raises AuthError when it is no longer good."""
        for token in self.tokens:
            if token.name == name:
                token.check(now)
                return token
        raise AuthError(f"the token {name!r} is gone from the cloud's file; set another `token` at the edge")

    def created(
        self, name: str, secret: str, now: datetime, expires: datetime | None, limits: Limits
    ) -> "Tokens":
        """These and a new one. Raises BadRequest when its name cannot be used."""
        if any(token.name == name for token in self.tokens):
            raise BadRequest(f"there is a token {name!r} already; choose another name")
        sha256 = hashlib.sha256(secret.encode()).hexdigest()
        try:
            token = Token(name=name, sha256=sha256, created=now, expires=expires, limits=limits)
        except ValidationError:
            raise BadRequest(
                f"{name!r} is no name for a token: 1 to 64 letters, digits, '.', '_' and '-', "
                "the first a letter or digit"
            ) from None
        return Tokens(tokens=(*self.tokens, token))

    def revoked(self, name: str, now: datetime) -> "Tokens":
        """These with one revoked. Raises BadRequest when there is none of the name, or it is already."""
        for token in self.tokens:
            if token.name == name:
                if token.revoked is not None:
                    raise BadRequest(f"the token {name!r} was revoked on {token.revoked:%Y-%m-%d} already")
                gone = token.model_copy(update={"revoked": now})
                return Tokens(tokens=tuple(gone if each is token else each for each in self.tokens))
        raise BadRequest(f"there is no token {name!r}; `ecd token list` has them")
