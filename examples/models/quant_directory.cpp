#include "quant_directory.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <toml++/toml.h>

#include <gptq/checkpoint/files.hpp>
#include <gptq/error.hpp>

#include "formats.hpp"
#include "model.hpp"
#include "npy.hpp"
#include "output_files.hpp"

namespace lm {
namespace {

namespace fs = std::filesystem;

constexpr char const* index_name = "quant.toml";

layer_grids grids_of(packed_linear const& packed) {
  auto const parts = packed.parts();
  return gptq::with_format<formats>(packed.format(), [&]<class Format>() {
    auto const view = view_of<Format>(parts);
    layer_grids grids;
    grids.bits = Format::bits;
    grids.group_size = Format::group_size;
    grids.symmetric = !Format::has_zero_point && !Format::levels.is_half_step();
    grids.out = view.out;
    grids.groups = view.layout().groups();
    for (gptq::index_t row = 0; row < view.out; ++row) {
      for (gptq::index_t group = 0; group < grids.groups; ++group) {
        gptq::grid const g = view.grid(row, group);
        grids.scales.push_back(g.scale);
        if (!grids.symmetric) grids.zeros.push_back(Format::levels.zero_point(g));
      }
    }
    if (Format::group_size != gptq::whole_row) {
      grids.group_ids.resize(static_cast<std::size_t>(view.in));
      for (gptq::index_t p = 0; p < view.in; ++p) {
        auto const column = view.order == nullptr ? p : gptq::index_t{view.order[p]};
        grids.group_ids[static_cast<std::size_t>(column)] =
            static_cast<std::int32_t>(p / view.layout().group_columns());
      }
    }
    return grids;
  });
}

/// A layer's files, and its table.
toml::table write_layer(fs::path const& directory, std::string const& name, layer_grids const& grids) {
  auto const file = [&](char const* what) { return fmt::format("{}.{}.npy", name, what); };
  std::size_t const shape[] = {static_cast<std::size_t>(grids.out), static_cast<std::size_t>(grids.groups)};
  toml::table table{{"scale", file("scale")},
                    {"wbits", grids.bits},
                    {"groupsize", grids.group_size},
                    {"sym", grids.symmetric},
                    {"perchannel", true}};
  write_npy<float>(directory / file("scale"), shape, grids.scales);
  if (!grids.symmetric) {
    write_npy<float>(directory / file("zero"), shape, grids.zeros);
    table.insert("zero", file("zero"));
  }
  if (!grids.group_ids.empty()) {
    std::size_t const columns[] = {grids.group_ids.size()};
    write_npy<std::int32_t>(directory / file("group_ids"), columns, grids.group_ids);
    table.insert("group_ids", file("group_ids"));
  }
  return table;
}

/// The table of one layer.
class layer_reader {
 public:
  layer_reader(fs::path const& directory, std::string const& name, toml::node const& node)
      : directory_(directory),
        where_(fmt::format("{}: '{}'", (directory / index_name).string(), name)),
        table_(node.as_table()) {
    if (table_ == nullptr) fail("is not a table");
  }

  layer_grids read() const {
    layer_grids grids;
    grids.bits = integer("wbits");
    if (grids.bits != 2 && grids.bits != 3 && grids.bits != 4 && grids.bits != 8) {
      fail(fmt::format("has wbits {}, not 2, 3, 4 or 8", grids.bits));
    }
    grids.group_size = integer("groupsize");
    if (grids.group_size != gptq::whole_row && grids.group_size <= 0) {
      fail(fmt::format("has groupsize {}, neither positive nor -1", grids.group_size));
    }
    grids.symmetric = flag("sym");
    if (!flag("perchannel")) fail("has one grid for all rows: not implemented");
    auto scales = array<float>("scale", 2);
    grids.out = static_cast<std::int64_t>(scales.shape[0]);
    grids.groups = static_cast<std::int64_t>(scales.shape[1]);
    for (float const scale : scales.values) {
      if (!std::isfinite(scale)) fail(fmt::format("has a scale that is {}", scale));
    }
    grids.scales = std::move(scales.values);
    if (!grids.symmetric) {
      auto zeros = array<float>("zero", 2);
      if (zeros.shape != scales.shape) {
        fail(fmt::format("has {} x {} zeros for {} x {} scales", zeros.shape[0], zeros.shape[1],
                         scales.shape[0], scales.shape[1]));
      }
      auto const last = static_cast<float>((1 << grids.bits) - 1);
      for (float const zero : zeros.values) {
        if (!(zero >= 0.0F && zero <= last) || 2.0F * zero != std::floor(2.0F * zero)) {
          fail(fmt::format("has a zero that is {}, no multiple of 1/2 between 0 and {}", zero, last));
        }
      }
      grids.zeros = std::move(zeros.values);
    }
    if (grids.group_size == gptq::whole_row) {
      if (grids.groups != 1) fail(fmt::format("has {} groups in rows of one", grids.groups));
      return grids;
    }
    grids.group_ids = array<std::int32_t>("group_ids", 1).values;
    for (std::int32_t const id : grids.group_ids) {
      if (id < 0 || id >= grids.groups) {
        fail(fmt::format("has a column in group {} of {}", id, grids.groups));
      }
    }
    return grids;
  }

