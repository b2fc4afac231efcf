"""`balsam server`: the service itself, for those who run one for others."""

from __future__ import annotations

from balsam_exec.cli.common import group

app = group("The service, for those who run one.")
