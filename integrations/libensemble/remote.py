"""The same campaign at a site elsewhere: libEnsemble runs here, the MPI runs there, and all between is REST.

With --site it goes to a site of the service that you are logged in to (`balsam login URL`). Without, a service and a
site that play the part are started on this machine, in a home of their own: we get a URL and a token, and never look
into their directories.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from campaign import Heat, give_cores, parser, report_errors, run, use
from pydantic import SecretStr
from rich.console import Console

from balsam_exec.client.config import Credentials, save_credentials
from balsam_exec.embedded import Deployment
from balsam_exec.model.auth import TokenSpec
from balsam_exec.model.sites import SitePatch


@contextmanager
def elsewhere(home: Path, cores: int) -> Iterator[Credentials]:
    """Another machine: what its owner gives to a user of its service and its site."""
    with Deployment.start(home, temporary=True) as deployment:
        give_cores(deployment, cores)
        service = deployment.service()
        token = service.create_token(TokenSpec(name="campaign"))
        site = service.site(deployment.site_id)
        # As with a site elsewhere, nobody finds its directory on this machine.
        service.patch_site(site.id, SitePatch(path="/elsewhere", hostname="elsewhere.example.org"))
        try:
            yield Credentials(url=deployment.url, token=SecretStr(token.token), site=site.name)
        finally:
            service.patch_site(site.id, SitePatch(path=site.path, hostname=site.hostname))
            service.revoke_token(token.id)


def main() -> int:
    arguments = parser(__doc__, "heat-remote-run")
    arguments.add_argument("--site", help="the name of your site; by default one that is started for this campaign")
    options = arguments.parse_args()
    console = Console()
    if options.site is not None:
        Heat.site = options.site
        return run(options, console)
    use(options.directory / "home")
    with elsewhere(options.directory / "elsewhere", options.workers * options.ranks) as credentials:
        save_credentials(credentials)
        return run(options, console)


if __name__ == "__main__":
    sys.exit(report_errors(main))
