// numpy in, numpy out. Layers and packed matrices are Python objects whose format is a value; the arrays that they show
// are theirs and read-only.
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <gptq/checkpoint/gptq.hpp>
#include <gptq/checkpoint/safetensors.hpp>
#include <gptq/dispatch.hpp>
#include <gptq/gptq.hpp>

#include "kernels.hpp"

namespace nb = nanobind;
using gptq::index_t;

namespace {

using floats = nb::ndarray<float const, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ints = nb::ndarray<std::int32_t const, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

/// An array that owns a copy of the values.
template <class T>
nb::ndarray<nb::numpy, T> array(std::vector<T> values, std::initializer_list<std::size_t> shape) {
  auto* const kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return {kept->data(), shape, owner};
}

Eigen::Map<gptq::matrix const> as_matrix(floats const& a) {
  return {a.data(), static_cast<index_t>(a.shape(0)), static_cast<index_t>(a.shape(1))};
}

/// A quantized layer whose format is a value.
struct layer {
  gptq::format_spec spec;
  gptq::quantized_layer<gptq::format<gptq::asymmetric, 8, 32>> values;  // the arrays of every format's

  template <class Format>
  static layer from(gptq::quantized_layer<Format> of_format) {
    layer l{gptq::to_spec<Format>(), {}};
    l.values.out = of_format.out;
    l.values.in = of_format.in;
    l.values.codes = std::move(of_format.codes);
    l.values.scales = std::move(of_format.scales);
    l.values.zeros = std::move(of_format.zeros);
    l.values.order = std::move(of_format.order);
    l.values.report = of_format.report;
    return l;
  }
  template <class Format>
  gptq::quantized_layer<Format> as() const {
    return {values.out, values.in, values.codes, values.scales, values.zeros, values.order, values.report};
  }
  template <class F>
  decltype(auto) with_format(F&& f) const {
    return gptq::with_format<python::formats>(spec, std::forward<F>(f));
  }
  std::size_t out() const { return static_cast<std::size_t>(values.out); }
  std::size_t in() const { return static_cast<std::size_t>(values.in); }
  std::size_t groups() const { return out() == 0 ? 0 : values.scales.size() / out(); }
};

python::table<python::formats> const& kernels() {
  static auto const best =
      gptq::dispatch(gptq::isa::dispatched{}, []<class Isa>() { return python::kernels_for<Isa>(); });
  return best;
}

/// A packed matrix of any format.
struct packed {
  gptq::format_spec spec;
  index_t out = 0, in = 0;
  double bits_per_weight = 0.0;
  virtual ~packed() = default;
  virtual std::span<std::uint8_t const> codes() const = 0;
  virtual void multiply(float const* x, index_t tokens, float* y) const = 0;
  virtual layer unpacked() const = 0;
};

template <class Format>
struct packed_of final : packed {
  gptq::packed_matrix<Format> matrix;

