"""Limits at the place where bytes arrive: code that runs inside Ray Serve's proxy, in front of the ingress.

Serve's proxy alone reads bodies without a limit and waits for requests without a deadline. `middleware` is the hook
that Serve calls in the proxy, `connections` bounds connections and their headers, and `backpressure` stops reading a
body or a stream that the ingress does not take. `errors` are the proxy's own responses.
"""
