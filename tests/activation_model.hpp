// Prepared activations without gptq's own code: the arithmetic of activations.hpp, written a second time,
// column by column.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <gptq/activations.hpp>

#include "support.hpp"

namespace test {

/// Columns first..first+columns-1, in stored order, of one group.
struct chunk {
  index_t group;
  index_t first;
  index_t columns;
};

/// Groups of group_columns columns, each cut every 128 columns.
inline std::vector<chunk> chunks_of(index_t in, index_t group_columns) {
  std::vector<chunk> chunks;
  for (index_t start = 0, group = 0; start < in; start += group_columns, ++group) {
    index_t const end = std::min(start + group_columns, in);
    for (index_t first = start; first < end; first += 128) {
      chunks.push_back({group, first, std::min<index_t>(128, end - first)});
    }
  }
  return chunks;
}

/// Digits of a chunk, or of a padded one: smallest multiple of 32 that a full chunk fits into.
inline index_t stride_of(index_t group_columns) {
  return (std::min<index_t>(group_columns, 128) + 31) / 32 * 32;
}

/// |x' - x| is at most the chunk's largest magnitude over this, as activations.hpp states.
inline double stated_error(gptq::precision p) {
  return p == gptq::precision::int8    ? 1.0 / 253
         : p == gptq::precision::int15 ? 1.0 / 64000
         : p == gptq::precision::int23 ? 1.0 / 4000000
                                       : 0.0;
}

/// x of one chunk of one token: x' = scale * (digits[0] + 256 digits[1] + 65536 digits[2]).
struct model_chunk {
  float scale = 0.0F;
  std::vector<std::int8_t> digits[3];

  double value(index_t column) const {
    double sum = 0.0;
    for (int p = 0; p < 3; ++p) {
      if (!digits[p].empty()) sum += std::ldexp(digits[p][static_cast<std::size_t>(column)], 8 * p);
    }
    return sum * static_cast<double>(scale);
  }
};

inline model_chunk model_digits(std::vector<float> const& x, int planes) {
  model_chunk model;
  float amax = 0.0F;
  bool finite = true;
  for (float const v : x) {
    finite = finite && std::isfinite(v);
    amax = std::max(amax, std::abs(v));
  }
  bool const counts = finite && amax >= 0x1p-100F;
  float const largest = 127.0F * (planes == 1 ? 1.0F : planes == 2 ? 256.0F : 65536.0F);
  float const steps = counts ? largest / amax : 0.0F;
  model.scale = counts ? amax / largest : finite ? 0.0F : std::bit_cast<float>(0x7fc00000u);
  for (float const v : x) {
    float const exact = counts ? v * steps : 0.0F;
    int whole = static_cast<int>(std::nearbyint(exact));
    for (int p = 0; p < planes; ++p) {
      int const digit = p + 1 < planes ? ((whole + 128) & 255) - 128 : whole;
      whole = (whole - digit) / 256;
      model.digits[p].push_back(static_cast<std::int8_t>(digit));
    }
  }
  return model;
}

/// What prepare() leaves in the workspace, byte for byte. x[tokens, in] in original column order.
struct model_activations {
  std::vector<chunk> chunks;
  index_t stride = 0;
  int planes = 0;
  index_t tokens = 0;
  std::vector<model_chunk> cells;  ///< [chunk, token]; none with float32
  std::vector<std::uint8_t> bytes;

  model_chunk const& cell(std::size_t c, index_t token) const {
    return cells[c * static_cast<std::size_t>(tokens) + static_cast<std::size_t>(token)];
  }
};

/// The x of a chunk, in stored order.
inline std::vector<float> stored_x(float const* row, chunk const& c, std::vector<std::int32_t> const& order) {
  std::vector<float> x;
  for (index_t p = c.first; p < c.first + c.columns; ++p) {
    x.push_back(row[order.empty() ? p : index_t{order[static_cast<std::size_t>(p)]}]);
  }
  return x;
}

inline model_activations prepared_model(gptq::precision precision, std::vector<float> const& x, index_t in,
                                        index_t group_columns, std::vector<std::int32_t> const& order) {
  model_activations a;
  a.chunks = chunks_of(in, group_columns);
  a.stride = stride_of(group_columns);
  a.planes = static_cast<int>(precision == gptq::precision::float32 ? 0 : 1 + static_cast<int>(precision));
  a.tokens = in == 0 ? 0 : static_cast<index_t>(x.size()) / in;
  auto const put = [&](void const* p, std::size_t n) {
    std::size_t const size = a.bytes.size();
    a.bytes.resize(size + n);
    std::memcpy(a.bytes.data() + size, p, n);
  };
  auto const padded = static_cast<std::size_t>(a.stride);
  for (auto const& c : a.chunks) {
    for (index_t token = 0; token < a.tokens; ++token) {
      auto values = stored_x(x.data() + token * in, c, order);
      if (a.planes == 0) {
        values.resize(padded);
        put(values.data(), 4 * padded);
        continue;
      }
      a.cells.push_back(model_digits(values, a.planes));
      for (int p = 0; p < a.planes; ++p) {
        auto digits = a.cells.back().digits[p];
        digits.resize(padded);
        put(digits.data(), padded);
      }
    }
  }
  for (auto const& cell : a.cells) {
    for (int p = 0; p < a.planes; ++p) {
      std::int32_t all = 0;
      std::int16_t of_pairs[2][2] = {};
      for (std::size_t c = 0; c < cell.digits[p].size(); ++c) {
        std::int16_t& sum = of_pairs[c / 64][c % 4 / 2];
        all -= cell.digits[p][c];
        sum = static_cast<std::int16_t>(sum - cell.digits[p][c]);
      }
      put(&all, 4);
      put(of_pairs, 8);
    }
  }
  for (auto const& cell : a.cells) put(&cell.scale, 4);
  return a;
}

}  // namespace test
