"""``step-cli`` and ``python -m step_cli``."""

from typing import NoReturn

from step_cli.cli import signals, startup


def main() -> NoReturn:
    """Run the command line; a signal is met from here on."""
    signals.note()
    startup.begin()
    from step_cli.cli.app import main

    main()


if __name__ == "__main__":
    main()
