"""Settings of trust: certificates, what one tenant may use, how many may connect.

Owns names, units, defaults and ranges, as `config` does for everything else. README.md explains them.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator


class CloudTls(BaseModel):
    """The cloud's certificate chain and its key, PEM files; with `client_ca` edges must show one too."""

    model_config = ConfigDict(extra="forbid")

    certificate: Path
    key: Path
    client_ca: Path | None = None


class EdgeTls(BaseModel):
    """Whom the edge believes: `ca`, a PEM file (None: the system's), and the name that the cloud must prove.

    `certificate` and `key`: the edge's own, for a cloud that asks for one.
    """

    model_config = ConfigDict(extra="forbid")

    ca: Path | None = None
    server_name: str | None = Field(default=None, min_length=1)
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> "EdgeTls":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; set both or neither")
        return self


class Limits(BaseModel):
    """What one tenant may use, over all its connections; None: as much as there is.

    `sessions`: open at once, running or waiting. `prompt_tokens`: of one session. `hints_per_s`: hints; each
    frame, each 256 bytes and each 64 tokens of a known prefix counted as one more, each OPEN as 8.
    `rejected_per_s`: hints that were verified in vain. `bytes_in_flight`: what the cloud holds for it, unsent
    or not complete yet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sessions: int | None = Field(default=64, ge=1)
    prompt_tokens: int | None = Field(default=None, ge=1)
    hints_per_s: float | None = Field(default=4000, gt=0)
    rejected_per_s: float | None = Field(default=1000, gt=0)
    bytes_in_flight: int | None = Field(default=32 << 20, ge=1 << 16)

    def but(self, others: "Limits") -> "Limits":
        """These, with those of `others` over them that were given there."""
        return self.model_copy(update=others.model_dump(exclude_unset=True))


# Where no token is asked for there are no tenants to keep apart.
NO_LIMITS = Limits(
    sessions=None, prompt_tokens=None, hints_per_s=None, rejected_per_s=None, bytes_in_flight=None
)


class Connections(BaseModel):
    """How many connections the cloud holds, in all and from one address (IPv6: one /64)."""

    model_config = ConfigDict(extra="forbid")

    total: int = Field(default=512, ge=1)
    per_address: int = Field(default=64, ge=1)
