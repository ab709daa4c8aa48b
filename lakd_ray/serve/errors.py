"""Define the error of a request that the endpoint rejects."""


class RequestError(Exception):
    """A request that is rejected, with an HTTP status and a message for the client.

    Args:
        status: HTTP status.
        message: the message.
        retry_after_s: seconds after which a busy endpoint may accept the request.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
