"""Builds the native core (csrc/) with ninja, and installs without what cannot be built, saying why.

Two extensions, of which nothing needs torch to build: ``_native`` is compiled once for each instruction set that it may
choose at run time, ``_cuda`` once for each kind of GPU, where NVIDIA's compiler is found. What cannot be built leaves a
text in the package, which ``fastinit.available_backends()`` shows: the error, in the compiler's words.

Environment variables that the build reads:

- ``FASTINIT_CUDA``: 0 leaves the CUDA kernel out, 1 makes it an error that it cannot be built. Unset or empty, it is
  built where nvcc is found.
- ``FASTINIT_CUDA_ARCHS``: the GPUs to compile for, by compute capability, separated by commas, semicolons or spaces:
  ``90``, ``8.0,9.0+PTX``. Machine code for exactly these, and the portable code of those with ``+PTX``, else of the
  lowest: drivers compile it for every later GPU. By default ``GPUS``, as far as nvcc knows them.
- ``FASTINIT_REQUIRE_BUILD``: ``native``, ``cuda`` or both, with a comma: an error where one of these cannot be built.
  For packagers and CI, whose wheel must not lack what it is made for.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
# No multiply-add is fused that is not written as one, and no division or root approximated: the bits are the product.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "baseline": [],
}
# Sources that are compiled once for each of these.
ONCE = ["dispatch", "fresh_memory", "read_rows"]
PER_INSTRUCTION_SET = ["fill_cpu", "digest_cpu", "convert_cpu"]
# Machine code for these GPUs, as far as the compiler knows them, and for all others, later ones among them, the
# portable code of the first, which the driver compiles. The first is the oldest on which the backend runs
# (fastinit/backends/gpu_launch.py).
GPUS = ["80", "90", "100", "120"]
CUDA_FLAGS = ["-std=c++17", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-diag-suppress", "1675"]
# An error takes one or two lines; those after the third follow from the first. A reason is shown in one line of text.
MAX_LINES, MAX_CHARACTERS = 3, 500
# How compilers, linkers, shells and ninja begin to tell an error, in English (LC_ALL=C).
ERROR = re.compile(
    r"\b(error|fatal|killed|undefined reference|cannot find|not found|no such file|permission denied|no space left)\b",
    re.IGNORECASE,
)


class Part(NamedTuple):
    """An extension: its name for users, what it is, and the file that says why it is missing (fastinit/backends)."""

    name: str
    what: str
    reason_file: str


PARTS = {
    "_native": Part("native", "the native core", "native_missing.txt"),
    "_cuda": Part("cuda", "the CUDA kernel", "cuda_missing.txt"),
}


class Gpu(NamedTuple):
    """A GPU to compile for: its compute capability without the dot, and whether to keep its portable code."""

    number: str
    ptx: bool


class Switches(NamedTuple):
    """What the environment asks of the build."""

    with_cuda: bool
    gpus: list[Gpu]
    required: set[str]


class BuildError(Exception):
    """Why an extension cannot be built, as it is told to users."""


def switches() -> Switches:
    """Returns what the environment asks for; exits at a mistake in it, before anything is built."""
    cuda = os.environ.get("FASTINIT_CUDA", "").strip()
    if cuda not in ("", "0", "1"):
        sys.exit(f"FASTINIT_CUDA: expected 0 (without the CUDA kernel) or 1 (not without it), got {cuda!r}")
    required = set(words_of("FASTINIT_REQUIRE_BUILD"))
    names = [part.name for part in PARTS.values()]
    for name in sorted(required - set(names)):
        sys.exit(f"FASTINIT_REQUIRE_BUILD: expected {' or '.join(names)}, or both with a comma, got {name!r}")
    if cuda == "0" and "cuda" in required:
        sys.exit(
            "FASTINIT_REQUIRE_BUILD asks for the CUDA kernel, and FASTINIT_CUDA=0 leaves it out: unset one of them"
        )
    if cuda == "1":
        required.add("cuda")
    return Switches(cuda != "0", [gpu_of(word) for word in words_of("FASTINIT_CUDA_ARCHS")], required)


def words_of(variable: str) -> list[str]:
    """Returns the entries of a list in the environment."""
    return [word for word in re.split(r"[\s,;]+", os.environ.get(variable, "")) if word]


def gpu_of(word: str) -> Gpu:
    """Returns the GPU that an entry of FASTINIT_CUDA_ARCHS means; exits where it means none."""
    match = re.fullmatch(r"(\d{1,2})\.?(\d)(\+PTX)?", word, re.IGNORECASE)
    if match is None:
        sys.exit(
            f"FASTINIT_CUDA_ARCHS: expected compute capabilities such as 90, 9.0 or 9.0+PTX, separated by commas, "
            f"semicolons or spaces, got {word!r}; names of GPUs and suffixes such as in 9.0a are not taken"
        )
    number = match[1] + match[2]
    if int(number) < int(GPUS[0]):
        sys.exit(f"FASTINIT_CUDA_ARCHS: the CUDA kernel runs on GPUs of compute capability 8.0 or later, got {word!r}")
    return Gpu(number, match[3] is not None)


class NinjaBuild(build_ext):
    """Compiles with ninja; a failure is written into the package instead of stopping the installation."""

    def run(self) -> None:
        """Builds all extensions."""
        # Kept, as setuptools clears it while it builds: the package is then imported from the source tree.
        self.is_for_checkout = bool(self.inplace) or self.editable_mode
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Builds an extension, or says in the package why not; exits where it must not be missing."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        name = ext.name.split(".")[-1]
        part = PARTS[name]
        packages = [target.parent] + ([ROOT / "fastinit"] if self.is_for_checkout else [])
        for package in packages:
            package.mkdir(parents=True, exist_ok=True)
            (package / part.reason_file).unlink(missing_ok=True)
        try:
            build = Path(self.build_temp).resolve() / name
            build.mkdir(parents=True, exist_ok=True)
            lines = native_rules(target) if name == "_native" else cuda_rules(target)
            (build / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")
            run_ninja(build)
        except (BuildError, ImportError, OSError) as error:
            reason = f"{part.what} was not built when fastinit was installed: {told(error)}"
            for package in packages:
                (package / target.name).unlink(missing_ok=True)  # an earlier build's
            if part.name in SWITCHES.required:
                sys.exit(f"{reason}\nThis build was not to do without it (FASTINIT_REQUIRE_BUILD or FASTINIT_CUDA=1).")
            print(reason, file=sys.stderr, flush=True)
            for package in packages:
                (package / part.reason_file).write_text(f"{reason}\n", encoding="utf-8")


def run_ninja(build: Path) -> None:
    """Runs ninja in a folder, and shows what it does (``pip install -v``) while it does it.

    Raises:
        BuildError: something does not compile; the message is the compiler's.
    """
    import ninja

    # In English, so that the lines that matter are found.
    command, environment = [Path(ninja.BIN_DIR) / "ninja", "-C", build], {**os.environ, "LC_ALL": "C"}
    lines = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            lines.append(line.decode(errors="replace"))
    if process.returncode != 0:
        raise BuildError(said(lines) or f"ninja ended with status {process.returncode} and said nothing")


def said(lines: list[str]) -> str:
    """Returns what a failed build said: the first lines that tell an error, else the last ones, in one line of text."""
    words: list[str] = []
    is_command = False  # ninja repeats the command that failed
    for line in lines:
        # A compiler that stops in the middle of a line has ninja's next one behind it.
        text = re.sub(r"\[\d+/\d+\] .*", "", line).strip()
        if text and not is_command and not re.match(r"FAILED: |ninja: (Entering|build stopped)", text):
            words.append(shortened(text))
        is_command = text.startswith("FAILED: ")
    # One error comes once for every instruction set.
    words = list(dict.fromkeys(words))
    text = "; ".join([line for line in words if ERROR.search(line)][:MAX_LINES] or words[-MAX_LINES:])
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."


def shortened(text: str) -> str:
    """Returns a text with paths relative to the project, and of others the last part: most are gone after a build."""
    return re.sub(r"(?:(?<![\w.~-])|(?<=-[IL]))/(?:[^\s/:;,'\"`()]+/)+", "", text.replace(f"{ROOT}{os.sep}", ""))


def told(error: Exception) -> str:
    """Returns a failure as the reason tells it."""
    if isinstance(error, ImportError):
        return f"the build needs the package {error.name}, which is not installed"
    return str(error) if isinstance(error, BuildError) else shortened(str(error))


def escaped(path: Path) -> str:
    """Returns a path as ninja reads it among the names of files."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def quoted(word: str) -> str:
    """Returns a word as ninja hands it to the shell within a command."""
    return shlex.quote(word).replace("$", "$$")


