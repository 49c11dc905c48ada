// GPTQ of linear layers on the GPU.
//
//   gptq::cuda::context ctx(stream);
//   auto layers = gptq::cuda::quantize<q4>(ctx, {{q, rows}, {k, rows}, {v, rows}}, h, {.quality =
//   gptq::quality::plain}); auto layer = layers.host(0);                                // a
//   gptq::quantized_layer, for pack()
//
// The same codes as gptq::quantize, up to what rounding makes of a tie. How it is computed: solver/sweep.cuh.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gptq/cuda/context.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/hessian.cuh>
#include <gptq/cuda/solver/grids.cuh>
#include <gptq/cuda/solver/sweep.cuh>
#include <gptq/cuda/solver/update_sm90.cuh>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>
#include <gptq/options.hpp>

namespace gptq::cuda {

/// weight[out, in] of a layer: row-major, on the device.
struct weight_view {
  float const* data;
  index_t out;
};

/// How the large products are computed that carry the error of quantized columns to later ones.
enum class arithmetic {
  /// Where the program has kernels for sm_90a, and they run, three products of TF32 each, which come as
  /// close.
  float32,
  tf32,  ///< tensor cores: faster, and the loss stays within 0.1 %, but not all codes do
};

/// Layers of one input, quantized together, on the device.
template <storage_format Format>
class quantized_layers {
 public:
  index_t size() const { return static_cast<index_t>(outs_.size()); }
  index_t out(index_t layer) const { return outs_[at(layer)]; }
  index_t in() const { return in_; }
  /// On the device, laid out as in quantized_layer.
  std::uint8_t const* codes(index_t layer) const { return codes_.data() + first_row(layer) * in_; }
  float const* scales(index_t layer) const { return scales_.data() + first_row(layer) * Format::groups(in_); }
  std::uint8_t const* zeros(index_t layer) const {
    return Format::has_zero_point ? zeros_.data() + first_row(layer) * Format::groups(in_) : nullptr;
  }
  /// Original column of each stored one; empty: themselves.
  std::vector<std::int32_t> const& order() const { return order_; }
  /// The times are those of all layers together.
  quantize_report const& report(index_t layer) const { return reports_[at(layer)]; }

  /// Copied to the host; waits for the copies.
  quantized_layer<Format> host(index_t layer) const;

 private:
  friend struct quantized_access;
  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
  index_t first_row(index_t layer) const {
    return std::accumulate(outs_.begin(), outs_.begin() + layer, index_t{0});
  }

