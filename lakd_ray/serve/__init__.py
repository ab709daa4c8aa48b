"""The HTTP endpoint is an API, its Ray Serve application, a web page and a client.

`api`, `upload`, `websocket` and `web` use HTTP without Ray; `app` and `deploy` use Ray Serve; `client` needs neither.
`messages` are the JSON bodies that client and API share. `openapi` documents the routes.
"""
