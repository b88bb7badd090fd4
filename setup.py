"""Builds the native core (csrc/) with ninja, and installs without what cannot be built, saying why.

Two extensions, of which nothing needs torch to build: ``_native`` is compiled once for each instruction set that it may
choose at run time, ``_cuda`` once for each kind of GPU, where NVIDIA's compiler is found.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
# No multiply-add is fused that is not written as one, and no division or root approximated: the bits are the product.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "baseline": [],
}
# Machine code for these GPUs, as far as the compiler knows them, and for all others, later ones among them, the
# portable code of the first, which the driver compiles.
GPUS = ["80", "90", "100", "120"]
CUDA_FLAGS = ["-std=c++17", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-diag-suppress", "1675"]
# What the package says where an extension is missing (fastinit/backends reads it).
REASONS = {"_native": ("native_missing.txt", "the native core"), "_cuda": ("cuda_missing.txt", "the CUDA kernel")}


class NinjaBuild(build_ext):
    """Compiles with ninja; a failure is written into the package instead of stopping the installation."""

    def build_extension(self, ext: Extension) -> None:
        """Builds an extension, or says in the package why not."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        name = ext.name.split(".")[-1]
        file, what = REASONS[name]
        # An editable install builds elsewhere, and imports from the source tree.
        packages = [target.parent] + ([ROOT / "fastinit"] if self.editable_mode else [])
        for package in packages:
            package.mkdir(parents=True, exist_ok=True)
            (package / file).unlink(missing_ok=True)
        try:
            build = Path(self.build_temp).resolve() / name
            build.mkdir(parents=True, exist_ok=True)
            lines = (native_rules if name == "_native" else cuda_rules)(target)
            (build / "build.ninja").write_text("\n".join(lines) + "\n")
            import ninja

            command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(build)]
            subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stdout", None) or ""
            print(f"{what} could not be built: {error}\n{output}", file=sys.stderr)
            for package in packages:
                (package / target.name).unlink(missing_ok=True)  # an earlier build's
                (package / file).write_text(f"{what} was not built when fastinit was installed: {error}\n")


def cxx_rules() -> list[str]:
    """Returns the rule that compiles C++."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler (g++, c++ or clang++) is on the PATH")
    return [
        f"cxx = {compiler}",
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def binding(source: str) -> list[str]:
    """Returns how bind.o is made: the one file that sees pybind11 and Python."""
    import pybind11

    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    return [f"build bind.o: cxx {CSRC / source}", f"  flags = {' '.join([*FLAGS, *includes])}"]


def native_rules(target: Path) -> list[str]:
    """Returns ninja's file for the kernels of the CPU."""
    sets = X86 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}
    lines = [
        *cxx_rules(),
        "rule link",
        "  command = $cxx -shared -pthread $in -o $out",
        *binding("bind.cpp"),
        f"build dispatch.o: cxx {CSRC / 'dispatch.cpp'}",
        f"  flags = {' '.join(FLAGS)}",
    ]
    for name, flags in sets.items():
        lines.append(f"build fill_cpu.{name}.o: cxx {CSRC / 'fill_cpu.cpp'}")
        lines.append(f"  flags = {' '.join([*FLAGS, *flags, f'-DFASTINIT_ISA={name}'])}")
    objects = ["bind.o", "dispatch.o", *(f"fill_cpu.{name}.o" for name in sets)]
    return [*lines, f"build {target}: link {' '.join(objects)}"]


def cuda_rules(target: Path) -> list[str]:
    """Returns ninja's file for the kernel of NVIDIA GPUs."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(places))
    if nvcc is None:
        raise OSError("NVIDIA's compiler nvcc is neither on the PATH nor in CUDA_HOME nor in /usr/local/cuda")
    command = [nvcc, "--list-gpu-arch"]
    known = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    codes = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in GPUS if f"compute_{gpu}\n" in known]
    codes.append(f"-gencode=arch=compute_{GPUS[0]},code=compute_{GPUS[0]}")
    return [
        *cxx_rules(),
        # One GPU's code after the other takes a minute; --threads 0: as many at once as there are processors.
        "rule nvcc",
        f"  command = {nvcc} --threads 0 -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        # The runtime is linked in, and hidden: torch has one of its own.
        "rule link",
        f"  command = {nvcc} -shared -cudart static -Xlinker --exclude-libs,ALL $in -o $out",
        *binding("bind_cuda.cpp"),
        f"build fill_cuda.o: nvcc {CSRC / 'fill_cuda.cu'}",
        f"  flags = {' '.join([*CUDA_FLAGS, *codes])}",
        f"build {target}: link bind.o fill_cuda.o",
    ]


setup(
    ext_modules=[
        Extension("fastinit._native", ["csrc/bind.cpp"], optional=True),
        Extension("fastinit._cuda", ["csrc/bind_cuda.cpp"], optional=True),
    ],
    cmdclass={"build_ext": NinjaBuild},
)