def cxx_rules() -> list[str]:
    """Returns the rule that compiles C++."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler (g++, c++ or clang++) is on the PATH")
    return [
        f"cxx = {quoted(compiler)}",
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def binding(source: str) -> list[str]:
    """Returns how bind.o is made: the one file that sees pybind11 and Python."""
    import pybind11

    includes = [quoted(f"-I{folder}") for folder in (pybind11.get_include(), sysconfig.get_paths()["include"])]
    return [f"build bind.o: cxx {escaped(CSRC / source)}", f"  flags = {' '.join([*FLAGS, *includes])}"]


def native_rules(target: Path) -> list[str]:
    """Returns ninja's file for the kernels of the CPU."""
    sets = X86 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}
    lines = [
        *cxx_rules(),
        "rule link",
        "  command = $cxx -shared -pthread $in -o $out",
        *binding("bind.cpp"),
    ]
    for source in ONCE:
        lines += [f"build {source}.o: cxx {escaped(CSRC / f'{source}.cpp')}", f"  flags = {' '.join(FLAGS)}"]
    for name, flags in sets.items():
        for source in PER_INSTRUCTION_SET:
            lines.append(f"build {source}.{name}.o: cxx {escaped(CSRC / f'{source}.cpp')}")
            lines.append(f"  flags = {' '.join([*FLAGS, *flags, f'-DFASTINIT_ISA={name}'])}")
    objects = ["bind.o", *(f"{source}.o" for source in ONCE)]
    objects += [f"{source}.{name}.o" for name in sets for source in PER_INSTRUCTION_SET]
    return [*lines, f"build {escaped(target)}: link {' '.join(objects)}"]


