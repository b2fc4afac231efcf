"""HTTP: reads requests, calls one use case each, writes answers."""

from __future__ import annotations

from fastapi import APIRouter

from balsam_exec.server.routes import apps, auth, events, jobs, sessions, sites

ROUTERS: tuple[APIRouter, ...] = (auth.router, sites.router, apps.router, jobs.router, sessions.router, events.router)
