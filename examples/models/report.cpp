#include "report.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <sys/resource.h>

#include <gptq/error.hpp>

namespace lm {

using nlohmann::ordered_json;

summary summarize(std::vector<linear_report> const& reports) {
  summary s;
  double weights = 0.0;
  for (linear_report const& r : reports) {
    s.loss += r.quality.loss;
    if (s.largest.empty() || r.quality.loss > s.largest_loss) {
      s.largest_loss = r.quality.loss;
      s.largest = r.name;
    }
    s.bits_per_weight += 8.0 * static_cast<double>(r.packed_bytes);
    weights += static_cast<double>(r.out * r.in);
    s.raised_damping += r.quality.damping_raised > 0 ? 1 : 0;
    if (r.expert_tokens >= 0.0) {
      ++s.of_experts;
      s.starved += r.expert_tokens < static_cast<double>(r.in) ? 1 : 0;
      s.fewest_tokens = s.of_experts == 1 ? r.expert_tokens : std::min(s.fewest_tokens, r.expert_tokens);
    }
  }
  s.bits_per_weight /= weights;
  return s;
}

std::map<std::string, gptq::quality> const qualities{{"reference", gptq::quality::reference},
                                                     {"plain", gptq::quality::plain},
                                                     {"fast", gptq::quality::fast},
                                                     {"best", gptq::quality::best}};

std::string name_of(gptq::quality quality) {
  return std::find_if(qualities.begin(), qualities.end(),
                      [&](auto const& entry) { return entry.second == quality; })
      ->first;
}

ordered_json number(double value) { return std::isfinite(value) ? ordered_json(value) : ordered_json(); }

ordered_json json_of(gptq::format_spec const& format) {
  return {{"scheme", format.scheme},
          {"bits", format.bits},
          {"group_size", format.group_size},
          {"scales", format.scales == gptq::scale_type::float16 ? "float16" : "float32"}};
}

ordered_json json_of(linear_report const& r) {
  ordered_json json{{"name", r.name},
                    {"shape", {r.out, r.in}},
                    {"loss", number(r.quality.loss)},
                    {"loss_per_token", number(r.quality.loss_per_token)},
                    {"output_error", number(r.quality.output_error)},
                    {"snr_db", number(r.quality.snr_db)},
                    {"held_out_error", number(r.quality.held_out_error)},
                    {"int8_snr_db", number(r.int8_snr_db)},
                    {"damping", number(r.quality.damping)},
                    {"damping_raised", r.quality.damping_raised},
                    {"fell_back", r.quality.fell_back},
                    {"propagated", r.propagated},
                    {"expert_tokens", r.expert_tokens < 0.0 ? ordered_json() : ordered_json(r.expert_tokens)},
                    {"packed_bytes", r.packed_bytes},
                    {"seconds", number(r.quality.seconds)},
                    {"weight_quantiles", r.weights},
                    {"input_quantiles", r.inputs}};
  json.update(json_of(r.format));
  return json;
}

linear_report report_of(ordered_json const& json) {
  auto const measured = [&](char const* key) {
    return json.at(key).is_null() ? gptq::quantize_report::not_measured : json.at(key).get<double>();
  };
  linear_report r;
  json.at("name").get_to(r.name);
  json.at("shape").at(0).get_to(r.out);
  json.at("shape").at(1).get_to(r.in);
  r.format = {json.at("scheme").get<std::string>(), json.at("bits").get<int>(),
              json.at("group_size").get<int>(),
              json.at("scales") == "float16" ? gptq::scale_type::float16 : gptq::scale_type::float32};
  json.at("packed_bytes").get_to(r.packed_bytes);
  r.quality.loss = measured("loss");
  r.quality.loss_per_token = measured("loss_per_token");
  r.quality.output_error = measured("output_error");
  r.quality.snr_db = measured("snr_db");
  r.quality.held_out_error = measured("held_out_error");
  r.quality.held_out_snr_db = -10.0 * std::log10(r.quality.held_out_error);
  r.quality.damping = measured("damping");
  json.at("damping_raised").get_to(r.quality.damping_raised);
  json.at("fell_back").get_to(r.quality.fell_back);
  json.at("propagated").get_to(r.propagated);
  if (json.contains("expert_tokens") && !json["expert_tokens"].is_null()) {
    json["expert_tokens"].get_to(r.expert_tokens);
  }
  r.quality.seconds = measured("seconds");
  r.int8_snr_db = measured("int8_snr_db");
  r.int8_error = std::pow(10.0, -0.1 * r.int8_snr_db);
  json.at("weight_quantiles").get_to(r.weights);
  json.at("input_quantiles").get_to(r.inputs);
  return r;
}

ordered_json json_of(gptq::refinement const& refinement) {
  ordered_json attempts = ordered_json::array();
  for (gptq::attempt const& a : refinement.attempts) {
    ordered_json json{{"loss", number(a.loss)}, {"packed_bytes", a.bytes}, {"seconds", a.seconds}};
    json.update(json_of(a.format));
    attempts.push_back(json);
  }
  return {{"name", refinement.name}, {"chosen", refinement.chosen}, {"attempts", attempts}};
}

ordered_json json_of(tuning const& options) {
  ordered_json json{{"scope", options.scope == tuning_scope::model ? "model" : "layer"},
                    {"batch", options.batch},
                    {"rate", options.rate},
                    {"seed", options.seed}};
  if (options.steps) {
    json["steps"] = *options.steps;
  } else {
    json["minutes"] = options.minutes;
  }
  return json;
}

ordered_json json_of(tuning_report const& r) {
  ordered_json json{{"steps", r.steps},
                    {"kept", r.kept},
                    {"before", number(r.before)},
                    {"after", number(r.after)},
                    {"seconds", r.seconds}};
  if (r.layer >= 0) json["layer"] = r.layer;
  return json;
}

ordered_json json_of(summary const& s) {
  return {{"loss", number(s.loss)},
          {"largest_loss", number(s.largest_loss)},
          {"largest", s.largest},
          {"bits_per_weight", s.bits_per_weight},
          {"raised_damping", s.raised_damping},
          {"of_experts", s.of_experts},
          {"starved", s.starved}};
}

run_log::run_log(std::filesystem::path path) : path_(std::move(path)) {
  if (path_.empty()) return;
  out_.open(path_);
  if (!out_) throw gptq::error(path_.string() + ": cannot be written");
}

void run_log::write(char const* event, ordered_json const& values) {
  if (path_.empty()) return;
  ordered_json line{{"event", event}};
  line.update(values);
  out_ << line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) << '\n';
  if (!out_.flush()) throw gptq::error(path_.string() + ": cannot be written");
}

double peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return 1024.0 * static_cast<double>(usage.ru_maxrss);
}

}  // namespace lm
