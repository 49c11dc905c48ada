"""The recipe for Conan 2: conan create . --build=missing"""
import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain
from conan.tools.files import copy


class Gptq(ConanFile):
    name = "gptq"
    description = "GPTQ weight quantization and packed low-bit matrix products"
    license = "MIT"
    topics = ("quantization", "gptq", "gguf", "llm", "simd", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"quantizer": [True, False], "checkpoint": [True, False]}
    default_options = {"quantizer": True, "checkpoint": True}
    exports_sources = "CMakeLists.txt", "LICENSE", "cmake/*", "include/*"
    no_copy_source = True

    def set_version(self):
        header = (Path(self.recipe_folder) / "include/gptq/version.hpp").read_text()
        self.version = ".".join(re.findall(r"#define GPTQ_VERSION_[A-Z]+ (\d+)", header))

    def requirements(self):
        if self.options.quantizer:
            self.requires("eigen/3.4.0", transitive_headers=True)
        if self.options.checkpoint:
            self.requires("nlohmann_json/3.11.3", transitive_headers=True)

    def validate(self):
        check_min_cppstd(self, 20)

    def package_id(self):
        self.info.settings.clear()

    def generate(self):
        components = [c for c, wanted in (("gptq", self.options.quantizer), ("checkpoint", self.options.checkpoint)) if wanted]
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["GPTQ_COMPONENTS"] = ";".join(components)
        for part in ("TESTS", "BENCHMARKS", "EXAMPLES"):
            toolchain.cache_variables[f"GPTQ_BUILD_{part}"] = False
        toolchain.cache_variables["FETCHCONTENT_FULLY_DISCONNECTED"] = True
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", src=self.source_folder, dst=Path(self.package_folder) / "licenses")

    def package_info(self):
        # Its own package files, for they bring gptq_dispatch() and gptq_solver() along.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["share/cmake/gptq"]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