  index_t in_ = 0;
  std::vector<index_t> outs_;
  detail::device_array<std::uint8_t> codes_;
  detail::device_array<float> scales_;
  detail::device_array<std::uint8_t> zeros_;
  std::vector<std::int32_t> order_;
  std::vector<quantize_report> reports_;
};

/// Quantizes the layers that share an input by GPTQ, on one factorization, and waits until that is done. The
/// weights stay as they are. Memory besides arguments and result: 2 N K floats, N K bytes and K^2 floats, for
/// N rows in all layers together (and N x group size floats where dynamic groups are larger than 128); or N K
/// and K^2 floats and K^2 doubles, while H is factorized, where that is more.
///
/// Of the options, `quality` has to be plain: the published algorithm without its defects. block_size and
/// threads are ignored. Deterministic: the same bits in every run on the same kind of device.
///
/// @throws invalid_argument when shapes do not agree or an option is out of range or not to be had here,
///   gptq::error when a weight or Hessian entry is not finite (naming it), a scale does not fit its type, or
///   H is not positive definite even with damping 1; and as check() does
template <storage_format Format>
quantized_layers<Format> quantize(context& ctx, std::span<weight_view const> weights, hessian const& h,
                                  quantize_options const& options, arithmetic products = arithmetic::float32);
template <storage_format Format>
quantized_layers<Format> quantize(context& ctx, std::initializer_list<weight_view> weights, hessian const& h,
                                  quantize_options const& options,
                                  arithmetic products = arithmetic::float32) {
  return quantize<Format>(ctx, std::span(weights.begin(), weights.size()), h, options, products);
}

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

/// A format as values: the solver is compiled once.
struct sweep_format {
  code_levels levels;
  grid_options grids;
  index_t group_columns;
  index_t groups;
};

struct sweep_result {
  device_array<std::uint8_t> codes;
  device_array<float> scales;
  device_array<std::uint8_t> zeros;
  std::vector<std::int32_t> order;
  std::vector<quantize_report> reports;
};

/// Sorts `order`, 0, 1, ..., by values[order], stably. By digits, since the device waits for it.
inline void sort_descending(std::span<float const> values, std::vector<std::int32_t>& order) {
  std::vector<std::uint32_t> keys(values.size());  // they grow as values fall; the same for 0 and -0
  for (std::size_t i = 0; i < keys.size(); ++i) {
    auto const bits = std::bit_cast<std::uint32_t>(values[i] + 0.0F);
    keys[i] = bits >> 31 != 0 ? bits : ~(bits | 0x80000000u);
  }
  std::vector<std::int32_t> sorted(order.size());
  constexpr int digit_bits = 8;
  for (int shift = 0; shift < 32; shift += digit_bits) {
    auto const digit = [&](std::int32_t i) {
      return keys[static_cast<std::size_t>(i)] >> shift & ((1u << digit_bits) - 1);
    };
    std::array<std::size_t, (1u << digit_bits) + 1> first{};
    for (std::int32_t const i : order) ++first[digit(i) + 1];
    std::partial_sum(first.begin(), first.end(), first.begin());
    for (std::int32_t const i : order) sorted[first[digit(i)]++] = i;
    order.swap(sorted);
  }
}

/// GPTQ of the rows of several layers.
class sweeper {
 public:
  sweeper(context& ctx, std::span<weight_view const> weights, hessian const& h, sweep_format const& format,
          quantize_options const& options, arithmetic products)
      : ctx_(ctx),
        weights_(weights),
        hessian_(h),
        format_(format),
        options_(options),
        compute_(products == arithmetic::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F),
        by_warpgroups_(products == arithmetic::float32 && update_sm90_runs(gpu_)),
        columns_(h.in_features()),
        ld_((columns_ + 7) / 8 * 8),
        rows_(std::accumulate(weights.begin(), weights.end(), index_t{0},
                              [](index_t sum, weight_view const& w) { return sum + w.out; })) {}

  sweep_result solve() {
    start_.record(ctx_.stream());
    order_columns();
    gather_weights();
    factorize();
    prepare_results();
    factorized_.record(ctx_.stream());
    if (!dynamic_groups()) {
      visit_weights([&](weight_view const& w, index_t first_row) {
        find(given_weights{w.data, diagonal_.data(), columns_}, w.out, first_row, 0, format_.groups);
      });
    }
    sweep();
    store();
    swept_.record(ctx_.stream());
    report();
    return std::move(result_);
  }

 private:
  bool dynamic_groups() const { return !options_.static_groups && format_.groups > 1; }
  bool keeps_order() const { return options_.act_order && dynamic_groups(); }
  /// Whether a group lies within a block, which then finds its grid.
  bool small_groups() const { return dynamic_groups() && format_.group_columns <= block_columns; }

  /// Calls visit(weight, its first row).
  template <class Visit>
  void visit_weights(Visit&& visit) const {
    index_t first_row = 0;
    for (weight_view const& w : weights_) {
      if (w.out > 0) visit(w, first_row);
      first_row += w.out;
    }
  }

  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
  static unsigned grid_of(index_t blocks) { return static_cast<unsigned>(blocks); }

  void order_columns() {
    diagonal_ = device_array<float>(ctx_, columns_);
    check(cudaMemcpy2DAsync(diagonal_.data(), sizeof(float), hessian_.sum(), at(columns_ + 1) * sizeof(float),
                            sizeof(float), at(columns_), cudaMemcpyDeviceToDevice, ctx_.stream()),
          "copying a diagonal");
    std::vector<float> diagonal(at(columns_));
    diagonal_.download(diagonal.data());
    double sum = 0.0;
    for (index_t i = 0; i < columns_; ++i) {
      float const d = diagonal[at(i)];
      if (!std::isfinite(d)) throw_not_finite(i, i, d);
      if (d == 0.0F) ++dead_columns_;
      sum += static_cast<double>(d) * hessian_.scale();
    }
    // A dead input counts as an average one, so that no choice of unit for the activations matters.
    dead_diagonal_ = dead_columns_ == columns_ ? 1.0 : sum / static_cast<double>(columns_ - dead_columns_);
    order_host_.resize(at(columns_));
    std::iota(order_host_.begin(), order_host_.end(), 0);
    if (options_.act_order) sort_descending(diagonal, order_host_);
    order_ = device_array<std::int32_t>(ctx_, columns_);
    order_.upload(order_host_.data());
    group_of_host_.resize(at(columns_));
    for (index_t p = 0; p < columns_; ++p) {
      group_of_host_[at(p)] = static_cast<std::int32_t>((dynamic_groups() ? p : index_t{order_host_[at(p)]}) /
                                                        format_.group_columns);
    }
    group_of_ = device_array<std::int32_t>(ctx_, columns_);
    group_of_.upload(group_of_host_.data());
    if (keeps_order()) result_.order = order_host_;
  }

