"""What an ablation asks: conversations of one turn or several, some with answers that can be checked.

Owns the file of them and its checks. Knows neither how answers are checked nor daemons.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ecd.config_problems import problems
from ecd.errors import BadRequest

Text = Annotated[str, Field(min_length=1)]


class PythonTests(BaseModel):
    """A program around a function of the answer: lines before it, and those that raise if it is wrong."""

    model_config = ConfigDict(extra="forbid")

    setup: str = ""
    tests: Text


class Check(BaseModel):
    """What makes an answer right: its last number, or a Python function that passes tests."""

    model_config = ConfigDict(extra="forbid")

    number: Annotated[str, Field(pattern=r"^-?\d+(\.\d+)?$")] | None = None
    python: PythonTests | None = None

    @model_validator(mode="after")
    def _check(self) -> "Check":
        if (self.number is None) == (self.python is None):
            raise ValueError("give either number or python")
        return self


class Message(BaseModel):
    """What is said before an answer; `check` is of the answer that follows."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user"] = "user"
    content: Text
    check: Check | None = None


class _Line(BaseModel):
    """A line of the file: a prompt, or the messages of a conversation without its answers."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(default="", alias="class")
    prompt: Text | None = None
    check: Check | None = None
    messages: list[Message] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> "_Line":
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        if self.messages and self.check is not None:
            raise ValueError("check goes to the message whose answer it is of")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last of the messages must be the user's")
        if any(message.role == "system" for message in self.messages[1:]):
            raise ValueError("only the first of the messages may be the system's")
        return self


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says, and what makes the answer right where that can be told."""

    content: str
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """The user's turns, of a class; the answers between them are whatever the system says."""

    kind: str
    turns: tuple[Turn, ...]
    system: str | None = None

    @property
    def opening(self) -> list[dict[str, str]]:
        """The messages before the first turn."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]


def load_conversations(path: Path) -> tuple[Conversation, ...]:
    """Those of a JSONL file, docs/ABLATIONS.md has its form. Raises BadRequest that names the line."""
    try:
        # Not splitlines: JSON may hold other line ends of Unicode as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise BadRequest(f"cannot read prompts from {path}: {e}") from None
    found = [_conversation(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise BadRequest(f"{path} has no prompts")
    return tuple(found)


def digest(conversations: tuple[Conversation, ...]) -> str:
    """SHA-256 of all that is asked and checked, in hex."""
    return hashlib.sha256(repr(conversations).encode()).hexdigest()


def _conversation(text: str, where: str) -> Conversation:
    try:
        given: Any = json.loads(text)
        line = _Line.model_validate({"prompt": given} if isinstance(given, str) else given)
    except ValidationError as e:
        raise BadRequest(f"{where}: {problems(e, _Line)}") from None
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"{where} is not JSON: {e}") from None
    if line.prompt is not None:
        return Conversation(line.kind, (Turn(line.prompt, line.check),))
    system = line.messages[0].content if line.messages[0].role == "system" else None
    said = line.messages if system is None else line.messages[1:]
    return Conversation(line.kind, tuple(Turn(each.content, each.check) for each in said), system)
