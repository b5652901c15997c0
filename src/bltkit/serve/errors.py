"""Errors as OpenAI's clients expect them: one JSON object that names the field and the remedy.

No message repeats text that the user sent: it may be no valid UTF-8, private, or read by somebody else in a log.
Numbers are repeated, and names of fields where they look like names.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from bltkit.config import nearest

INVALID = "invalid_request_error"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")


class ApiError(Exception):
    """A request that is answered with an error.

    status: of HTTP. param: the field at fault. code: a word for programs. kind: OpenAI's `type`. retry_after: seconds
    until another attempt may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.retry_after = retry_after

    @property
    def content(self) -> dict[str, Any]:
        """The body."""
        return error_content(self.message, self.param, self.code, self.kind)

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def error_content(message: str, param: str | None, code: str | None, kind: str) -> dict[str, Any]:
    """The one shape of every error."""
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": param, "code": code}}


def invalid(param: str, message: str, code: str | None = None) -> ApiError:
    """A 400 about a field; `message` says what it must be."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def explained(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """What is wrong with a body: its first fault."""
    faults = error.errors(include_url=False, include_input=False)
    # A misspelt required field is both unknown and missing; the unknown one shows the slip.
    first = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")
    location = list(first["loc"])
    if first["type"] == "extra_forbidden":
        name = str(location[-1])
        shown = name if _NAME.fullmatch(name) else None
        names = sorted(_fields(model) if len(location) == 1 else [])
        hint = nearest(name, names) if names else ""
        where = _path(location[:-1])
        what = f"unknown field {shown}" if shown else "a field's name is unknown"
        inside = f" in {where}" if where else ""
        return ApiError(400, f"{what}{inside}{hint.replace(chr(39), '')}", param=shown, code="unknown_parameter")
    param = _path(location) or None
    if first["type"] == "missing":
        return ApiError(400, f"{param}: is missing; give it a value", param=param, code="missing_required_parameter")
    message = str(first.get("ctx", {}).get("error", "")) or _plain(first["msg"])
    if param is None and first["type"] == "value_error":  # of several fields together: it begins with the one at fault
        param = message.partition(":")[0]
        return ApiError(400, message, param=param, code="invalid_value")
    return ApiError(400, f"{param or 'the body'}: {message}", param=param, code="invalid_value")


_WORDS = {
    "valid string": "text",
    "valid dictionary": "object",
    "valid integer": "whole number",
    "valid number": "number",
    "valid list": "list",
    "valid boolean": "boolean (true or false)",
}


def _plain(message: str) -> str:
    """A message of pydantic's in the words of JSON."""
    message = re.sub(r" or (an )?instance of \w+", "", message.replace("Input should be", "must be"))
    for theirs, ours in _WORDS.items():
        message = message.replace(f"a {theirs}", f"{'an' if ours[0] == 'o' else 'a'} {ours}")
    return message[:1].lower() + message[1:]


def _fields(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)


def _path(location: Sequence[int | str]) -> str:
    """`messages[0].content` of ("messages", 0, "content"); members of unions are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _NAME.fullmatch(part) and not part[:1].isupper() and part not in ("str", "list", "int", "float", "bool"):
            path += f".{part}" if path else part
    return path
