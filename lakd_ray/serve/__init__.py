"""The HTTP endpoint is an API, its Ray Serve application, a web page and a client.

`api`, `upload`, `websocket` and `web` use HTTP without Ray; `app` and `deploy` use Ray Serve; `client` needs neither, and
shares its messages with the API in `messages`. `openapi` documents the routes.
"""
