"""Why a request gets no answer."""

from __future__ import annotations

# HTTP's status codes
NO_FILE, NOT_FOUND, TOO_SLOW, TOO_LARGE, NO_PICTURE, UNREADABLE, BROKEN, BUSY = 400, 404, 408, 413, 415, 422, 500, 503


class RefusedError(Exception):
    """A request that gets no answer.

    Args:
        status: the HTTP status code.
        sentence: the reason, for people.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
