"""Where the process begins."""

import sys


def start() -> None:
    """Runs the command line; a Ctrl-C while that is still being imported is no traceback."""
    try:
        from .main import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    start()
