"""The application on a device of its own process, over the predictors of ``ray_library``: for any ASGI server."""

from __future__ import annotations

import functools

import ray_library
from fastapi import FastAPI

import service.app
from service import asgi


def create() -> FastAPI:
    """Return what ``service.asgi`` makes of the environment, but for the models."""
    service.app.create_app = functools.partial(service.app.create_app, library=ray_library.fakes())  # type: ignore[assignment]
    return asgi.create()
