// What the device path asks of a device: memory, copies, the operations of a decoder layer, Hessians, GPTQ.
//
// An accelerator is a GPU (cuda.cu), or, in tests, the host: everything above this interface then runs
// where there is no GPU. Without Eigen, which nvcc takes long to read, and without CUDA, which other
// compilers lack. Pointers are the device's. Calls return before their work is done and keep their order,
// unless they say otherwise. One thread at a time, but for allocate_for_transfers(), transfer(), release()
// and quantized::fetch().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gptq/format_spec.hpp>
#include <gptq/layer.hpp>
#include <gptq/options.hpp>

#include "../kernels.hpp"

namespace lm::device {

using gptq::index_t;

/// How numbers are stored.
enum class number { float32, float16, bfloat16 };

inline constexpr std::size_t size_of(number type) { return type == number::float32 ? 4 : 2; }
/// "float32", "float16", "bfloat16"
std::string name_of(number type);
inline std::array<std::pair<char const*, number>, 3> const number_names{
    {{"float32", number::float32}, {"float16", number::float16}, {"bfloat16", number::bfloat16}}};

/// Numbers on the device.
struct numbers {
  void* data;
  number type;

  /// From element `first` on.
  numbers from(index_t first) const {
    return {static_cast<char*>(data) + static_cast<std::size_t>(first) * size_of(type), type};
  }
};

/// What the device spends its time on.
enum class activity { waiting, forward, attention, hessian, solving, measuring };
inline constexpr std::size_t activities = 6;

/// Where a device's time went, in seconds.
struct time_account {
  std::array<double, activities> of{};  ///< by activity, one after another
  double transfers = 0.0;               ///< copying weights, beside all that
  double factorization = 0.0;           ///< of activity::solving
  double sweep = 0.0;                   ///< likewise
  double total() const;
};
/// "17.2 s: forward 33 %, attention 13 %, ...".
std::string to_string(time_account const& times);

/// Heads of attention, and how many tokens there are of each window.
struct head_shape {
  index_t windows;
  index_t length;
  index_t key_value_heads;
  index_t sharing;  ///< query heads to a key-value head
  index_t size;     ///< elements of a head

