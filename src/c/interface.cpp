// gptq.h: arguments checked, and given to the kernels of the CPU under this program.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string_view>
#include <type_traits>

#include <gptq/dispatch.hpp>
#include <gptq/gptq.h>
#include <gptq/layout/pack_arrays.hpp>
#include <gptq/packed_file.hpp>

#include "kernels.hpp"

namespace gptq::c_interface {
namespace {

// Numbers of gptq.h that are those of checks.hpp.
constexpr bool same(int status, fault what) { return status == static_cast<int>(what); }
static_assert(same(GPTQ_OK, fault::none) && same(GPTQ_ERROR_SHAPE, fault::shape) &&
              same(GPTQ_ERROR_NO_CODES, fault::no_codes) && same(GPTQ_ERROR_NO_SCALES, fault::no_scales) &&
              same(GPTQ_ERROR_NO_ZEROS, fault::no_zeros) &&
              same(GPTQ_ERROR_ALIGNMENT, fault::scale_alignment) && same(GPTQ_ERROR_ORDER, fault::order) &&
              same(GPTQ_ERROR_SCALE_VALUE, fault::scale_value) &&
              same(GPTQ_ERROR_NO_MEMORY, fault::no_memory) &&
              same(GPTQ_ERROR_OTHER_COLUMNS, fault::other_columns) &&
              same(GPTQ_ERROR_OTHER_GROUPS, fault::other_groups) &&
              same(GPTQ_ERROR_OTHER_ORDER, fault::other_order) && same(GPTQ_ERROR_ROWS, fault::rows) &&
              same(GPTQ_ERROR_NO_PACKED_MATRIX, fault::no_packed_file) &&
              same(GPTQ_ERROR_VERSION, fault::file_version) && same(GPTQ_ERROR_SIZE, fault::file_size) &&
              same(GPTQ_ERROR_CHECKSUM, fault::checksum));
static_assert(static_cast<int>(fault::checksum) < GPTQ_ERROR_FORMAT);

// ---- the CPU ---------------------------------------------------------------------------------------------

std::atomic<kernels const*> chosen = nullptr;

kernels const* find_kernels(char const* name) {
  kernels const* found = nullptr;
  auto const look = [&]<class Isa>() {
    if (found != nullptr || (name != nullptr && Isa::name != name) || !Isa::supported()) return;
    found = &kernels_for<Isa>();
  };
  [&]<class... Isas>(isa::list<Isas...>) { (look.template operator()<Isas>(), ...); }(isa::dispatched{});
  return found;
}

/// Null on a CPU that the library has no kernels for. Threads that come here at once all find the same.
kernels const* run() {
  kernels const* all = chosen.load(std::memory_order_acquire);
  if (all == nullptr) {
    all = find_kernels(nullptr);
    chosen.store(all, std::memory_order_release);
  }
  return all;
}

// ---- formats ---------------------------------------------------------------------------------------------

template <class Scheme>
inline constexpr int scheme_number = std::is_same_v<Scheme, asymmetric>   ? GPTQ_ASYMMETRIC
                                     : std::is_same_v<Scheme, symmetric>  ? GPTQ_SYMMETRIC
                                     : std::is_same_v<Scheme, fixed_zero> ? GPTQ_FIXED_ZERO
                                                                          : GPTQ_HALF_STEP;

bool possible(std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  return 0 <= rows && rows <= limit && 0 <= columns && columns <= limit;
}

bool aligned(void const* p) { return reinterpret_cast<std::uintptr_t>(p) % 4 == 0; }

template <storage_format Format>
std::size_t packed_bytes(std::int64_t rows, std::int64_t columns, bool has_order) {
  return detail::packed_parts<Format>({static_cast<index_t>(rows), static_cast<index_t>(columns)}, has_order)
      .end;
}

template <storage_format Format>
int check_values(index_t rows, index_t columns, std::uint8_t const* codes, float const* scales,
                 std::uint8_t const* zeros) {
  constexpr code_levels levels = Format::levels;
  index_t const grids = rows * Format::groups(columns);
  for (index_t i = 0; i < rows * columns; ++i) {
    if (codes[i] < levels.min_code || codes[i] > levels.max_code) return GPTQ_ERROR_CODE_VALUE;
  }
  for (index_t i = 0; i < grids; ++i) {
    if (!(scales[i] - scales[i] == 0.0F)) return GPTQ_ERROR_SCALE_VALUE;
    if (static_cast<float>(float16(scales[i])) != scales[i]) return GPTQ_ERROR_SCALE_ROUNDS;
    if (Format::has_zero_point && zeros[i] >= 1 << Format::bits) return GPTQ_ERROR_ZERO_VALUE;
  }
  return GPTQ_OK;
}

/// Arguments as gptq_pack() gets them, with room for what packed_bytes() says.
template <storage_format Format>
int pack(index_t rows, index_t columns, std::uint8_t const* codes, float const* scales,
         std::uint8_t const* zeros, std::int32_t const* order, std::byte* bytes) {
  if (rows != 0 && columns != 0) {
    if (codes == nullptr) return GPTQ_ERROR_NO_CODES;
    if (scales == nullptr) return GPTQ_ERROR_NO_SCALES;
    if (Format::has_zero_point && zeros == nullptr) return GPTQ_ERROR_NO_ZEROS;
    int const what = check_values<Format>(rows, columns, codes, scales, zeros);
    if (what != GPTQ_OK) return what;
  }
  if (order != nullptr) {
    index_t const position = detail::permutation_fault(order, columns);
    if (position == detail::no_memory_for_it) return GPTQ_ERROR_NO_MEMORY;
    if (position != detail::is_permutation) return GPTQ_ERROR_ORDER;
  }
  auto const at = detail::packed_parts<Format>({rows, columns}, order != nullptr);
  std::memset(bytes, 0, at.end);
  auto* const values = reinterpret_cast<std::uint8_t*>(bytes);
  packed_memory<Format> const to{values + at.codes,
                                 reinterpret_cast<float16*>(bytes + at.scales),
                                 values + at.zeros,
                                 nullptr,
                                 rows,
                                 columns};
  detail::pack_arrays(codes, scales, zeros, to);
  if (order != nullptr) {
    std::memcpy(bytes + at.order, order, static_cast<std::size_t>(columns) * sizeof(std::int32_t));
  }
  detail::write_packed_header<Format>({rows, columns}, order != nullptr, bytes, true);
  return GPTQ_OK;
}

template <storage_format Format>
fault open(gptq_matrix& w, std::span<std::byte const> bytes) {
  packed_view<Format> view;
  fault const what = open_packed(view, bytes);
  if (what != fault::none) return what;
  w.rows = view.out;
  w.columns = view.in;
  w.codes = view.codes;
  w.scales = view.scales;
  w.zeros = view.zeros;
  w.order = view.order;
  return what;
}

/// What does not depend on the CPU.
struct format_functions {
  gptq_format format;
  bool (*is)(packed_header const& header);
  std::size_t (*bytes)(std::int64_t rows, std::int64_t columns, bool has_order);
  int (*pack)(index_t rows, index_t columns, std::uint8_t const* codes, float const* scales,
              std::uint8_t const* zeros, std::int32_t const* order, std::byte* bytes);
  fault (*open)(gptq_matrix& w, std::span<std::byte const> bytes);
  void (*dequantize)(gptq_matrix const& w, row_range rows, float* weights);
};

template <storage_format Format>
constexpr format_functions functions_for() {
  return {{scheme_number<typename Format::scheme>, Format::bits, Format::group_size},
          [](packed_header const& header) { return header.is<Format>(); },
          packed_bytes<Format>,
          pack<Format>,
          open<Format>,
          [](gptq_matrix const& w, row_range rows, float* weights) {
            gptq::dequantize(view<Format>(w), rows, weights);
          }};
}

template <class... Formats>
constexpr auto all_functions(format_list<Formats...> /*formats*/) {
  struct {
    format_functions at[sizeof...(Formats)];
  } all{{functions_for<Formats>()...}};
  return all;
}
constexpr auto functions = all_functions(formats{});

format_functions const* find_functions(gptq_format const& format) {
  for (format_functions const& f : functions.at) {
    if (f.format.scheme == format.scheme && f.format.bits == format.bits &&
        f.format.group_size == format.group_size) {
      return &f;
    }
  }
  return nullptr;
}

// ---- arguments -------------------------------------------------------------------------------------------

/// Whether gptq_open() may have filled it.
bool is_open(gptq_matrix const* w) {
  return w != nullptr && 0 <= w->place_of_format && w->place_of_format < format_count<formats>;
}

bool is_type(int type) { return type == GPTQ_FLOAT32 || type == GPTQ_FLOAT16 || type == GPTQ_BFLOAT16; }

chunk_layout chunks(gptq_matrix const& w) {
  auto const columns = static_cast<index_t>(w.columns);
  return {columns, w.format.group_size == GPTQ_WHOLE_ROW ? columns : w.format.group_size};
}

row_range row_range_from(gptq_range r) {
  return {static_cast<index_t>(r.first), static_cast<index_t>(r.last)};
}

int8_activations activations_from(gptq_activations const& a) {
  int8_activations x{};
  x.chunks = {static_cast<index_t>(a.columns), static_cast<index_t>(a.group_columns)};
  x.tokens = static_cast<index_t>(a.tokens);
  x.digits = static_cast<std::int8_t const*>(a.digits);
  x.sums = static_cast<digit_sums const*>(a.sums);
  x.scales = a.scales;
  x.order = a.order;
  return x;
}

/// What is wrong with the arguments of a product.
int find_fault(gptq_matrix const* w, gptq_activations const* a, void const* y, std::int64_t stride,
               gptq_range rows) {
  if (!is_open(w) || a == nullptr) return GPTQ_ERROR_NULL;
  if (rows.first < 0 || rows.last > w->rows) return GPTQ_ERROR_ROWS;
  if (rows.first >= rows.last || a->tokens == 0) return GPTQ_OK;
  if (y == nullptr) return GPTQ_ERROR_NULL;
  if (a->tokens > 1 && stride < w->rows) return GPTQ_ERROR_STRIDE;
  return static_cast<int>(detail::find_mismatch(chunks(*w), w->order, activations_from(*a)));
}

}  // namespace
}  // namespace gptq::c_interface

