"""Compiles `passes.c`, when the package is installed; for a working tree that is not installed,

    python smdtrack/tracking/measure/backends/compile_passes.py

Standard library only: the build of the package runs this file where nothing is installed yet.
"""

import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

SOURCE = Path(__file__).with_name("passes.c")
#: A copy of the code per instruction set where compiler and linker know how, else one that runs everywhere.
ATTEMPTS: tuple[list[str], ...] = (["-DSMDTRACK_CLONES"], [])


def library_path() -> Path:
    """Where the compiled passes lie, named after their source: those of another version are never loaded."""
    return SOURCE.with_name(f"passes-{zlib.crc32(SOURCE.read_bytes()):08x}.so")


def compile_passes(into: Path) -> bool:
    """Compiles the passes to a shared library; returns False where that cannot be done."""
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / into.name
        for flags in ATTEMPTS:
            # Nothing like -ffast-math: a library linked with it changes how the whole process rounds.
            options = ["-O3", "-std=gnu11", "-shared", "-fPIC", *flags]
            try:
                subprocess.run(
                    [*compiler, *options, str(SOURCE), "-o", str(made)], check=True, capture_output=True, timeout=120
                )
                into.write_bytes(made.read_bytes())
            except (OSError, subprocess.SubprocessError):
                continue
            return True
    return False


if __name__ == "__main__":
    sys.exit(0 if compile_passes(library_path()) else "no C compiler that compiles passes.c: numpy does its work")