  index_t tokens() const { return windows * length; }
  index_t query_size() const { return key_value_heads * sharing * size; }
  index_t key_value_size() const { return key_value_heads * size; }
};

/// Rotary embeddings: the first `rotated` elements of a head turn, element i with element i + rotated / 2.
struct rotation {
  float const* cos;  ///< [positions, rotated / 2]
  float const* sin;
  index_t rotated;  ///< 0: none
};

/// Scores of some queries with some keys, of all heads and windows.
struct score_block {
  index_t first_query;
  index_t queries;
  index_t first_key;
  index_t keys;
  index_t window;  ///< keys that a query sees, with its own; 0: all up to it
  float soft_cap;  ///< c: scores become c tanh(score / c); 0: they stay
};

enum class gate_function { silu, gelu_tanh };

/// Which experts tokens of some windows go to: those with the largest probabilities, the first of equal ones.
struct expert_choice {
  float const* logits;  ///< [windows * length, experts]
  index_t windows;
  index_t length;
  index_t experts;
  index_t chosen;      ///< of a token
  bool normalized;     ///< the weights of a token's experts add up to 1
  std::int32_t* keys;  ///< [tokens, chosen], largest weight first: expert * windows + window of the token
  float* weights;      ///< likewise: probabilities among all experts, or among the chosen ones
};

/// Entries in the order of their keys, equal ones in their own.
struct sorted_entries {
  std::int32_t* order;   ///< [count], entries
  std::int32_t* places;  ///< [count], of each entry in `order`
  std::int32_t* starts;  ///< [keys + 1], where those of each key begin, and the end
};

/// What has been seen of a token's logits.
struct running_loss {
  float* largest;  ///< -infinity before the first
  double* sum;     ///< of exp(logit - largest); 0 before the first
  float* target;   ///< the logit of the token that came
};

/// y = alpha x w' + beta y for x[rows, in], w[out, in]; neighbouring rows of y are `stride` numbers apart.
struct product {
  numbers x;
  numbers w;
  numbers y;  ///< of the type of x, or float32
  index_t rows;
  index_t in;
  index_t out;
  index_t stride;
  float alpha = 1.0F;
  float beta = 0.0F;
};

/// Many products y = alpha x w' or, not transposed, y = alpha x w for w[in, out]; rows and matrices of each
/// are so many numbers apart.
struct batched_product {
  numbers x;
  numbers w;
  numbers y;
  index_t rows, in, out, batch;
  index_t x_stride, w_stride, y_stride;
  index_t x_step, w_step, y_step;
  bool transposed;
  float alpha = 1.0F;
};

/// A packed matrix on the device, as its kernels read it.
class packed_weight {
 public:
  virtual ~packed_weight() = default;
  virtual index_t out() const = 0;
  virtual index_t in() const = 0;
  /// That a product reads.
  virtual std::size_t bytes() const = 0;
  /// Where the codes of each column lie in a row, on the device; null: in the columns' own order.
  virtual std::int32_t const* places() const = 0;
};

/// y[rows, out] = x[rows, in] w'. x is float16; y is float32 for one row, float16 for more.
struct packed_product {
  packed_weight const& w;
  numbers x;
  numbers y;
  index_t rows;
  bool arranged;  ///< x's columns lie where w.places() says
};

/// Attention of one token, at a position that the device knows, to the tokens before it and itself.
struct cached_attention {
  float const* rows;        ///< the token's query, key and value, as a projection leaves them
  float const* bias;        ///< of that projection, or null
  float const* query_norm;  ///< of each head, before it is rotated; null: none, and so on
  float const* key_norm;
  float epsilon;
  head_shape shape;  ///< of one window; `length` positions have room in the cache
  rotation turn;
  std::int32_t const* position;
  gptq::float16* keys;  ///< rotated, [key-value head, position, element]; those of `position` are written
  gptq::float16* values;
  index_t window;              ///< keys that a query sees, with its own; 0: all up to it
  float scale;                 ///< of query times key
  float soft_cap;              ///< c: scores become c tanh(score / c); 0: they stay
  gptq::float16* to;           ///< [query head, element], element i at places[i]
  std::int32_t const* places;  ///< null: where it is
  void* workspace;             ///< attention_bytes(shape), zero before the first use
};

/// The choice of the token after the one at `*position`, which moves on by one.
struct token_choice {
  float const* logits;
  index_t count;
  float multiplier;        ///< of logits
  float soft_cap;          ///< then, as above
  double temperature;      ///< 0: always the likeliest token, the first of equal ones
  double top_p;            ///< draw among the likeliest tokens that together have this probability
  double const* random;    ///< in [0, 1), by position of the token that is chosen
  std::int32_t* token;     ///< the chosen one
  std::int32_t* position;  ///< its position
  std::int32_t* history;   ///< by position, the chosen ones; -1: some logits are not finite
  void* workspace;         ///< choice_bytes(count), zero before the first use
};

/// Work that can be asked for again and again.
class recording {
 public:
  virtual ~recording() = default;
  virtual void replay() = 0;
};

/// A point in the device's work.
class marker {
 public:
  virtual ~marker() = default;
  /// Until what was asked for before it is done.
  virtual void wait() const = 0;
};

/// S = sum of x x' over tokens, on the device.
class hessian {
 public:
  virtual ~hessian() = default;
  /// Adds x[sequences * length, in].
  virtual void add(numbers x, index_t sequences, index_t length) = 0;
  virtual index_t in_features() const = 0;
  /// Adds x[tokens, in], sequences of any lengths.
  virtual void add_unequal(numbers x, index_t tokens, index_t sequences) = 0;
  /// Adds what another one has seen, all of it with this weight.
  virtual void add_share(hessian const& other, double weight) = 0;
  virtual double tokens() const = 0;
  virtual index_t sequences() const = 0;
  /// S on the device, both triangles.
  virtual float const* sum() const = 0;
  /// [in, in] to the host, both triangles; waits.
  virtual void download(float* sum) const = 0;
};

/// A quantized layer on the host, of a format known at run time: the members of gptq::quantized_layer.
struct host_layer {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<std::int32_t> order;
};

/// Layers that were quantized together.
class quantized {
 public:
  virtual ~quantized() = default;
  virtual gptq::quantize_report const& report(std::size_t layer) const = 0;
  /// Original column of each stored one, on the device; null: themselves.
  virtual std::int32_t const* order(std::size_t layer) const = 0;
  /// The weights that the codes stand for, [out, in], in the original order of columns; less `minus`[out, in]
  /// where that is not null.
  virtual void dequantize(std::size_t layer, numbers to, float const* minus = nullptr) const = 0;
  /// A copy on the host. Waits; from any thread, beside what the device computes.
  virtual host_layer fetch(std::size_t layer) const = 0;
};

/// weight[out, in] in float32, on the device.
struct weight {
  float const* data;
  index_t out;
};

class accelerator {
 public:
  virtual ~accelerator() = default;