  explicit packed_of(gptq::packed_matrix<Format> m) : matrix(std::move(m)) {
    spec = gptq::to_spec<Format>();
    out = matrix.out();
    in = matrix.in();
    bits_per_weight = matrix.bits_per_weight();
  }
  std::span<std::uint8_t const> codes() const override {
    return {matrix.view().codes, static_cast<std::size_t>(matrix.layout().code_bytes())};
  }
  void multiply(float const* x, index_t tokens, float* y) const override {
    python::products<Format> const& run = kernels();
    auto const w = matrix.view();
    if (tokens == 1) return run.gemv(w, x, y);
    std::vector<std::byte> workspace(gptq::workspace_bytes(w.layout(), tokens) + 64);
    void* aligned = workspace.data();
    std::size_t space = workspace.size();
    std::align(64, workspace.size() - 64, aligned, space);
    run.gemm(w, run.prepare(w, x, tokens, aligned), y);
  }
  layer unpacked() const override { return layer::from(gptq::unpack(matrix.view())); }
};

gptq::quantize_options options_from(std::string const& quality, bool act_order, double damping, int threads) {
  static std::map<std::string, gptq::quality> const qualities{{"reference", gptq::quality::reference},
                                                              {"plain", gptq::quality::plain},
                                                              {"fast", gptq::quality::fast},
                                                              {"best", gptq::quality::best}};
  auto const known = qualities.find(quality);
  if (known == qualities.end())
    throw gptq::error("quality is reference, plain, fast or best, not '" + quality + "'");
  return {.quality = known->second, .act_order = act_order, .damping = damping, .threads = threads};
}

layer quantize(floats weight, floats x, std::string const& scheme, int bits, int group_size,
               std::string const& quality, bool act_order, double damping, int threads) {
  auto const options = options_from(quality, act_order, damping, threads);
  nb::gil_scoped_release const others_may_run;
  gptq::hessian h(static_cast<index_t>(x.shape(1)), threads);
  h.add(as_matrix(x));
  return gptq::with_format<python::formats>({scheme, bits, group_size}, [&]<class Format>() {
    return layer::from(gptq::quantize<Format>(as_matrix(weight), h, options));
  });
}

layer round_to_nearest(floats weight, std::string const& scheme, int bits, int group_size) {
  return gptq::with_format<python::formats>({scheme, bits, group_size}, [&]<class Format>() {
    return layer::from(gptq::round_to_nearest<Format>(as_matrix(weight)));
  });
}

std::unique_ptr<packed> pack(layer const& l) {
  return l.with_format([&]<class Format>() -> std::unique_ptr<packed> {
    return std::make_unique<packed_of<Format>>(gptq::pack(l.as<Format>()));
  });
}

nb::ndarray<nb::numpy, float> dequantize(layer const& l) {
  gptq::matrix const weights =
      l.with_format([&]<class Format>() { return gptq::dequantize(l.as<Format>()); });
  return array(std::vector<float>(weights.data(), weights.data() + weights.size()), {l.out(), l.in()});
}

std::vector<float> product(packed const& w, float const* x, std::size_t columns, index_t tokens) {
  if (columns != static_cast<std::size_t>(w.in)) {
    throw gptq::error("x has " + std::to_string(columns) + " columns, the matrix " + std::to_string(w.in));
  }
  nb::gil_scoped_release const others_may_run;
  std::vector<float> y(static_cast<std::size_t>(tokens * w.out));
  w.multiply(x, tokens, y.data());
  return y;
}

/// The bytes of an array, copied.
template <class T, class Array>
std::vector<T> values_of(Array const& a) {
  std::vector<T> values(a.size());
  static_assert(sizeof(T) == sizeof(*a.data()));
  if (!values.empty()) std::memcpy(static_cast<void*>(values.data()), a.data(), values.size() * sizeof(T));
  return values;
}

gptq::checkpoint::gptq_version version_of(int version) {
  if (version != 1 && version != 2) throw gptq::error("version is 1 or 2");
  return version == 1 ? gptq::checkpoint::gptq_version::v1 : gptq::checkpoint::gptq_version::v2;
}

/// Values of one type as an array of another of the same size: words and halves, which numpy has names of its own for.
nb::object raw_array(void const* data, std::vector<std::size_t> const& shape, nb::dlpack::dtype type) {
  std::size_t bytes = type.bits / 8;
  for (std::size_t const extent : shape) bytes *= extent;
  auto* const copy = new std::byte[bytes + 1];
  if (bytes != 0) std::memcpy(copy, data, bytes);
  nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<std::byte*>(p); });
  return nb::cast(nb::ndarray<nb::numpy>(copy, shape.size(), shape.data(), owner, nullptr, type));
}

constexpr nb::dlpack::dtype float16_type{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};

nb::dict to_gptq(layer const& l, int version) {
  auto const tensors = l.with_format(
      [&]<class Format>() { return gptq::checkpoint::to_gptq(l.as<Format>(), version_of(version)); });
  auto const int32 = nb::dtype<std::int32_t>();
  std::size_t const n = l.out();
  nb::dict result;
  result["qweight"] = raw_array(tensors.qweight.data(), {n == 0 ? 0 : tensors.qweight.size() / n, n}, int32);
  std::size_t const zeros = l.groups() == 0 ? 0 : tensors.qzeros.size() / l.groups();
  result["qzeros"] = raw_array(tensors.qzeros.data(), {l.groups(), zeros}, int32);
  result["scales"] = raw_array(tensors.scales.data(), {l.groups(), n}, float16_type);
  result["g_idx"] = raw_array(tensors.g_idx.data(), {tensors.g_idx.size()}, int32);
  return result;
}

std::span<std::byte const> bytes_of(nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> const& a) {
  return {static_cast<std::byte const*>(a.data()), a.nbytes()};
}

