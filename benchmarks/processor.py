"""The name of this machine's processor, for the records of the benchmarks."""

import platform
from pathlib import Path


def processor() -> str:
    """As Linux knows it, else what Python knows."""
    table = Path("/proc/cpuinfo")
    for line in table.read_text().splitlines() if table.exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
