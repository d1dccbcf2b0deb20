"""Builds the C extension; everything else about the package is in pyproject.toml.

The extension is every C file of pyvm/native.  It must keep libunicorn's internal symbols undefined: they are found at
run time, in the library that the unicorn package loads, so the linker is given nothing but libdl.
"""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("pyvm/native")

setup(
    ext_modules=[
        Extension(
            "pyvm.native",
            sources=sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            libraries=["dl"],
            # Replacement functions are exported one by one; the rest must not collide with libunicorn's own names.
            extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
        )
    ],
)
