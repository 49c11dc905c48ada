// same_in_cpp <in.safetensors> <out.safetensors>   what test_gptq.py does with the module, without it.
#include <span>
#include <vector>

#include <gptq/checkpoint/safetensors.hpp>
#include <gptq/dispatch.hpp>
#include <gptq/gptq.hpp>

#include "kernels.hpp"

int main(int /*argc*/, char** argv) {
  using namespace gptq::checkpoint;
  using q4 = gptq::format<gptq::asymmetric, 4, 32>;
  safetensors_file const file(argv[1]);
  auto const matrix = [&](char const* name) {
    auto const& shape = file.find(name)->shape;
    auto const values = to_float(*file.find(name));
    return gptq::matrix(Eigen::Map<gptq::matrix const>(values.data(), static_cast<gptq::index_t>(shape[0]),
                                                       static_cast<gptq::index_t>(shape[1])));
  };
  gptq::matrix const weight = matrix("weight"), x = matrix("x");
  gptq::hessian h(x.cols());
  h.add(x);
  auto const layer = gptq::quantize<q4>(weight, h);
  auto const packed = gptq::pack(layer);
  auto const w = packed.view();

  auto const table =
      gptq::dispatch(gptq::isa::dispatched{}, []<class Isa>() { return python::kernels_for<Isa>(); });
  python::products<q4> const& run = table;
  std::vector<float> one(static_cast<std::size_t>(w.out)), all(static_cast<std::size_t>(x.rows() * w.out));
  run.gemv(w, x.data(), one.data());
  std::vector<char> workspace(gptq::workspace_bytes(w.layout(), x.rows()));
  run.gemm(w, run.prepare(w, x.data(), x.rows(), workspace.data()), all.data());

  auto const bytes = [](auto const& values) { return std::as_bytes(std::span(values)); };
  write_safetensors(argv[2],
                    {{"codes", {dtype::u8, {layer.codes.size()}, bytes(layer.codes)}},
                     {"scales", {dtype::f32, {layer.scales.size()}, bytes(layer.scales)}},
                     {"zeros", {dtype::u8, {layer.zeros.size()}, bytes(layer.zeros)}},
                     {"packed",
                      {dtype::u8,
                       {static_cast<std::size_t>(w.layout().code_bytes())},
                       std::as_bytes(std::span(w.codes, static_cast<std::size_t>(w.layout().code_bytes())))}},
                     {"gemv", {dtype::f32, {one.size()}, bytes(one)}},
                     {"gemm", {dtype::f32, {all.size()}, bytes(all)}}});
}