  void gather_weights() {
    found_ = device_array<faults>(ctx_, 1);
    found_.fill_bytes(0xff);
    work_ = device_array<float>(ctx_, rows_ * ld_);
    visit_weights([&](weight_view const& w, index_t first_row) {
      launch(gather_weight<>, {.grid = grid_of(w.out), .block = 256, .stream = ctx_.stream()}, w.data,
             diagonal_.data(), order_.data(), work_.data() + first_row * ld_, columns_, ld_, found_.data());
    });
  }

  void prepare_results() {
    feedback_ = device_array<float>(ctx_, rows_ * ld_);
    codes_by_position_ = device_array<std::uint8_t>(ctx_, rows_ * ld_);
    losses_ = device_array<double>(ctx_, rows_);
    losses_.fill_bytes(0);
    result_.codes = device_array<std::uint8_t>(ctx_, rows_ * columns_);
    result_.scales = device_array<float>(ctx_, rows_ * format_.groups);
    result_.zeros =
        device_array<std::uint8_t>(ctx_, format_.levels.has_zero_point ? result_.scales.size() : 0);
    grids_ = {result_.scales.data(), result_.zeros.data(), format_.groups, found_.data()};
  }

  /// factor_ becomes L of the reversed, damped Hessian. In float32 its rounding errors are the largest of all
  /// and decide ties; tensor cores factorize float64 as fast, where there are such.
  void factorize() {
    factor_ = device_array<float>(ctx_, ld_ * ld_);
    factor_.fill_bytes(0);  // the upper triangle, too, which libraries may read
    index_t const pad = ld_ - columns_;
    int ratio = 0;
    check(cudaDeviceGetAttribute(&ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, gpu_.id),
          "asking for a device's speed");
    if (ratio > 2) {
      factorize_in_place(factor_.data() + pad * (ld_ + 1), ld_);
      return;
    }
    device_array<double> wide(ctx_, columns_ * columns_);
    wide.fill_bytes(0);
    factorize_in_place(wide.data(), columns_);
    launch(narrow_factor<>, {.grid = grid_of(columns_), .block = 256, .stream = ctx_.stream()}, wide.data(),
           factor_.data(), columns_, ld_);
  }

  /// The lower triangle of matrix[columns, columns] becomes L.
  template <class T>
  void factorize_in_place(T* matrix, index_t stride) {
    constexpr cudaDataType_t type = sizeof(T) == 4 ? CUDA_R_32F : CUDA_R_64F;
    std::size_t device_bytes = 0;
    std::size_t host_bytes = 0;
    check(cusolverDnXpotrf_bufferSize(ctx_.solver(), ctx_.solver_parameters(), CUBLAS_FILL_MODE_LOWER,
                                      columns_, type, matrix, stride, type, &device_bytes, &host_bytes),
          "sizing a Cholesky factorization");
    device_array<char> device_workspace(ctx_, static_cast<index_t>(device_bytes));
    std::vector<char> host_workspace(host_bytes);
    device_array<int> info(ctx_, 1);
    for (damping_ = options_.damping;; ++damping_raised_) {
      added_diagonal_ = damping_ * dead_diagonal_;  // the mean of the diagonal, dead inputs included
      launch(gather_hessian<T>, {.grid = grid_of(columns_), .block = 256, .stream = ctx_.stream()},
             hessian_.sum(), order_.data(), matrix, columns_, stride, static_cast<float>(hessian_.scale()),
             dead_diagonal_, added_diagonal_, found_.data());
      check(cusolverDnXpotrf(ctx_.solver(), ctx_.solver_parameters(), CUBLAS_FILL_MODE_LOWER, columns_, type,
                             matrix, stride, type, device_workspace.data(), device_bytes,
                             host_workspace.data(), host_bytes, info.data()),
            "factorizing the Hessian");
      int minor = 0;
      info.download(&minor);
      check_faults();
      if (minor == 0) break;
      if (damping_ >= 1.0) {
        throw error("quantize: the Hessian of " + std::to_string(columns_) +
                    " inputs is not positive definite with damping " + std::to_string(damping_) +
                    " (mean of the diagonal " + std::to_string(dead_diagonal_) + "; " +
                    std::to_string(dead_columns_) + " dead inputs; " + std::to_string(hessian_.tokens()) +
                    " tokens)");
      }
      damping_ = std::min(1.0, std::max(10.0 * damping_, 1e-4));
    }
  }

