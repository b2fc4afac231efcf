"""What a site has to do, for those who decide how many nodes to ask for."""

from __future__ import annotations

from typing import Any

from balsam_exec.model.backlog import BacklogQuery
from balsam_exec.model.errors import NotFound
from balsam_exec.server.store import backlog as store
from balsam_exec.server.store import filters
from balsam_exec.server.store import sites as site_store
from balsam_exec.server.store.database import Connection


def backlog(connection: Connection, owner_id: int, site_id: int, query: BacklogQuery, now: int) -> dict[str, Any]:
    """A `Backlog`. Raises NotFound (the site), InvalidRequest (a tag that is not "key:value")."""
    if site_store.site(connection, owner_id, site_id) is None:
        raise NotFound(f"there is no site {site_id}")
    tags = filters.tag_pairs(query.tags)
    return {
        "runnable": store.runnable(connection, owner_id, site_id, tags),
        "held": store.held(connection, site_id, now),
    }
