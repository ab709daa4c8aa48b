"""Define the error of a request that the endpoint rejects."""


class RequestError(Exception):
    """A request that is rejected, with an HTTP status and a message for the client."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message
