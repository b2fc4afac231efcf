"""What the system costs, measured beside peers in the same run: `make bench`, or `python -m benchmarks.NAME`."""