  virtual std::string name() const = 0;
  /// Memory, aligned to 256 bytes. Throws gptq::error when there is too little.
  virtual void* allocate(std::size_t bytes) = 0;
  /// The same for what transfer() fills, from its thread.
  virtual void* allocate_for_transfers(std::size_t bytes) = 0;
  /// Of either; when everything asked for so far is done.
  virtual void release(void* data) noexcept = 0;
  virtual std::size_t free_bytes() const = 0;
  /// The most that was allocated at a time.
  virtual std::size_t most_bytes() const = 0;
  /// The host's memory may change when this returns.
  virtual void upload(void* to, void const* from, std::size_t bytes) = 0;
  /// Waits.
  virtual void download(void* to, void const* from, std::size_t bytes) = 0;
  virtual void synchronize() = 0;

  /// From now on transfer() waits, on the device, for what was asked for before this call.
  virtual void order_transfers() = 0;
  /// Copies to the device beside what it computes, from any one thread; the host's memory may change when
  /// this returns.
  virtual void transfer(void* to, void const* from, std::size_t bytes) = 0;
  /// What is asked for from now on waits, on the device, for all transfers so far.
  virtual void await_transfers() = 0;

  /// What follows is this activity.
  virtual void enter(activity what) = 0;
  /// Since the accelerator was made, or since the last call; waits.
  virtual time_account take_times() = 0;