using namespace gptq::c_interface;

int gptq_version(void) { return GPTQ_VERSION; }

char const* gptq_error_string(int status) {
  switch (status) {
    case GPTQ_ERROR_ALIGNMENT:
      return "bytes or a workspace at an address that is no multiple of 4";
    case GPTQ_ERROR_FORMAT:
      return "a format that this library is not built for";
    case GPTQ_ERROR_NULL:
      return "a null pointer, or a matrix that gptq_open() has not filled";
    case GPTQ_ERROR_TYPE:
      return "a type that is none of enum gptq_type";
    case GPTQ_ERROR_TOKENS:
      return "tokens that are not there";
    case GPTQ_ERROR_STRIDE:
      return "a stride that lets tokens overlap";
    case GPTQ_ERROR_WORKSPACE:
      return "a workspace that is too small";
    case GPTQ_ERROR_CODE_VALUE:
      return "a code that the format does not have";
    case GPTQ_ERROR_ZERO_VALUE:
      return "a zero point that is no code";
    case GPTQ_ERROR_SCALE_ROUNDS:
      return "a scale that float16 does not hold exactly";
    case GPTQ_ERROR_ROOM:
      return "no room for the packed matrix";
    case GPTQ_ERROR_ISA:
      return "no kernels for that instruction set, or not on this CPU";
    default:
      return status >= 0 && status <= GPTQ_ERROR_CHECKSUM ? gptq::message(static_cast<gptq::fault>(status))
                                                          : "no status of this library";
  }
}

