"""``step-cli`` and ``python -m step_cli``."""

import gc
from typing import NoReturn

from step_cli.cli import signals


def main() -> NoReturn:
    """Run the command line; a signal is met from here on."""
    signals.note()
    gc.disable()  # while modules are imported, nothing becomes garbage
    from step_cli.cli.app import main

    main()


if __name__ == "__main__":
    main()