  [[noreturn]] void throw_not_finite(index_t row, index_t column, float value) const {
    throw error("quantize: entry (" + std::to_string(row) + ", " + std::to_string(column) +
                ") of the hessian is " + std::to_string(value));
  }

  /// Throws for what kernels have found. Waits for them.
  void check_faults() const {
    faults found{};
    found_.download(&found);
    auto const value_at = [&](float const* values, unsigned long long i) {
      float value = 0.0F;
      check(cudaMemcpy(&value, values + i, sizeof value, cudaMemcpyDeviceToHost), "copying from the device");
      return value;
    };
    if (found.weight != faults::none) {
      // Rows of different layers may share an index: the first layer that has the fault is the one to name.
      for (std::size_t layer = 0; layer < weights_.size(); ++layer) {
        weight_view const& w = weights_[layer];
        if (found.weight >= static_cast<unsigned long long>(w.out * columns_)) continue;
        float const value = value_at(w.data, found.weight);
        if (std::isfinite(value)) continue;
        auto const columns = static_cast<unsigned long long>(columns_);
        throw error("quantize: weight " +
                    (weights_.size() > 1 ? "of layer " + std::to_string(layer) + " " : std::string()) +
                    "at row " + std::to_string(found.weight / columns) + ", column " +
                    std::to_string(found.weight % columns) + " is " + std::to_string(value));
      }
    }
    if (found.hessian != faults::none) {
      auto const i = static_cast<index_t>(found.hessian);
      throw_not_finite(i % columns_, i / columns_, value_at(hessian_.sum(), found.hessian));
    }
    if (found.scale != faults::none) {
      auto const i = static_cast<index_t>(found.scale);
      throw error("quantize: the scale of row " + std::to_string(i / format_.groups) + ", group " +
                  std::to_string(i % format_.groups) +
                  " is beyond the range of its type (65504 for float16): store the scales as float32");
    }
  }

  template <class Weights>
  void find(Weights const& weights, index_t rows, index_t first_row, index_t first_group, index_t count) {
    grid_store grids = grids_;
    grids.scales += first_row * grids.groups;
    if (grids.zeros != nullptr) grids.zeros += first_row * grids.groups;
    auto const kernel =
        format_.levels.is_half_step() ? find_grids<true, Weights> : find_grids<false, Weights>;
    launch(kernel, {.grid = grid_of((rows * count + 7) / 8), .block = 256, .stream = ctx_.stream()}, weights,
           grids, format_.levels, format_.grids, rows, columns_, format_.group_columns, first_group, count);
  }

  /// The end of a run of about `size` positions: with dynamic groups, where a group ends if one does.
  index_t run_end(index_t first, index_t size, index_t limit) const {
    index_t const end = std::min(first + size, limit);
    if (!dynamic_groups() || end == limit) return end;
    index_t const boundary = end / format_.group_columns * format_.group_columns;
    return boundary > first ? boundary : end;
  }

  /// Some blocks between two products over all later columns; it begins and ends with a group.
  index_t panel_end(index_t first) const {
    index_t const size = 4 * block_columns;
    return run_end(first, dynamic_groups() ? std::max(size, format_.group_columns) : size, columns_);
  }

  /// Where a product runs: in the sweep's stream, which waits for it, or beside.
  enum class place { main, beside };

