"""What is wrong with settings, in words: each with its path, and what is known there.

Pure; knows models of pydantic and none of the settings themselves.
"""

from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def problems(error: ValidationError, kind: type[BaseModel], under: str = "") -> str:
    """What is wrong with settings of this kind, each with its path; `under` is put before the paths."""
    return "; ".join(_problem(each, kind, under) for each in error.errors())


def _problem(error: Any, kind: Any, under: str) -> str:
    path = under + ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "extra_forbidden":
            for name in error["loc"][:-1]:
                if isinstance(name, int):
                    continue  # the place in a list, whose items are the kind already
                annotation = kind.model_fields[name].annotation
                kind = next(iter(get_args(annotation)), annotation)
            return f"{path} is no setting; known here: {', '.join(sorted(kind.model_fields))}"
        case "missing":
            flag = f" or with --{path.replace('_', '-')}" if len(error["loc"]) == 1 and not under else ""
            return f"{path} is missing; set it in the file{flag}"
        case _:
            message = str(error["msg"]).removeprefix("Value error, ")
            return f"{path}: {message}" if path else message
