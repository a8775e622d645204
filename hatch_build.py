"""Build hook: compiles the package's C file and puts the recipes into the wheel."""

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILE_PASSES = Path("smdtrack", "tracking", "measure", "backends", "compile_passes.py")


class PackageHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs once per wheel, also for `pip install .` and for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds what is not in the folder `smdtrack`.

        Args:
            version: "standard" or "editable".
            build_data: Read by hatchling after this call.
        """
        self._compile_passes(build_data)
        if version == "standard":
            self._include_recipes(build_data)

    def _compile_passes(self, build_data: dict[str, Any]) -> None:
        """Compiles beside the source, where an editable install finds the library too.

        Without a C compiler the wheel is pure Python, and numpy does the same work at run time. With one the wheel is
        for this platform and for any Python, because the library does not use Python's C API.
        """
        tools = runpy.run_path(str(Path(self.root) / COMPILE_PASSES))
        library: Path = tools["library_path"]()
        if tools["compile_passes"](library):
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
            build_data["pure_python"] = False
            build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")

    def _include_recipes(self, build_data: dict[str, Any]) -> None:
        """Puts the recipes into the wheel as `smdtrack/_recipes`, from where `smdtrack demo` runs them."""
        recipes = Path(self.root) / "recipes"
        for path in sorted(recipes.rglob("*")):
            if path.suffix in (".py", ".yaml", ".md"):
                build_data["force_include"][str(path)] = f"smdtrack/_recipes/{path.relative_to(recipes).as_posix()}"