def cuda_rules(target: Path) -> list[str]:
    """Returns ninja's file for the kernel of NVIDIA GPUs."""
    if not SWITCHES.with_cuda:
        raise BuildError("FASTINIT_CUDA=0 was set")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(places))
    if nvcc is None:
        raise BuildError("NVIDIA's compiler nvcc is neither on the PATH nor in CUDA_HOME nor in /usr/local/cuda")
    codes = gpu_codes(nvcc)
    print(f"compiling the CUDA kernel: {' '.join(codes)}", flush=True)
    return [
        *cxx_rules(),
        # One GPU's code after the other takes a minute; --threads 0: as many at once as there are processors.
        "rule nvcc",
        f"  command = {quoted(nvcc)} --threads 0 -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        # The runtime is linked in, and hidden: torch has one of its own.
        "rule link",
        f"  command = {quoted(nvcc)} -shared -cudart static -Xlinker --exclude-libs,ALL $in -o $out",
        *binding("bind_cuda.cpp"),
        f"build fill_cuda.o: nvcc {escaped(CSRC / 'fill_cuda.cu')}",
        f"  flags = {' '.join([*CUDA_FLAGS, *codes])}",
        f"build {escaped(target)}: link bind.o fill_cuda.o",
    ]


def gpu_codes(nvcc: str) -> list[str]:
    """Returns the flags that say for which GPUs nvcc compiles.

    Raises:
        BuildError: nvcc is too old for them.
    """
    known = re.findall(r"compute_(\d+)\b", answer_of(nvcc, "--list-gpu-arch"))
    if SWITCHES.gpus:
        numbers = sorted({gpu.number for gpu in SWITCHES.gpus}, key=int)
        # No code of the kernel depends on the GPU, so the lowest one's portable code serves the most GPUs.
        portable = sorted({gpu.number for gpu in SWITCHES.gpus if gpu.ptx}, key=int) or numbers[:1]
        missing = [number for number in numbers if number not in known]
    else:
        numbers, portable = [number for number in GPUS if number in known], GPUS[:1]
        missing = [] if GPUS[0] in known else GPUS[:1]
    if missing:
        raise BuildError(
            f"{nvcc} ({release_of(nvcc)}) does not compile for GPUs of compute capability "
            f"{', '.join(f'{number[:-1]}.{number[-1]}' for number in missing)}; it knows {', '.join(known) or 'none'}"
        )
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    return [*codes, *(f"-gencode=arch=compute_{number},code=compute_{number}" for number in portable)]


def answer_of(nvcc: str, question: str) -> str:
    """Returns what nvcc answers; its error is told with its release, as one too old does not know the question."""
    done = subprocess.run(
        [nvcc, question], text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        words = said(done.stdout.splitlines()) or f"it ended with status {done.returncode} and said nothing"
        raise BuildError(f"{nvcc} ({release_of(nvcc)}) {question}: {words}")
    return done.stdout


def release_of(nvcc: str) -> str:
    """Returns the release of CUDA that nvcc belongs to, e.g. ``CUDA 13.0``."""
    done = subprocess.run([nvcc, "--version"], text=True, errors="replace", stdout=subprocess.PIPE)
    release = re.search(r"release (\d+\.\d+)", done.stdout)
    return f"CUDA {release[1]}" if release else "of an unknown release"


def description() -> str:
    """Returns README.md for package indexes, which have none of the files that it links to.

    A relative link becomes one to ``Source`` of pyproject.toml's [project.urls]. As long as there is none, it becomes
    the path of the file in the sdist.
    """
    found = re.search(r'^Source = "(.+?)/?"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    source = found and found[1]

    def link(match: re.Match[str]) -> str:
        image, text, path, section = match.groups("")
        if source:
            return f"{image}[{text}]({source}/{'raw' if image else 'blob'}/main/{path}{section})"
        return f"`{path}`" if text == path else f"{text} (`{path}`)"

    relative = re.compile(r"(!?)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")
    # Every second part is an example, which stays as it is.
    parts = re.split(
        r"(^```.*?^```$)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    parts[::2] = [relative.sub(link, part) for part in parts[::2]]
    return "".join(parts) + ("" if source else "\nThe files that are named here are in the source distribution.\n")


SWITCHES = switches()
setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension("fastinit._native", ["csrc/bind.cpp"], optional=True),
        Extension("fastinit._cuda", ["csrc/bind_cuda.cpp"], optional=True),
    ],
    cmdclass={"build_ext": NinjaBuild},
)