layer from_gptq(std::map<std::string, nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>> const& tensors,
                std::string const& scheme, int bits, int group_size, int version) {
  for (char const* name : {"qweight", "qzeros", "scales", "g_idx"}) {
    if (tensors.count(name) == 0) throw gptq::error(std::string("there is no ") + name);
  }
  gptq::checkpoint::gptq_view const view{
      .out = static_cast<index_t>(tensors.at("scales").shape(1)),
      .in = static_cast<index_t>(tensors.at("g_idx").shape(0)),
      .qweight = bytes_of(tensors.at("qweight")),
      .qzeros = bytes_of(tensors.at("qzeros")),
      .scales = bytes_of(tensors.at("scales")),
      .g_idx = bytes_of(tensors.at("g_idx")),
  };
  return gptq::with_format<python::formats>({scheme, bits, group_size}, [&]<class Format>() {
    return layer::from(gptq::checkpoint::from_gptq<Format>(view, version_of(version)));
  });
}

using gptq::checkpoint::dtype;
using code = nb::dlpack::dtype_code;

/// Types of tensors that numpy has, too.
struct numpy_type {
  dtype type;
  code kind;
  std::uint8_t bits;
};
constexpr numpy_type numpy_types[] = {
    {dtype::f64, code::Float, 64}, {dtype::f32, code::Float, 32}, {dtype::f16, code::Float, 16},
    {dtype::i64, code::Int, 64},   {dtype::i32, code::Int, 32},   {dtype::i16, code::Int, 16},
    {dtype::i8, code::Int, 8},     {dtype::u64, code::UInt, 64},  {dtype::u32, code::UInt, 32},
    {dtype::u16, code::UInt, 16},  {dtype::u8, code::UInt, 8}};

nb::dict read_safetensors(std::string const& path) {
  gptq::checkpoint::safetensors_file const file(path);
  nb::dict result;
  for (auto const& [name, tensor] : file.tensors()) {
    auto const* const known = std::find_if(std::begin(numpy_types), std::end(numpy_types),
                                           [type = tensor.type](auto const& t) { return t.type == type; });
    if (known != std::end(numpy_types)) {
      result[name.c_str()] = raw_array(tensor.bytes.data(), tensor.shape,
                                       {static_cast<std::uint8_t>(known->kind), known->bits, 1});
    } else if (tensor.type == dtype::bf16) {  // which numpy has not: as float32, the same values
      auto const values = gptq::checkpoint::to_float(tensor);
      result[name.c_str()] = raw_array(values.data(), tensor.shape, nb::dtype<float>());
    } else {
      throw gptq::error(path + ": numpy has no type for " + name + ", " + to_string(tensor));
    }
  }
  return result;
}

void write_safetensors(
    std::string const& path,
    std::map<std::string, nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>> const& tensors) {
  gptq::checkpoint::tensor_map map;
  for (auto const& [name, a] : tensors) {
    auto const* const known =
        std::find_if(std::begin(numpy_types), std::end(numpy_types), [&](auto const& t) {
          return static_cast<std::uint8_t>(t.kind) == a.dtype().code && t.bits == a.dtype().bits;
        });
    if (known == std::end(numpy_types)) throw gptq::error(name + ": safetensors have no such type");
    std::vector<std::size_t> shape(a.ndim());
    for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = a.shape(i);
    map.emplace(name, gptq::checkpoint::tensor_view{known->type, shape, bytes_of(a)});
  }
  gptq::checkpoint::write_safetensors(path, map);
}

nb::dict report_of(layer const& l) {
  gptq::quantize_report const& r = l.values.report;
  nb::dict d;
  d["loss"] = r.loss;
  d["output_error"] = r.output_error;
  d["snr_db"] = r.snr_db;
  d["damping"] = r.damping;
  d["damping_raised"] = r.damping_raised;
  d["dead_columns"] = r.dead_columns;
  d["seconds"] = r.seconds;
  return d;
}

}  // namespace

