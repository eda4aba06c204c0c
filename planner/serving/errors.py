"""What the endpoint refuses, as OpenAI's clients read it."""

from planner.yaml_text import Plain

BAD_REQUEST, NOT_FOUND, WRONG_METHOD, TOO_LARGE, UNPROCESSABLE, TOO_MANY = 400, 404, 405, 413, 422, 429
FAILED, UNAVAILABLE = 500, 503


class HttpError(Exception):
    """A request that ends in a status and one line; `param` is the field of the request that is to blame."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def as_json(self) -> dict[str, Plain]:
        """The body.

        >>> HttpError(429, "3 requests wait").as_json()
        {'error': {'message': '3 requests wait', 'type': 'rate_limit_error', 'param': None, 'code': None}}
        """
        kind = "invalid_request_error"
        if self.status == TOO_MANY:
            kind = "rate_limit_error"
        elif self.status >= FAILED:
            kind = "server_error"
        message = " ".join(self.message.split())
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str, found: object, needed: str) -> HttpError:
    """A field whose value is of the wrong type or out of range."""
    shown = repr(found)
    if len(shown) > 40:
        shown = f"{shown[:37]}..."
    return HttpError(UNPROCESSABLE, f"{param}: found {shown}; {needed}", param)


def unsupported(param: str, why: str) -> HttpError:
    """A field that would change the reply in a way this endpoint has not."""
    return HttpError(BAD_REQUEST, f"{param}: {why}", param, "unsupported_parameter")
