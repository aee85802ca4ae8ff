"""API errors in the shape a real API server answers: a Status object."""

from __future__ import annotations

from typing import Any

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


class ApiError(Exception):
    """An answer other than success; `status` is its body."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or REASONS.get(code, "Unknown")
        self.details = details or {}
        self.headers = headers or {}

    @property
    def status(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


def not_found(qualified: str, name: str) -> ApiError:
    details = {"name": name, "kind": qualified.partition(".")[0]}
    return ApiError(404, f'{qualified} "{name}" not found', details=details)


def already_exists(qualified: str, name: str, *, being_deleted: bool) -> ApiError:
    prefix = "object is being deleted: " if being_deleted else ""
    message = f'{prefix}{qualified} "{name}" already exists'
    return ApiError(409, message, reason="AlreadyExists", details={"name": name})


def invalid(qualified_kind: str, name: str, problems: list[str]) -> ApiError:
    """422 with one cause per problem; each problem reads `field: what is wrong`."""
    text = problems[0] if len(problems) == 1 else "[" + ", ".join(problems) + "]"
    causes = [
        {"field": field, "message": message} for field, _, message in (problem.partition(": ") for problem in problems)
    ]
    details = {"name": name, "kind": qualified_kind.partition(".")[0], "causes": causes}
    return ApiError(422, f'{qualified_kind} "{name}" is invalid: {text}', details=details)