NB_MODULE(_gptq, m) {
  m.doc() = "GPTQ weight quantization and packed low-bit matrix products.";
  nb::exception<gptq::error>(m, "Error", PyExc_ValueError);

  nb::class_<layer>(m, "Layer", "A quantized layer: weight = scale * (code - zero).")
      .def_prop_ro("scheme", [](layer const& l) { return l.spec.scheme; })
      .def_prop_ro("bits", [](layer const& l) { return l.spec.bits; })
      .def_prop_ro("group_size", [](layer const& l) { return l.spec.group_size; })
      .def_prop_ro(
          "codes",
          [](layer const& l) {
            return array(l.values.codes, {l.out(), l.in()});
          },
          nb::rv_policy::move, "Codes [out, in], columns in stored order.")
      .def_prop_ro(
          "scales",
          [](layer const& l) {
            return array(l.values.scales, {l.out(), l.groups()});
          },
          nb::rv_policy::move, "Scales [out, groups].")
      .def_prop_ro(
          "zeros",
          [](layer const& l) -> std::optional<nb::ndarray<nb::numpy, std::uint8_t>> {
            if (l.values.zeros.empty()) return std::nullopt;
            return array(l.values.zeros, {l.out(), l.groups()});
          },
          nb::rv_policy::move, "Zero points [out, groups], or None where the scheme has one for all.")
      .def_prop_ro(
          "order",
          [](layer const& l) -> std::optional<nb::ndarray<nb::numpy, std::int32_t>> {
            if (l.values.order.empty()) return std::nullopt;
            return array(l.values.order, {l.in()});
          },
          nb::rv_policy::move, "Original column of each stored one, or None where they are the same.")
      .def_prop_ro("report", report_of, "What quantizing cost: errors, damping, seconds.");

  nb::class_<packed>(m, "Packed", "A matrix in the bytes that kernels read.")
      .def_prop_ro(
          "shape", [](packed const& w) { return std::pair(w.out, w.in); }, "(out, in)")
      .def_prop_ro("bits_per_weight", [](packed const& w) { return w.bits_per_weight; })
      .def_prop_ro(
          "codes",
          [](packed const& w) {
            auto const c = w.codes();
            return array(std::vector<std::uint8_t>(c.begin(), c.end()), {c.size()});
          },
          nb::rv_policy::move, "The packed codes.")
      .def("unpack", &packed::unpacked, "The layer again, without its report.");

  m.def("quantize", &quantize, nb::arg("weight"), nb::arg("x"), nb::kw_only(),
        nb::arg("scheme") = "fixed_zero", nb::arg("bits") = 4, nb::arg("group_size") = 128,
        nb::arg("quality") = "fast", nb::arg("act_order") = false, nb::arg("damping") = 0.01,
        nb::arg("threads") = 0, "GPTQ of weight[out, in] for a layer that reads inputs like x[tokens, in].");
  m.def("round_to_nearest", &round_to_nearest, nb::arg("weight"), nb::kw_only(),
        nb::arg("scheme") = "fixed_zero", nb::arg("bits") = 4, nb::arg("group_size") = 128,
        "Every weight for itself, to its nearest level.");
  m.def("dequantize", &dequantize, nb::arg("layer"), "The weights [out, in] that the codes stand for.");
  m.def("pack", &pack, nb::arg("layer"));
  m.def(
      "gemv",
      [](packed const& w, nb::ndarray<float const, nb::ndim<1>, nb::c_contig, nb::device::cpu> x) {
        return array(product(w, x.data(), x.shape(0), 1), {static_cast<std::size_t>(w.out)});
      },
      nb::arg("w"), nb::arg("x"), "y[out] = W x, with x[in] rounded to 8 bits.");
  m.def(
      "gemm",
      [](packed const& w, floats x) {
        return array(product(w, x.data(), x.shape(1), static_cast<index_t>(x.shape(0))),
                     {x.shape(0), static_cast<std::size_t>(w.out)});
      },
      nb::arg("w"), nb::arg("x"), "y[tokens, out] = x[tokens, in] W', on one thread.");
  m.def("to_gptq", &to_gptq, nb::arg("layer"), nb::arg("version") = 1,
        "The tensors of a GPTQ checkpoint: qweight, qzeros, scales, g_idx.");
  m.def("from_gptq", &from_gptq, nb::arg("tensors"), nb::kw_only(), nb::arg("scheme"), nb::arg("bits"),
        nb::arg("group_size"), nb::arg("version") = 1, "The layer that such tensors hold.");
  m.def("read_safetensors", &read_safetensors, nb::arg("path"),
        "Names with their arrays; bfloat16 becomes float32.");
  m.def("write_safetensors", &write_safetensors, nb::arg("path"), nb::arg("tensors"),
        "Writes a file, whole or not at all.");
  m.def(
      "isa", [] { return std::string(gptq::best_isa()); },
      "The best instruction set that this CPU has kernels for.");
}
