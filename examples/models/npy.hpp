// Arrays of numbers as numpy saves them (.npy).
//
// A file is "\x93NUMPY", two bytes of version, the length of a header (2 bytes in version 1, 4 in 2 and 3),
// the header (a Python dictionary: descr, fortran_order, shape) and the numbers.
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace lm {

/// T: float or std::int32_t; row-major.
template <class T>
struct npy_array {
  std::vector<std::size_t> shape;
  std::vector<T> values;  ///< product of shape
};

/// Throws gptq::error, naming the file, unless it is a whole array of T, of at most two dimensions.
template <class T>
npy_array<T> read_npy(std::filesystem::path const& path);

/// The file appears under its name only when it is complete and on the disk. Throws gptq::error when the disk
/// does not take it.
template <class T>
void write_npy(std::filesystem::path const& path, std::span<std::size_t const> shape,
               std::span<T const> values);

}  // namespace lm