  /// f of positions q0..q1 += what the quantized positions p0..p1 pass on to them; or =, where it is the
  /// first. Memory is reversed, and cuBLAS sees it transposed.
  void pass_on(place where, index_t p0, index_t p1, index_t q0, index_t q1) {
    if (q0 == q1) return;
    bool const beside = where == place::beside;
    index_t const a = ld_ - p1;
    // With what pads a row, so that everything begins at 8 floats: the factor is zero there, and f not used.
    index_t const b = q1 == columns_ ? 0 : ld_ - q1;
    index_t const count = ld_ - q0 - b;
    if (by_warpgroups_ && (p1 - p0) % update_step == 0) {
      static_assert(block_columns % 8 == 0);  // as groups are, too
      launch_update_sm90({work_.data() + a, factor_.data() + b * ld_ + a, feedback_.data() + b, ld_, rows_,
                          static_cast<int>(count), static_cast<int>(p1 - p0), p0 != 0},
                         beside ? multiprocessors_beside() : gpu_.multiprocessors,
                         beside ? ctx_.side_stream() : ctx_.stream());
      return;
    }
    float const one = 1.0F;
    float const keep = p0 == 0 ? 0.0F : 1.0F;
    check(cublasGemmEx_64(beside ? ctx_.side_blas() : ctx_.blas(), CUBLAS_OP_T, CUBLAS_OP_N, count, rows_,
                          p1 - p0, &one, factor_.data() + b * ld_ + a, CUDA_R_32F, ld_, work_.data() + a,
                          CUDA_R_32F, ld_, &keep, feedback_.data() + b, CUDA_R_32F, ld_, compute_,
                          CUBLAS_GEMM_DEFAULT),
          "updating later columns");
  }

  /// What the sweep, of two blocks to a multiprocessor, leaves free where that is half of the device or more.
  int multiprocessors_beside() const {
    index_t const swept = (sweep_blocks() + 1) / 2;
    return gpu_.multiprocessors - static_cast<int>(2 * swept <= gpu_.multiprocessors ? swept : 0);
  }

  void sweep() {
    event swept;    // the panel's last column, on the main stream
    event updated;  // everything that is later than the next panel, on the side stream
    bool beside = false;
    for (index_t first = 0; first < columns_;) {
      index_t const end = panel_end(first);
      for (index_t at = first; at < end;) {
        index_t const block_end = run_end(at, block_columns, end);
        sweep_one(at, block_end);
        pass_on(place::main, at, block_end, block_end, end);
        at = block_end;
      }
      if (end < columns_) {
        // Look-ahead: the next panel's columns first, the rest while these are swept.
        index_t const next_end = panel_end(end);
        swept.record(ctx_.stream());
        if (beside) updated.hold_up(ctx_.stream());
        pass_on(place::main, first, end, end, next_end);
        beside = next_end < columns_;
        if (beside) {
          swept.hold_up(ctx_.side_stream());
          pass_on(place::beside, first, end, next_end, columns_);
          updated.record(ctx_.side_stream());
        }
      }
      first = end;
    }
  }

  index_t sweep_blocks() const { return (rows_ + block_rows - 1) / block_rows; }

  void sweep_one(index_t first, index_t end) {
    if (dynamic_groups() && !small_groups() && first % format_.group_columns == 0) find_large_group(first);
    sweep_arguments const arguments{work_.data(),
                                    first == 0 ? nullptr : feedback_.data(),
                                    factor_.data(),
                                    ld_,
                                    group_of_.data(),
                                    grids_,
                                    codes_by_position_.data(),
                                    losses_.data(),
                                    rows_,
                                    static_cast<int>(std::min<index_t>(format_.group_columns, block_columns)),
                                    format_.levels,
                                    format_.grids};
    launch(format_.levels.is_half_step() ? sweep_block<true> : sweep_block<false>,
           {.grid = grid_of(sweep_blocks()),
            .block = block_rows * row_lanes,
            .shared_memory = sweep_shared_memory,
            .stream = ctx_.stream()},
           arguments, first, static_cast<int>(end - first), small_groups());
  }

