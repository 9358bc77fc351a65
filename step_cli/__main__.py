"""``python -m step_cli``."""

from step_cli.cli import main

if __name__ == "__main__":
    main()