char const* gptq_isa(void) {
  auto const* const all = run();
  return all == nullptr ? "none" : all->isa;
}

int gptq_use_isa(char const* name) {
  auto const* const found = find_kernels(name);
  if (found == nullptr) return GPTQ_ERROR_ISA;
  chosen.store(found, std::memory_order_release);
  return GPTQ_OK;
}

int gptq_has_format(gptq_format format) { return find_functions(format) != nullptr ? 1 : 0; }

size_t gptq_packed_bytes(gptq_format format, int64_t rows, int64_t columns, int has_order) {
  auto const* const f = find_functions(format);
  return f == nullptr || !possible(rows, columns) ? 0 : f->bytes(rows, columns, has_order != 0);
}

int gptq_pack(gptq_format format, int64_t rows, int64_t columns, uint8_t const* codes, float const* scales,
              uint8_t const* zeros, int32_t const* order, void* bytes, size_t size) {
  auto const* const f = find_functions(format);
  if (f == nullptr) return GPTQ_ERROR_FORMAT;
  if (!possible(rows, columns)) return GPTQ_ERROR_SHAPE;
  if (bytes == nullptr) return GPTQ_ERROR_NULL;
  if (!aligned(bytes)) return GPTQ_ERROR_ALIGNMENT;
  if (size < f->bytes(rows, columns, order != nullptr)) return GPTQ_ERROR_ROOM;
  return f->pack(static_cast<gptq::index_t>(rows), static_cast<gptq::index_t>(columns), codes, scales, zeros,
                 order, static_cast<std::byte*>(bytes));
}

