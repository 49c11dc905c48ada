#include "rope.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include <fmt/format.h>

namespace lm {
namespace {

constexpr std::array<std::pair<char const*, rope_type>, 6> type_names{{{"default", rope_type::standard},
                                                                       {"linear", rope_type::linear},
                                                                       {"dynamic", rope_type::dynamic},
                                                                       {"llama3", rope_type::llama3},
                                                                       {"yarn", rope_type::yarn},
                                                                       {"longrope", rope_type::longrope}}};

/// The dimension whose wave turns `rotations` times within the original positions.
double dimension_of(rope_parameters const& rope, double rotations) {
  return static_cast<double>(rope.dimensions) *
         std::log(rope.original_positions / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(rope.theta));
}

/// The growth of attention that yarn asks for when positions are stretched.
double yarn_scale(double factor, double weight) {
  return factor <= 1.0 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
}

}  // namespace

std::string name_of(rope_type type) {
  return std::find_if(type_names.begin(), type_names.end(),
                      [&](auto const& entry) { return entry.second == type; })
      ->first;
}

std::vector<double> rope_frequencies(rope_parameters const& rope, std::int64_t positions) {
  auto const dimensions = static_cast<double>(rope.dimensions);
  auto const length = static_cast<double>(positions);
  double theta = rope.theta;
  if (rope.type == rope_type::dynamic && length > rope.original_positions) {
    double const growth = rope.factor * length / rope.original_positions - (rope.factor - 1.0);
    theta *= std::pow(growth, dimensions / (dimensions - 2.0));
  }
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < rope.dimensions; i += 2) {
    frequencies.push_back(std::pow(theta, -static_cast<double>(i) / dimensions));
  }
  for (std::size_t i = 0; i < rope.divisors.size(); ++i) frequencies[i] /= rope.divisors[i];

  switch (rope.type) {
    case rope_type::standard:
    case rope_type::dynamic:
      break;
    case rope_type::linear:
      for (double& frequency : frequencies) frequency /= rope.factor;
      break;
    case rope_type::llama3:
      for (double& frequency : frequencies) {
        double const waves = rope.original_positions * frequency / (2.0 * std::numbers::pi);
        double const kept = std::clamp(
            (waves - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
        frequency *= kept + (1.0 - kept) / rope.factor;
      }
      break;
    case rope_type::yarn: {
      double low = dimension_of(rope, rope.beta_fast), high = dimension_of(rope, rope.beta_slow);
      if (rope.truncate) low = std::floor(low), high = std::ceil(high);
      low = std::max(low, 0.0);
      high = std::min(high, dimensions - 1.0);
      if (low == high) high += 0.001;
      for (std::size_t i = 0; i < frequencies.size(); ++i) {
        double const stretched = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        frequencies[i] *= 1.0 - stretched + stretched / rope.factor;
      }
      break;
    }
    case rope_type::longrope: {
      auto const& factors = length > rope.original_positions ? rope.long_factors : rope.short_factors;
      for (std::size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= factors[i];
      break;
    }
  }
  return frequencies;
}

rotations make_rotations(rope_parameters const& rope, std::int64_t positions) {
  auto const frequencies = rope_frequencies(rope, positions);
  auto const count = static_cast<Eigen::Index>(frequencies.size());
  rotations r{gptq::matrix(positions, count), gptq::matrix(positions, count)};
  for (Eigen::Index p = 0; p < positions; ++p) {
    for (Eigen::Index i = 0; i < count; ++i) {
      double const angle = static_cast<double>(p) * frequencies[static_cast<std::size_t>(i)];
      r.cos(p, i) = static_cast<float>(rope.attention_factor * std::cos(angle));
      r.sin(p, i) = static_cast<float>(rope.attention_factor * std::sin(angle));
    }
  }
  return r;
}

rope_parameters read_rope(json_keys const& keys, rope_parameters rope, std::int64_t positions,
                          double original) {
  std::string const key = keys.has("rope_type") ? "rope_type" : "type";  // older files: "type"
  std::string const type = keys.text(key, "default");
  keys.ignore("type");
  rope.theta = keys.positive("rope_theta", rope.theta);
  if (keys.has("partial_rotary_factor")) {
    double const share = keys.positive("partial_rotary_factor");
    if (share > 1.0) keys.refuse("partial_rotary_factor", "more than 1");
    keys.ignore("partial_rotary_factor");  // whoever calls has made `dimensions` of it
  }
  auto const known = std::find_if(type_names.begin(), type_names.end(),
                                  [&](auto const& entry) { return type == entry.first; });
  if (type == "su") {
    rope.type = rope_type::longrope;  // Phi-3's first name for it
  } else if (known == type_names.end()) {
    keys.refuse(key, "only default, linear, dynamic, llama3, yarn and longrope are implemented");
  } else {
    rope.type = known->second;
  }
  auto const maximum = static_cast<double>(positions);
  bool const own = keys.has("original_max_position_embeddings");
  rope.original_positions = own              ? keys.positive("original_max_position_embeddings")
                            : original > 0.0 ? original
                                             : maximum;
  auto const pairs = static_cast<std::size_t>(rope.dimensions / 2);
  switch (rope.type) {
    case rope_type::standard:
      keys.ignore("factor");
      break;
    case rope_type::linear:
      rope.factor = keys.positive("factor");
      break;
    case rope_type::dynamic:
      rope.factor = keys.positive("factor");
      rope.original_positions = maximum;  // transformers takes the model's own
      break;
    case rope_type::llama3:
      rope.factor = keys.positive("factor");
      rope.low_freq_factor = keys.positive("low_freq_factor");
      rope.high_freq_factor = keys.positive("high_freq_factor");
      keys.at("original_max_position_embeddings");
      if (!(rope.low_freq_factor < rope.high_freq_factor)) {
        keys.refuse("low_freq_factor", "not below high_freq_factor");
      }
      break;
    case rope_type::yarn: {
      rope.factor = keys.has("factor") || !own ? keys.positive("factor") : maximum / rope.original_positions;
      rope.beta_fast = keys.positive("beta_fast", 32.0);
      rope.beta_slow = keys.positive("beta_slow", 1.0);
      rope.truncate = keys.flag("truncate", true);
      bool const weighted = keys.has("mscale") && keys.has("mscale_all_dim");
      double const missing = weighted ? yarn_scale(rope.factor, keys.positive("mscale")) /
                                            yarn_scale(rope.factor, keys.positive("mscale_all_dim"))
                                      : yarn_scale(rope.factor, 1.0);
      rope.attention_factor = keys.positive("attention_factor", missing);
      break;
    }
    case rope_type::longrope: {
      rope.short_factors = keys.positives("short_factor", pairs);
      rope.long_factors = keys.positives("long_factor", pairs);
      rope.factor = keys.has("factor") && !(own || original > 0.0) ? keys.positive("factor")
                                                                   : maximum / rope.original_positions;
      keys.ignore("factor");
      double const missing = rope.factor <= 1.0
                                 ? 1.0
                                 : std::sqrt(1.0 + std::log(rope.factor) / std::log(rope.original_positions));
      rope.attention_factor = keys.positive("attention_factor", missing);
      break;
    }
  }
  if (auto const unknown = keys.unread()) keys.refuse(*unknown, "not known for this rope_type");
  return rope;
}

}  // namespace lm
