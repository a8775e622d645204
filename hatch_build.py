"""Compiles the one C file of the package while it is installed, where there is a compiler; else numpy does its work."""

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILING = Path("smdtrack", "tracking", "measure", "backends", "compile_passes.py")


class CompilePasses(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled passes into the wheel, which is then one for this platform and any Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles next to the source, where an editable install looks for them, too."""
        tools = runpy.run_path(str(Path(self.root) / COMPILING))
        library: Path = tools["library_path"]()
        if tools["compile_passes"](library):
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
            build_data["pure_python"] = False
            build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")