int gptq_open(gptq_matrix* w, void const* bytes, size_t size) {
  if (w == nullptr || bytes == nullptr) return GPTQ_ERROR_NULL;
  if (run() == nullptr) return GPTQ_ERROR_ISA;
  std::span<std::byte const> const file{static_cast<std::byte const*>(bytes), size};
  if (!gptq::detail::is_packed(file)) return GPTQ_ERROR_NO_PACKED_MATRIX;
  if (!gptq::detail::is_this_version(file.data())) return GPTQ_ERROR_VERSION;
  auto const header = gptq::read_packed_header(file);
  if (!header) return GPTQ_ERROR_SIZE;
  for (int i = 0; i < format_count<formats>; ++i) {
    format_functions const& f = functions.at[i];
    if (!f.is(*header)) continue;
    gptq_matrix opened{};
    opened.format = f.format;
    opened.place_of_format = i;
    gptq::fault const what = f.open(opened, file);
    if (what == gptq::fault::none) *w = opened;
    return static_cast<int>(what);
  }
  return GPTQ_ERROR_FORMAT;
}

int gptq_dequantize(gptq_matrix const* w, gptq_range rows, float* weights) {
  if (!is_open(w)) return GPTQ_ERROR_NULL;
  if (rows.first < 0 || rows.last > w->rows) return GPTQ_ERROR_ROWS;
  if (rows.first >= rows.last) return GPTQ_OK;
  if (weights == nullptr) return GPTQ_ERROR_NULL;
  functions.at[w->place_of_format].dequantize(*w, row_range_from(rows), weights);
  return GPTQ_OK;
}

size_t gptq_workspace_bytes(gptq_matrix const* w, int64_t tokens) {
  if (!is_open(w) || tokens <= 0) return 0;
  return gptq::workspace_bytes(chunks(*w), static_cast<gptq::index_t>(tokens));
}

int gptq_prepare(gptq_activations* a, gptq_matrix const* w, gptq_input x, int64_t tokens, void* workspace,
                 size_t workspace_bytes, gptq_range share) {
  if (a == nullptr || !is_open(w)) return GPTQ_ERROR_NULL;
  if (!is_type(x.type)) return GPTQ_ERROR_TYPE;
  if (tokens < 0 || share.first < 0 || share.last > tokens) return GPTQ_ERROR_TOKENS;
  std::size_t const needed = gptq_workspace_bytes(w, tokens);
  if (needed != 0 && (x.data == nullptr || workspace == nullptr)) return GPTQ_ERROR_NULL;
  if (workspace_bytes < needed) return GPTQ_ERROR_WORKSPACE;
  if (!aligned(workspace)) return GPTQ_ERROR_ALIGNMENT;
  if (tokens > 1 && x.stride < w->columns) return GPTQ_ERROR_STRIDE;
  auto prepared = gptq::detail::activations_at<gptq::precision::int8>(
      chunks(*w), chunks(*w).count(), static_cast<gptq::index_t>(tokens), static_cast<char*>(workspace));
  prepared.order = w->order;
  if (needed != 0) {
    run()->prepare(prepared, x, w->order,
                   {static_cast<gptq::index_t>(share.first), static_cast<gptq::index_t>(share.last)});
  }
  *a = {tokens,          w->columns,    prepared.chunks.group_columns, prepared.digits, prepared.sums,
        prepared.scales, prepared.order};
  return GPTQ_OK;
}

int gptq_multiply(gptq_matrix const* w, gptq_activations const* a, float* y, int64_t stride,
                  gptq_range rows) {
  int const what = gptq::c_interface::find_fault(w, a, y, stride, rows);
  if (what != GPTQ_OK || rows.first >= rows.last || a->tokens == 0) return what;
  auto const x = activations_from(*a);
  run()->products[w->place_of_format](*w, 0, x, {0, x.tokens}, y, static_cast<gptq::index_t>(stride),
                                      row_range_from(rows));
  return GPTQ_OK;
}

int gptq_multiply_add(gptq_matrix const* w, gptq_activations const* a, gptq_output y, gptq_range rows,
                      gptq_epilogue epilogue) {
  int const what = gptq::c_interface::find_fault(w, a, y.data, y.stride, rows);
  if (what != GPTQ_OK) return what;
  if (!is_type(y.type)) return GPTQ_ERROR_TYPE;
  if (rows.first >= rows.last || a->tokens == 0) return GPTQ_OK;
  run()->multiply_add(run()->products[w->place_of_format], *w, activations_from(*a), y, row_range_from(rows),
                      epilogue);
  return GPTQ_OK;
}
