#!/bin/bash
{{ directives }}
# The script that each allocation of this site runs, a Jinja2 template. Load modules and set variables here: jobs
# inherit them. It may use: job (the batch job), optional_params (of it), site_dir, python, launcher (the command that runs
# the jobs), directives (the lines that ask the batch scheduler for nodes, time, queue, project and optional_params; more
# may follow them).
#
# Keep `exec`, so that the scheduler's signals reach the launcher: it then has its jobs restarted elsewhere.

exec {{ launcher }}
