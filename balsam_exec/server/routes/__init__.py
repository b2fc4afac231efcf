"""HTTP: reads requests, calls one use case each, writes answers."""

from __future__ import annotations

from fastapi import APIRouter

from balsam_exec.server.routes import apps, auth, batch_jobs, events, jobs, sessions, sites, transfers

ROUTERS: tuple[APIRouter, ...] = tuple(
    module.router for module in (auth, sites, apps, jobs, batch_jobs, sessions, transfers, events)
)
