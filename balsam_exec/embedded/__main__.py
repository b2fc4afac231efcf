"""`python -m balsam_exec.embedded HOME`: supervise the deployment at HOME; `balsam up` and executors start this."""

from __future__ import annotations

import sys

from balsam_exec.embedded.supervisor import main

sys.exit(main())
