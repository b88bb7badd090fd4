"""Builds the native core (csrc/) with ninja, and installs without it, saying why, where it cannot be built.

The core is compiled once for each instruction set that it may choose at run time. Nothing of torch is needed to build.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# No multiply-add is fused that is not written as one, and no division or root approximated: the bits are the product.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "baseline": [],
}


class NinjaBuild(build_ext):
    """Compiles with ninja; a failure is written into the package instead of stopping the installation."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the core, or says in the package why not."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install builds elsewhere, and imports from the source tree.
        packages = [target.parent] + ([ROOT / "fastinit"] if self.editable_mode else [])
        for package in packages:
            package.mkdir(parents=True, exist_ok=True)
            (package / "native_missing.txt").unlink(missing_ok=True)
        try:
            self._compile(target)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stdout", None) or ""
            print(f"the native core could not be built: {error}\n{output}", file=sys.stderr)
            for package in packages:
                (package / target.name).unlink(missing_ok=True)  # an earlier build's
                (package / "native_missing.txt").write_text(
                    f"the native core was not built when fastinit was installed: {error}\n"
                )

    def _compile(self, target: Path) -> None:
        import ninja
        import pybind11

        compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
        if compiler is None:
            raise OSError("no C++ compiler (g++, c++ or clang++) is on the PATH")
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        sets = X86 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}
        lines = [
            "rule cxx",
            f"  command = {compiler} -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {compiler} -shared -pthread $in -o $out",
            f"build bind.o: cxx {ROOT / 'csrc' / 'bind.cpp'}",
            f"  flags = {' '.join([*FLAGS, *includes])}",
            f"build dispatch.o: cxx {ROOT / 'csrc' / 'dispatch.cpp'}",
            f"  flags = {' '.join(FLAGS)}",
        ]
        for name, flags in sets.items():
            lines.append(f"build fill_cpu.{name}.o: cxx {ROOT / 'csrc' / 'fill_cpu.cpp'}")
            lines.append(f"  flags = {' '.join([*FLAGS, *flags, f'-DFASTINIT_ISA={name}'])}")
        objects = ["bind.o", "dispatch.o", *(f"fill_cpu.{name}.o" for name in sets)]
        lines.append(f"build {target}: link {' '.join(objects)}")
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(build)]
        subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


setup(ext_modules=[Extension("fastinit._native", ["csrc/bind.cpp"], optional=True)], cmdclass={"build_ext": NinjaBuild})
