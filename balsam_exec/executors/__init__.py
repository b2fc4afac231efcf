"""Executors: the front doors through which other people's tools submit jobs."""
