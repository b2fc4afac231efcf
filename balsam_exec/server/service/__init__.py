"""The use cases: the only code that changes state. Plain functions over a `Unit`, one transaction each."""
