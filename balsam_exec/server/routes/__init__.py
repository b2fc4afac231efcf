"""HTTP: reads requests, calls one use case each, writes answers."""

from __future__ import annotations

from fastapi import APIRouter

from balsam_exec.server.routes import apps, auth, batch_jobs, events, files, hooks, jobs, sessions, sites, transfers

ROUTERS: tuple[APIRouter, ...] = tuple(
    # The busiest first: a request is matched against one after the other.
    module.router
    for module in (sessions, events, jobs, hooks, sites, apps, batch_jobs, transfers, files, auth)
)
