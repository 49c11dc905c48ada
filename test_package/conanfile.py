"""A stranger's project (tests/consumer) with what the recipe packed: all of it, or the kernels alone."""
from pathlib import Path

from conan import ConanFile
from conan.tools.build import can_run
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout


class Stranger(ConanFile):
    settings = "os", "arch", "compiler", "build_type"
    generators = "CMakeDeps"

    def requirements(self):
        self.requires(self.tested_reference_str)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        options = self.dependencies["gptq"].options
        everything = str(options.quantizer) == "True" and str(options.checkpoint) == "True"
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["way"] = "installed"
        toolchain.cache_variables["program"] = "quantizer" if everything else "engine"
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure(build_script_folder="../tests/consumer")
        cmake.build()

    def test(self):
        if can_run(self):
            self.run(str(Path(self.build_folder) / "stranger"), env="conanrun")
