"""The command `dolly-batch`, before anything large is imported: Ctrl-C in its first second ends it in one line too."""

import sys


def run_script(*command: str) -> None:
    """Run one command with the process's arguments: what spark-submit and a job's wheel task call.

    Returns after success, else raises SystemExit with the code: Databricks calls a wheel's entry point as a function,
    drops what it returns, and takes each SystemExit for a failure, that with 0 too.
    """
    try:
        from dolly_batch.cli import main

        code = main([*command, *sys.argv[1:]])
    except KeyboardInterrupt:  # later ones are told by the command itself
        from dolly_batch.errors import Stopped

        sys.stderr.write("dolly-batch: interrupted\n")
        code = Stopped.exit_code
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_script()
