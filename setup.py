"""Builds the CPU kernels with the package; everything else is said in setup.cfg."""

import importlib.util
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("sanrobust") / "kernels" / "native"


class BuildWithKernels(build_py):
    """Copies the modules, then compiles the kernels; a failing compiler is told, not fatal."""

    def run(self):
        super().run()
        here = Path(__file__).resolve().parent
        if self.editable_mode:
            compile_kernels(here / NATIVE / "lib", None)
        else:
            with tempfile.TemporaryDirectory() as objects:
                compile_kernels(Path(self.build_lib) / NATIVE / "lib", Path(objects))


class DistributionWithKernels(Distribution):
    """Makes the wheel one of this platform."""

    def has_ext_modules(self):
        return True


class WheelForEveryPython(bdist_wheel):
    """Builds one wheel for all versions of Python: the kernels know nothing of it."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


def compile_kernels(target, objects):
    """Run native/build.py, which must not be imported as part of the package yet."""
    path = Path(__file__).resolve().parent / NATIVE / "build.py"
    spec = importlib.util.spec_from_file_location("sanrobust_native_build", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    try:
        module.build(target, objects=objects)
    except module.BuildError as error:
        print(f"sanrobust: no CPU kernels, torch computes instead: {error.reason}",
              file=sys.stderr)


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelForEveryPython},
      distclass=DistributionWithKernels)