  virtual void fill_zero(void* data, std::size_t bytes) = 0;
  virtual void convert(numbers to, numbers from, index_t count) = 0;
  /// x[count, hidden] = multiplier * table[token] for each token.
  virtual void embed(float* x, numbers table, std::int32_t const* tokens, index_t count, index_t hidden,
                     float multiplier) = 0;
  /// y = x / rms(x) * weight, row by row.
  virtual void rms_norm(numbers y, float const* x, float const* weight, index_t rows, index_t columns,
                        float epsilon) = 0;
  /// The same in place for `heads` heads from element `first` of each row on, `stride` numbers apart.
  virtual void rms_norm_heads(numbers x, float const* weight, index_t rows, index_t stride, index_t first,
                              index_t heads, index_t size, float epsilon) = 0;
  /// Adds bias[columns] to each row.
  virtual void add_bias(numbers y, float const* bias, index_t rows, index_t columns) = 0;
  /// x += multiplier * norm(y + bias), where bias and norm's weight may be null.
  virtual void add_to_residual(float* x, float const* y, float const* bias, float const* norm, index_t rows,
                               index_t columns, float epsilon, float multiplier) = 0;
  /// Rows of query, key and value, as a projection leaves them, to heads: q[window, key-value head, token,
  /// query head of those that share, element], k and v[window, key-value head, token, element]; queries and
  /// keys rotated.
  virtual void place_heads(numbers q, numbers k, numbers v, numbers rows, head_shape const& shape,
                           rotation const& turn) = 0;
  /// Back: rows[token, head, element] of what lies as q does.
  virtual void merge_heads(numbers rows, numbers q, head_shape const& shape) = 0;
  /// Turns scores[window and key-value head, query and head of those that share, block.keys] into weights in
  /// place; a row of `type` then begins where the row of float32 did.
  virtual void softmax(float* scores, number type, head_shape const& shape, score_block const& block) = 0;
  /// y[rows, columns] = f(x[:, first half]) * x[:, second half] for x[rows, 2 * columns].
  virtual void gate(numbers y, numbers x, index_t rows, index_t columns, gate_function f) = 0;
  /// Counts logits[rows, columns] of the tokens `first` and on of the vocabulary; `targets` are tokens.
  virtual void count_loss(running_loss const& loss, float const* logits, std::int32_t const* targets,
                          index_t rows, index_t columns, index_t first, float soft_cap) = 0;
  /// to[count, columns] = x[row] for each of some rows.
  virtual void gather_rows(float* to, numbers x, std::int64_t const* rows, index_t count,
                           index_t columns) = 0;
  virtual void choose_experts(expert_choice const& c) = 0;
  /// @param keys  [count], each in [0, key_count)
  virtual void sort(sorted_entries const& to, std::int32_t const* keys, index_t count, index_t key_count) = 0;
  /// to[count, columns] = x[order[i] / divisor] for each row i; of the same type.
  virtual void gather_entries(numbers to, numbers x, std::int32_t const* order, index_t divisor,
                              index_t count, index_t columns) = 0;
  /// to[rows, columns] = sum of weights[row, j] * y[places[row, j]] over each row's `terms`.
  virtual void add_entries(float* to, float const* y, float const* weights, std::int32_t const* places,
                           index_t rows, index_t terms, index_t columns) = 0;
  /// What rounding x[rows, columns] to int8, as the library's kernels for the CPU do, changes about it, for
  /// groups of so many columns in this order (null: their own).
  virtual void int8_error(numbers to, float const* x, std::int32_t const* order, index_t rows,
                          index_t columns, index_t group_columns) = 0;
  /// sums[row] = the sum of a row's products, in float32.
  virtual void dot(double* sums, float const* a, float const* b, index_t rows, index_t columns) = 0;
  /// to = a - b, rounded once.
  virtual void subtract(numbers to, numbers a, numbers b, index_t count) = 0;
  virtual void gather(float* to, float const* x, std::int64_t const* at, index_t count) = 0;

  virtual void multiply(product const& p) = 0;
  virtual void multiply(batched_product const& p) = 0;
  /// sum[in, in] += a' b for a and b[tokens, in], of one type.
  virtual void add_cross_products(float* sum, numbers a, numbers b, index_t tokens, index_t in) = 0;
  /// Replaces each of `rows` rows by itself times (S + added I)^-1, in float32; false, and nothing of use, where
  /// that matrix is not positive definite. Waits.
  virtual bool divide_by(hessian const& h, float added, float* x, index_t rows) = 0;

  /// x += multiplier * norm(y + bias), and `normed` = x / rms(x) * weight, element i at places[i]. There may be
  /// no y, bias, norm and places.
  virtual void add_and_norm(float* x, numbers y, float const* bias, float const* norm, float multiplier,
                            numbers normed, float const* weight, std::int32_t const* places, index_t rows,
                            index_t columns, float epsilon) = 0;
  /// gate() of one row of float32 with its bias, or null; element i of y at places[i].
  virtual void gate_one(numbers y, float const* x, float const* bias, std::int32_t const* places,
                        index_t columns, gate_function f) = 0;
  /// to[rows, columns] = from[rows, columns]; neighbouring rows are so many numbers apart.
  virtual void copy_rows(numbers to, index_t to_stride, numbers from, index_t from_stride, index_t rows,
                         index_t columns) = 0;

