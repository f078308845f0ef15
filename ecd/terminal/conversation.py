"""A conversation's state and what a typed line means. Pure: knows no terminal and no daemon."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ecd.errors import BadRequest


class Verb(StrEnum):
    """Commands of `ecdctl chat`; any beginning that only one has will do."""

    CONFIG = "config"
    HELP = "help"
    MODE = "mode"
    NEW = "new"
    QUIT = "quit"
    STATS = "stats"


@dataclass(frozen=True, slots=True)
class Say:
    """Something for the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """Something for the program; `rest` is what stands behind the verb."""

    verb: Verb
    rest: str


def understood(line: str) -> Say | Command | None:
    """What a line means, None for an empty one. A second slash makes text of what would be a command.

    Raises BadRequest for an unknown command.
    """
    if not line.strip():
        return None
    if not line.startswith("/"):
        return Say(line)
    if line.startswith("//"):
        return Say(line[1:])
    word, _, rest = line[1:].strip().partition(" ")
    matching = [verb for verb in Verb if word and verb.value.startswith(word)]
    if len(matching) != 1:
        raise BadRequest(f"/{word} is no command; /help lists them, and //{word} sends it as text")
    return Command(matching[0], rest.strip())


@dataclass(frozen=True, slots=True)
class Broken:
    """What is known of an answer that was not completed: why, and who chose each token that came of it."""

    reason: str
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said so far: the messages that every turn sends whole, and what the last answer took.

    `last` is the result of an answer that was completed, and None before the first.
    """

    messages: tuple[dict[str, str], ...] = ()
    last: dict[str, Any] | Broken | None = None

    def asking(self, question: str) -> list[dict[str, str]]:
        """The messages to send; the question becomes part of the conversation with its answer only."""
        return [*self.messages, {"role": "user", "content": question}]

    def answered(self, question: str, answer: str, result: dict[str, Any] | Broken) -> "Conversation":
        """After an answer, complete or not.

        What was said of a cancelled answer stays, so that one may ask for the rest. One without any text
        leaves nothing said, since templates want questions and answers in turns.
        """
        if isinstance(result, Broken) and not answer:
            return Conversation(self.messages, result)
        reply = {"role": "assistant", "content": answer}
        return Conversation((*self.asking(question), reply), result)
