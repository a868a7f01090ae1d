"""Compiles the kernels of the runtime when a wheel is built, where there is a compiler.

    python hatch_build.py    the same beside the sources, for a checkout that is not installed

The extension keeps to the stable ABI, so one build serves all versions of Python from 3.11 on.
Without a compiler, or with one that lacks GCC's vector extensions, the wheel holds no compiled code
and Limbeck answers through ONNX Runtime.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCE = Path("src/limbeck/runtime/_kernels.c")
# numbers that are none must stay so: they are how a wrong answer is noticed; hence no -ffast-math
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-cast-function-type"]


def compile_kernels() -> Path | None:
    """Build the extension beside its source.

    Returns:
        The file; ``None`` if it cannot be built here, for a reason that is printed.
    """
    try:
        from setuptools import Distribution, Extension
        from setuptools.command.build_ext import build_ext
        from setuptools.errors import BaseError, CCompilerError, CompileError, LinkError
    except ModuleNotFoundError:
        print("limbeck: no compiled kernels: setuptools is missing.", file=sys.stderr)
        return None
    extension = Extension(
        "limbeck.runtime._kernels",
        [str(ROOT / SOURCE)],
        py_limited_api=True,
        extra_compile_args=FLAGS,
        libraries=["m"],
    )
    command = build_ext(Distribution({"name": "limbeck", "ext_modules": [extension]}))
    command.build_lib = str(ROOT / "src")
    command.build_temp = str(ROOT / "build" / "kernels")
    try:
        command.ensure_finalized()
        command.run()
    except (BaseError, CCompilerError, CompileError, LinkError, OSError) as error:
        print(f"limbeck: no compiled kernels: {error}.", file=sys.stderr)
        return None
    return Path(command.get_ext_fullpath(extension.name))


class CustomBuildHook(BuildHookInterface[Any]):
    """What hatchling calls before it builds a wheel, editable ones too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what the wheel holds then."""
        built = compile_kernels()
        if built is None:
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"
        build_data["artifacts"].append(built.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    sys.exit(compile_kernels() is None)
