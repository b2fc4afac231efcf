"""`python -m balsam_exec.server`: one server process, for supervisors and the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from balsam_exec.server.config import ServerSettings
from balsam_exec.server.run import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m balsam_exec.server", description=__doc__)
    parser.add_argument(
        "--database", metavar="URL", help="sqlite:///FILE or postgresql://...; default: $BALSAM_SERVER_DATABASE_URL"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, metavar="N", help="serve on this inherited listening socket")
    parser.add_argument("--bootstrap", type=Path, metavar="FILE", help="write the URL and a token to this JSON file")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    if options.database is None and "BALSAM_SERVER_DATABASE_URL" not in os.environ:
        parser.error("give --database or set BALSAM_SERVER_DATABASE_URL")
    serve(
        ServerSettings(**({} if options.database is None else {"database_url": options.database})),
        host=options.host,
        port=options.port,
        fd=options.fd,
        bootstrap_file=options.bootstrap,
        until_eof=options.until_eof,
    )


if __name__ == "__main__":
    main()
