"""`crm-replay` from its first moment: what a command imports takes a second, and Ctrl-C then is no defect either."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; interrupted while it is still being imported, it ends as it does later on."""
    try:
        from ops.cli import main as cli
    except KeyboardInterrupt:
        sys.stderr.write("crm-replay: interrupted\n")
        sys.exit(INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()