  /// A copy of a packed matrix; null where this program has no kernels for its format. Waits.
  virtual std::unique_ptr<packed_weight> new_packed(gptq::format_spec const& format,
                                                    packed_parts const& parts) = 0;
  virtual void multiply(packed_product const& p) = 0;
  virtual void attend(cached_attention const& a) = 0;
  virtual std::size_t attention_bytes(head_shape const& shape) const = 0;
  virtual void choose(token_choice const& c) = 0;
  virtual std::size_t choice_bytes(index_t count) const = 0;

  /// What work() asks for, to be replayed: no copies to or from the host, no memory allocated or released. On a
  /// GPU, kernels of a recording may start before those ahead of them end.
  virtual std::unique_ptr<recording> record(std::function<void()> const& work) = 0;
  virtual std::unique_ptr<marker> mark() = 0;
  /// Memory that the device writes and the host reads, after a marker.
  virtual void* allocate_visible(std::size_t bytes) = 0;
  virtual void release_visible(void* data) noexcept = 0;

  virtual std::unique_ptr<hessian> new_hessian(index_t in, number type) = 0;
  /// @param held_out  of other tokens; may be null: the error on them is reported, and choices are made by
  ///                  it, as
  ///                  gptq::quantize does
  /// Throws gptq::error when a layer cannot be quantized. Waits.
  virtual std::unique_ptr<quantized> quantize(gptq::format_spec const& format,
                                              std::span<weight const> weights, hessian const& h,
                                              gptq::quantize_options const& options,
                                              hessian const* held_out) = 0;
  /// tr(W S W') for w[out, in]; waits.
  virtual double quadratic_form(float const* w, index_t out, index_t in, hessian const& h) = 0;
};

/// The current CUDA device. Throws gptq::error when there is none, it is too old, or the program was built
/// without CUDA.
std::unique_ptr<accelerator> make_cuda_accelerator();

/// Memory on a device that owns itself; not initialized.
template <class T>
class array {
 public:
  array() = default;
  array(accelerator& on, index_t size)
      : on_(&on),
        data_(static_cast<T*>(on.allocate(static_cast<std::size_t>(size) * sizeof(T)))),
        size_(size) {}
  array(accelerator& on, std::span<T const> host) : array(on, static_cast<index_t>(host.size())) {
    on.upload(data_, host.data(), host.size_bytes());
  }
  /// What transfers fill.
  static array for_transfers(accelerator& on, index_t size) {
    array made;
    made.on_ = &on, made.size_ = size;
    made.data_ = static_cast<T*>(on.allocate_for_transfers(static_cast<std::size_t>(size) * sizeof(T)));
    return made;
  }
  array(array&& other) noexcept { swap(other); }
  array& operator=(array&& other) noexcept {
    swap(other);
    return *this;
  }
  ~array() {
    if (data_ != nullptr) on_->release(data_);
  }

  T* data() const { return data_; }
  index_t size() const { return size_; }
  std::vector<T> host() const {
    std::vector<T> values(static_cast<std::size_t>(size_));
    on_->download(values.data(), data_, values.size() * sizeof(T));
    return values;
  }

 private:
  void swap(array& other) noexcept {
    std::swap(on_, other.on_), std::swap(data_, other.data_), std::swap(size_, other.size_);
  }

  accelerator* on_ = nullptr;
  T* data_ = nullptr;
  index_t size_ = 0;
};

/// The same for numbers of a type chosen at run time.
class number_array {
 public:
  number_array() = default;
  number_array(accelerator& on, index_t size, number type)
      : bytes_(on, size * static_cast<index_t>(size_of(type))), type_(type) {}
  operator numbers() const { return {bytes_.data(), type_}; }
  numbers from(index_t first) const { return numbers(*this).from(first); }

 private:
  array<char> bytes_;
  number type_ = number::float32;
};

}  // namespace lm::device
