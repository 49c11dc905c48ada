// The column sweep with several candidates for the codes of each row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include <gptq/solver/state.hpp>

namespace gptq::solver {

/// Quantizes the positions first..end of a strip of rows with up to `beam` candidates a row: every column
/// extends each of them by its two nearest levels, and those that lose least so far stay. The best one is
/// what is left behind. Grids are known and `order` is not stored.
/// @param now  [rows, end - first] w_now of the positions, in reversed order, without their own feedback
class beam_strip {
 public:
  beam_strip(layer_state& state, index_t first, index_t end, int beam)
      : s_(state),
        table_(state.format.levels.table),
        half_step_(state.format.levels.is_half_step()),
        lowest_(static_cast<float>(state.format.levels.min_code)),
        highest_(static_cast<float>(state.format.levels.max_code)),
        a0_(state.columns() - end),
        width_(end - first),
        beam_(static_cast<std::size_t>(beam)),
        shares_(static_cast<std::size_t>(width_ * width_)),
        now_(static_cast<std::size_t>(beam * width_)),
        next_(now_.size()),
        others_(beam_),
        history_(static_cast<std::size_t>(width_) * beam_) {
    for (index_t c = 0; c < width_; ++c) {
      for (index_t k = 0; k < c; ++k)
        shares_[static_cast<std::size_t>(c * width_ + k)] = s_.f->lower(a0_ + c, a0_ + k);
    }
  }

  void run(linalg::view now, index_t first_row) {
    for (index_t r = 0; r < now.rows; ++r) {
      for (index_t c = 0; c < width_; ++c) now_[static_cast<std::size_t>(c)] = now(r, c);
      run_row(first_row + r);
    }
  }

 private:
  struct candidate {
    double loss;
    int parent;
    float code;
  };

  // A code book's codes are its levels here, and its zero point is 0.
  float nearest(float x, float divisor, float zero) const {
    if (table_ != nullptr) return table_->nearest(x / divisor);
    return half_step_ ? detail::nearest_code<true>(x, divisor, zero, lowest_, highest_)
                      : detail::nearest_code<false>(x, divisor, zero, lowest_, highest_);
  }

  /// The next code in a direction, or in the other one where there is none.
  float beside(float code, bool above) const {
    if (table_ != nullptr) return table_->beside(code, above);
    float const outwards = above ? 1.0F : -1.0F;
    bool const inside = code + outwards >= lowest_ && code + outwards <= highest_;
    return code + (inside ? outwards : -outwards);
  }
  std::uint8_t stored(float code) const {
    return table_ != nullptr ? table_->code(code) : static_cast<std::uint8_t>(static_cast<int>(code));
  }

  /// Keeps `extended_` sorted, ties in order of arrival.
  void extend(candidate const& with) {
    if (extended_.size() == beam_) {
      if (!(with.loss < extended_.back().loss)) return;
      extended_.pop_back();
    }
    auto at = extended_.end();
    while (at != extended_.begin() && with.loss < std::prev(at)->loss) --at;
    extended_.insert(at, with);
  }

  void run_row(index_t row) {
    alive_.assign(1, {0.0, 0, 0.0F});
    index_t group = -1;
    grid g;
    for (index_t c = width_ - 1; c >= 0; --c) {
      index_t const column = s_.column(a0_ + c);
      if (index_t const next_group = column / s_.format.group_columns; next_group != group) {
        group = next_group;
        g = s_.result.grid_at(row, group);
      }
      extend_all(c, g);
      advance(row, c, g);
    }
    s_.losses[static_cast<std::size_t>(row)] += alive_.front().loss;
    store(row);
  }

  /// The two nearest levels of column c for each candidate.
  void extend_all(index_t c, grid g) {
    float const zero = s_.format.levels.zero_point(g);
    float const divisor = detail::safe_divisor(g.scale);
    float const diagonal = s_.f->diagonal(a0_ + c);
    extended_.clear();
    auto const wanted = [&](std::size_t i) {
      return now_[i * static_cast<std::size_t>(width_) + static_cast<std::size_t>(c)];
    };
    auto const cost = [&](std::size_t i, float code) {
      float const e = (wanted(i) - g.scale * (code - zero)) * diagonal;
      return alive_[i].loss + double{e} * double{e};
    };
    for (std::size_t i = 0; i < alive_.size(); ++i) {
      float const x = wanted(i);
      float const code = nearest(x, divisor, zero);
      extend({cost(i, code), static_cast<int>(i), code});
      // The level on the other side of x, or the next one inwards where there is none. It rarely is among the
      // best: it comes after all of the nearest ones.
      bool const above = (x > g.scale * (code - zero)) == (g.scale > 0.0F);
      others_[i] = beside(code, above);
    }
    for (std::size_t i = 0; i < alive_.size(); ++i) {
      extend({cost(i, others_[i]), static_cast<int>(i), others_[i]});
    }
  }

  /// The best extensions become the candidates, each with the feedback of its own codes.
  void advance(index_t row, index_t c, grid g) {
    float const zero = s_.format.levels.zero_point(g);
    float const weight = s_.work.data()[row * s_.columns() + a0_ + c];
    float const* const share =
        shares_.data() + c * width_;  // what column c passes on to those that follow it
    for (std::size_t i = 0; i < extended_.size(); ++i) {
      candidate const& x = extended_[i];
      history_[static_cast<std::size_t>(c) * beam_ + i] = x;
      float const error = weight - g.scale * (x.code - zero);
      float const* const from = now_.data() + x.parent * width_;
      float* const to = next_.data() + static_cast<index_t>(i) * width_;
      for (index_t k = 0; k < c; ++k) to[k] = from[k] + error * share[k];
    }
    now_.swap(next_);
    alive_.swap(extended_);
  }

  /// The codes of the best candidate, from the last column back to the first.
  void store(index_t row) {
    std::uint8_t* const codes = s_.result.codes.data() + row * s_.columns();
    int parent = 0;
    for (index_t c = 0; c < width_; ++c) {
      candidate const& x = history_[static_cast<std::size_t>(c) * beam_ + static_cast<std::size_t>(parent)];
      index_t const column = s_.column(a0_ + c);
      codes[column] = stored(x.code);
      s_.work.data()[row * s_.columns() + a0_ + c] -=
          s_.format.levels.decode(codes[column], s_.result.grid_at(row, column / s_.format.group_columns));
      parent = x.parent;
    }
  }

  layer_state& s_;
  detail::level_table const* table_;  ///< a code book's
  bool half_step_;
  float lowest_;
  float highest_;
  index_t a0_;
  index_t width_;
  std::size_t beam_;
  std::vector<float> shares_;  ///< row c: entries 0..c of the factor's row
  std::vector<float> now_;     ///< w_now, a row a candidate
  std::vector<float> next_;
  std::vector<candidate> alive_;
  std::vector<candidate> extended_;
  std::vector<float> others_;
  std::vector<candidate> history_;
};

}  // namespace gptq::solver
