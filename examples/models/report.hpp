// What a run has to say: sums of it, and JSON lines of all of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "quantization.hpp"
#include "tuning.hpp"

namespace lm {

/// What the reports of all linear layers add up to.
struct summary {
  double loss = 0.0;
  double largest_loss = 0.0;
  std::string largest;  ///< the layer with it
  double bits_per_weight = 0.0;
  std::int64_t raised_damping = 0;  ///< layers whose Hessian needed more damping than asked for
  std::int64_t of_experts = 0;
  std::int64_t starved = 0;    ///< of these, those that saw fewer tokens than they have columns
  double fewest_tokens = 0.0;  ///< that one of these saw
};

/// @param reports  at least one
summary summarize(std::vector<linear_report> const& reports);

/// "reference", "plain", "fast", "best"
extern std::map<std::string, gptq::quality> const qualities;
std::string name_of(gptq::quality quality);

/// JSON has no NaN: what was not measured is null.
nlohmann::ordered_json number(double value);
nlohmann::ordered_json json_of(gptq::format_spec const& format);
nlohmann::ordered_json json_of(linear_report const& report);
/// What json_of() wrote. Throws what nlohmann::json throws when it is something else.
linear_report report_of(nlohmann::ordered_json const& json);
nlohmann::ordered_json json_of(gptq::refinement const& refinement);
nlohmann::ordered_json json_of(tuning const& options);
nlohmann::ordered_json json_of(tuning_report const& report);
nlohmann::ordered_json json_of(summary const& s);

/// A file of JSON lines, each an object with an "event", complete after every line. Does nothing when its
/// path is empty. Throws gptq::error when the file cannot be written.
class run_log {
 public:
  explicit run_log(std::filesystem::path path);
  /// @param values  an object
  void write(char const* event, nlohmann::ordered_json const& values);

 private:
  std::filesystem::path path_;
  std::ofstream out_;
};

/// Peak resident memory of this process, mapped files included.
double peak_memory_bytes();

}  // namespace lm
