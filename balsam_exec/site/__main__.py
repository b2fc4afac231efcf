"""`python -m balsam_exec.site DIR`: serve the site at DIR until SIGTERM, SIGINT, or the end of the standard input."""

from __future__ import annotations

import sys

from balsam_exec.site.main import main

sys.exit(main())