  /// The grids of a group that no block holds, from where its weights will move: d with d L = f.
  void find_large_group(index_t first) {
    index_t const count = std::min(format_.group_columns, columns_ - first);
    index_t const a = ld_ - first - count;
    device_array<float> moves;
    if (first > 0) {
      moves = device_array<float>(ctx_, rows_ * count);
      check(cudaMemcpy2DAsync(moves.data(), at(count) * sizeof(float), feedback_.data() + a,
                              at(ld_) * sizeof(float), at(count) * sizeof(float), at(rows_),
                              cudaMemcpyDeviceToDevice, ctx_.stream()),
            "copying a group");
      float const one = 1.0F;
      check(cublasStrsm_64(ctx_.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T,
                           CUBLAS_DIAG_NON_UNIT, count, rows_, &one, factor_.data() + a * (ld_ + 1), ld_,
                           moves.data(), count),
            "solving for a group's weights");
    }
    find(expected_weights{work_.data(), ld_, moves.data(), count, first}, rows_, 0,
         first / format_.group_columns, 1);
  }

  void store() {
    launch(store_codes<>,
           {.grid = grid_of(rows_), .block = 256, .shared_memory = at(columns_), .stream = ctx_.stream()},
           codes_by_position_.data(), keeps_order() ? nullptr : order_.data(), result_.codes.data(), columns_,
           ld_);
  }

  template <class Term>
  std::vector<double> sums_of(Term const& term, index_t rows) {
    device_array<double> sums(ctx_, rows);
    launch(row_sums<256, Term>, {.grid = grid_of(rows), .block = 256, .stream = ctx_.stream()}, term,
           sums.data(), columns_);
    std::vector<double> host(at(rows));
    sums.download(host.data());
    return host;
  }

  void report() {
    check_faults();
    std::vector<double> losses(at(rows_));
    losses_.download(losses.data());
    std::vector<double> by_damping;
    if (options_.measure_output_error) {
      by_damping = sums_of(
          damping_term{work_.data(), diagonal_.data(), order_.data(), ld_, added_diagonal_, dead_diagonal_},
          rows_);
    }
    result_.reports.resize(weights_.size());
    auto const total = [](std::vector<double> const& values, index_t first, index_t count) {
      return std::accumulate(values.begin() + first, values.begin() + first + count, 0.0);
    };
    index_t first_row = 0;
    for (std::size_t layer = 0; layer < weights_.size(); ++layer) {
      weight_view const& w = weights_[layer];
      quantize_report& r = result_.reports[layer];
      double const loss = total(losses, first_row, w.out);
      r.loss = 0.5 * loss;
      if (!std::isfinite(r.loss)) {
        throw error("quantize: the column sweep overflowed; the Hessian is too ill-conditioned for damping " +
                    std::to_string(damping_));
      }
      r.loss_per_token = r.loss * static_cast<double>(hessian_.sequences()) / hessian_.tokens();
      r.damping = damping_;
      r.damping_raised = damping_raised_;
      r.dead_columns = dead_columns_;
      r.seconds_factorization = factorized_.seconds_since(start_);
      r.seconds_columns = swept_.seconds_since(factorized_);
      if (options_.measure_output_error && w.out > 0) {
        double const noise = std::max(0.0, loss - total(by_damping, first_row, w.out)) / hessian_.scale();
        r.output_error = noise / signal_of(w);
        r.snr_db = -10.0 * std::log10(r.output_error);
      }
      first_row += w.out;
    }
    event done(cudaEventDefault);
    done.record(ctx_.stream());
    ctx_.synchronize();
    for (quantize_report& r : result_.reports) r.seconds = done.seconds_since(start_);
  }

