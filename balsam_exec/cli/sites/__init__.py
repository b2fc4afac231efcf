"""`balsam site`: where jobs run."""

from __future__ import annotations

from balsam_exec.cli.common import group
from balsam_exec.cli.sites import agents, places

app = group("Sites: directories on machines where jobs run.")

app.command("init")(places.init)
app.command("ls")(places.list_sites)
app.command("start")(agents.start)
app.command("stop")(agents.stop)
app.command("status")(agents.status)
app.command("sync")(agents.sync)
app.command("mv")(places.move)
app.command("rename")(places.rename)
app.command("rm")(places.remove)
