"""The OpenAI-compatible HTTP API of the edge.

Only this package imports Starlette, uvicorn and prometheus_client. It is imported when HTTP is wanted.
"""
