"""Compiles `passes.c` to a shared library beside it.

The build of the package runs this file. In a working tree that was not installed, run it by hand:

    python smdtrack/tracking/measure/backends/compile_passes.py

It imports the standard library only, because nothing else is installed while the package is built.
"""

import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

SOURCE = Path(__file__).with_name("passes.c")
#: Compiler flags, tried in this order: a copy of the code per instruction set, which needs support by the compiler and
#: the linker; then one copy that runs everywhere.
FLAGS_TO_TRY: tuple[list[str], ...] = (["-DSMDTRACK_CLONES"], [])


def library_path() -> Path:
    """Returns where the library lies. Its name holds a checksum of the source: an outdated one is never loaded."""
    return SOURCE.with_name(f"passes-{zlib.crc32(SOURCE.read_bytes()):08x}.so")


def compile_passes(into: Path) -> bool:
    """Compiles the passes into a shared library. Returns whether that succeeded."""
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / into.name
        for flags in FLAGS_TO_TRY:
            # No -ffast-math: a library that is linked with it changes how the whole process rounds.
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
    sys.exit(
        0 if compile_passes(library_path()) else "no C compiler that compiles passes.c: numpy will be used instead"
    )
