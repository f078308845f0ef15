"""The OpenAI-compatible HTTP API of the edge.

It is imported when HTTP is wanted. Starlette is imported here and in `ecd.http_server`, which runs uvicorn;
prometheus_client here and in `ecd.cloud.metrics`.
"""