 private:
  [[noreturn]] void fail(std::string const& what) const { throw gptq::error(where_ + " " + what); }

  int integer(char const* key) const {
    auto const value = (*table_)[key].value_exact<std::int64_t>();
    if (!value || *value < -1 || *value > (1 << 24)) fail(fmt::format("has no whole number '{}'", key));
    return static_cast<int>(*value);
  }

  bool flag(char const* key) const {
    auto const value = (*table_)[key].value_exact<bool>();
    if (!value) fail(fmt::format("has no true or false '{}'", key));
    return *value;
  }

  template <class T>
  npy_array<T> array(char const* key, std::size_t dimensions) const {
    auto const file = (*table_)[key].value_exact<std::string>();
    if (!file) fail(fmt::format("has no file '{}'", key));
    if (file->empty() || *file == "." || *file == ".." || file->find('/') != std::string::npos ||
        file->find('\0') != std::string::npos) {
      fail(fmt::format("has its {} in '{}', which is no name in this directory", key, *file));
    }
    auto values = read_npy<T>(directory_ / *file);
    if (values.shape.size() != dimensions) {
      fail(fmt::format("has its {} in an array of {} dimensions, not {}", key, values.shape.size(),
                       dimensions));
    }
    return values;
  }

  fs::path const& directory_;
  std::string where_;
  toml::table const* table_;
};

}  // namespace

void prepare_quant_directory(fs::path const& directory, bool replace) {
  if (!replace && fs::exists(directory / index_name)) {
    throw gptq::error(directory.string() + ": holds such an export already");
  }
  make_directory(directory);
}

void write_quant_directory(fs::path const& directory, model const& m) {
  prepare_quant_directory(directory, true);
  std::error_code ignored;
  fs::remove(directory / index_name, ignored);  // it would be whole no longer
  toml::table index;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    auto const& linears = m.config().layer(i).linears;
    for (std::size_t place = 0; place < linears.size(); ++place) {
      std::string const& name = linears[place].name;
      packed_linear const* const packed = m.packed(i, place);
      if (packed == nullptr) throw gptq::error(name + " is not quantized");
      index.insert(name, write_layer(directory, name, grids_of(*packed)));
    }
  }
  std::ostringstream text;
  text << index << '\n';
  write_text(directory / index_name, text.str());
}

model_grids read_quant_directory(fs::path const& directory) {
  auto const path = directory / index_name;
  gptq::checkpoint::mapped_file const file(path);
  toml::table index;
  try {
    index = toml::parse(file.text());
  } catch (toml::parse_error const& e) {
    throw gptq::error(fmt::format("{}: line {}: not valid TOML: {}", path.string(), e.source().begin.line,
                                  e.description()));
  }
  model_grids grids;
  for (auto const& [key, node] : index) {
    std::string const name(key.str());
    grids[name] = layer_reader(directory, name, node).read();
  }
  return grids;
}

void check_shape(layer_grids const& grids, std::int64_t out, std::int64_t in) {
  auto const columns = static_cast<std::int64_t>(grids.group_ids.size());
  if (grids.out == out && (grids.group_ids.empty() || columns == in)) return;
  throw gptq::error(fmt::format(
      "grids for {} rows{} do not fit a weight of {} x {}", grids.out,
      grids.group_ids.empty() ? std::string() : fmt::format(" and {} columns", columns), out, in));
}

void round_to(layer_grids const& grids, gptq::matrix& weight) {
  int const last = (1 << grids.bits) - 1;
  for (Eigen::Index row = 0; row < weight.rows(); ++row) {
    for (Eigen::Index column = 0; column < weight.cols(); ++column) {
      auto const group = grids.group_ids.empty() ? 0 : grids.group_ids[static_cast<std::size_t>(column)];
      auto const i = static_cast<std::size_t>(row * grids.groups + group);
      float const zero = grids.symmetric ? static_cast<float>(1 << (grids.bits - 1)) : grids.zeros[i];
      gptq::code_levels const levels{0, last, false, zero};
      gptq::grid const g{grids.scales[i], 0};
      weight(row, column) = levels.decode(levels.encode(weight(row, column), g), g);
    }
  }
}

}  // namespace lm