  /// tr(W S W'); overwrites feedback_.
  double signal_of(weight_view const& w) {
    float const one = 1.0F;
    float const none = 0.0F;
    check(cublasGemmEx_64(ctx_.blas(), CUBLAS_OP_N, CUBLAS_OP_N, columns_, w.out, columns_, &one,
                          hessian_.sum(), CUDA_R_32F, columns_, w.data, CUDA_R_32F, columns_, &none,
                          feedback_.data(), CUDA_R_32F, ld_, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "measuring a layer's output");
    auto const sums = sums_of(signal_term{w.data, feedback_.data(), columns_, ld_}, w.out);
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }

  context& ctx_;
  std::span<weight_view const> weights_;
  hessian const& hessian_;
  sweep_format const& format_;
  quantize_options const& options_;
  device gpu_ = device::current();
  cublasComputeType_t compute_;
  bool by_warpgroups_;
  index_t columns_;
  index_t ld_;
  index_t rows_;
  sweep_result result_;
  event start_{cudaEventDefault};
  event factorized_{cudaEventDefault};
  event swept_{cudaEventDefault};
  std::vector<std::int32_t> order_host_;     ///< original column of each position
  std::vector<std::int32_t> group_of_host_;  ///< here, because copies may be made later
  device_array<std::int32_t> order_;
  device_array<std::int32_t> group_of_;
  device_array<float> diagonal_;
  device_array<faults> found_;
  device_array<float> work_;
  device_array<float> feedback_;
  device_array<float> factor_;
  device_array<std::uint8_t> codes_by_position_;
  device_array<double> losses_;
  grid_store grids_{};
  index_t dead_columns_ = 0;
  double dead_diagonal_ = 0.0;
  double added_diagonal_ = 0.0;
  double damping_ = 0.0;
  int damping_raised_ = 0;
};

inline void check_request(std::span<weight_view const> weights, hessian const& h, code_levels const& levels,
                          quantize_options const& options) {
  if (weights.empty()) throw invalid_argument("quantize: no layers");
  index_t rows = 0;
  for (weight_view const& w : weights) {
    if (w.out <= 0) {
      throw invalid_argument("quantize: a weight of " + std::to_string(w.out) + " rows");
    }
    if (w.data == nullptr) throw invalid_argument("quantize: a weight is a null pointer");
    rows += w.out;
  }
  constexpr index_t most = 1 << 28;
  if (rows > most || h.in_features() > 200 * 1024) {
    throw invalid_argument("quantize: " + std::to_string(rows) + " x " + std::to_string(h.in_features()) +
                           " is beyond what is supported: 2^28 rows, 204800 columns");
  }
  if (h.sequences() == 0) throw invalid_argument("quantize: the hessian has seen no activations");
  if (options.quality != quality::plain) {
    throw invalid_argument("quantize: on the GPU there is quality plain; the others are gptq::quantize's");
  }
  try {
    check_grid_rule(options.grid, levels);
  } catch (error const& e) {
    throw invalid_argument(e.what());
  }
  if (!(options.damping >= 0.0) || !std::isfinite(options.damping)) {
    throw invalid_argument("quantize: damping is " + std::to_string(options.damping) +
                           ", not a finite number >= 0");
  }
}

}  // namespace detail

struct quantized_access {
  template <storage_format Format>
  static quantized_layers<Format> make(detail::sweep_result&& result, std::span<weight_view const> weights,
                                       index_t in) {
    quantized_layers<Format> layers;
    layers.in_ = in;
    for (weight_view const& w : weights) layers.outs_.push_back(w.out);
    layers.codes_ = std::move(result.codes);
    layers.scales_ = std::move(result.scales);
    layers.zeros_ = std::move(result.zeros);
    layers.order_ = std::move(result.order);
    layers.reports_ = std::move(result.reports);
    return layers;
  }
};

template <storage_format Format>
quantized_layers<Format> quantize(context& ctx, std::span<weight_view const> weights, hessian const& h,
                                  quantize_options const& options, arithmetic products) {
  static_assert(
      !requires(std::span<float const> w) { Format::scheme::find_grid(w, 0); },
      "gptq::cuda::quantize: a scheme with its own find_grid cannot be quantized on the GPU");
  detail::check_request(weights, h, Format::levels, options);
  index_t const in = h.in_features();
  detail::sweep_format const format{Format::levels,
                                    {options.grid, options.mse, false, Format::scales},
                                    Format::group_columns(in),
                                    Format::groups(in)};
  return quantized_access::make<Format>(detail::sweeper(ctx, weights, h, format, options, products).solve(),
                                        weights, in);
}

template <storage_format Format>
quantized_layer<Format> quantized_layers<Format>::host(index_t layer) const {
  quantized_layer<Format> copy;
  copy.out = out(layer);
  copy.in = in_;
  index_t const groups = Format::groups(in_);
  copy.codes.resize(at(copy.out * in_));
  copy.scales.resize(at(copy.out * groups));
  copy.zeros.resize(Format::has_zero_point ? copy.scales.size() : 0);
  codes_.download(copy.codes.data(), first_row(layer) * in_, copy.out * in_);
  scales_.download(copy.scales.data(), first_row(layer) * groups, copy.out * groups);
  if (Format::has_zero_point) {
    zeros_.download(copy.zeros.data(), first_row(layer) * groups, copy.out * groups);
  }
  copy.order = order_;
  copy.report = reports_[at(layer)];
  return copy;
}

}  // namespace gptq::cuda
