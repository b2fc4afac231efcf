"""Hooks of apps, run in processes of their own: for the agent of a site, and for launchers (`shell_preamble`)."""
