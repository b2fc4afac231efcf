"""The `balsam` command: parsing and printing, one module for each noun.

Modules here import little at the top; what a command needs is imported when it runs.
"""


def main() -> None:
    """Run the command line of this process."""
    from balsam_exec.cli.app import app

    app(prog_name="balsam")
