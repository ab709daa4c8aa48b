"""The HTTP endpoint: an API, its Ray Serve application, and a client.

`api` and `upload` know HTTP and no Ray; `app` and `run` know Ray Serve; `client` and `answers` are for those who ask.
"""
