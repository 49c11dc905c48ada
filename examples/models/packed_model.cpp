#include "packed_model.hpp"

#include <algorithm>
#include <fstream>
#include <utility>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "gguf_model.hpp"
#include "gguf_tokenizer.hpp"
#include "output_files.hpp"
#include "report.hpp"

namespace lm {
namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using gptq::checkpoint::tensor_map;
using nlohmann::ordered_json;

constexpr char const* reports_key = "reports";

/// What a run that was killed while it wrote has left.
void remove_parts(fs::path const& directory) {
  std::error_code ignored;
  for (auto const& file : fs::directory_iterator(directory, ignored)) {
    if (file.path().filename().string().find(".part-") != std::string::npos) fs::remove(file.path(), ignored);
  }
}

/// A GGUF file's own tokenizer and chat template, where there are none beside it.
void write_tokenizer_of(fs::path const& source, fs::path const& directory) {
  gptq::checkpoint::gguf_file const file(source);
  if (!fs::exists(directory / "tokenizer.json") && !fs::exists(directory / "tokenizer.model") &&
      file.get<std::string_view>("tokenizer.ggml.model").value_or("none") == "gpt2") {
    if (auto const json = tokenizer_json_in(file, source.string()))
      write_text(directory / "tokenizer.json", *json);
  }
  auto const chat = chat_template_of(source);
  if (chat && !chat_template_in(directory)) write_text(directory / "chat_template.jinja", *chat);
}

}  // namespace

void copy_tokenizer(fs::path const& source, fs::path const& directory) {
  for (char const* const name : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                                 "added_tokens.json", "chat_template.jinja", "generation_config.json"}) {
    if (auto const original = directory_of(source) / name; fs::exists(original)) {
      lm::copy_file(original, directory / name);
    }
  }
  if (is_gguf(source)) write_tokenizer_of(source, directory);
}

void check_no_model(fs::path const& directory) {
  if (fs::exists(directory / "config.json") || fs::exists(directory / gguf_name)) {
    throw gptq::error(directory.string() + ": holds a model already");
  }
}

void add_packed(tensor_map& tensors, std::string const& name, packed_linear const& packed) {
  packed_parts const parts = packed.parts();
  bool const half = packed.format().scales == gptq::scale_type::float16;
  tensors[name + ".codes"] = {dtype::u8, {parts.codes.size()}, parts.codes};
  tensors[name + ".scales"] = {
      half ? dtype::f16 : dtype::f32, {parts.scales.size() / (half ? 2 : 4)}, parts.scales};
  if (!parts.zeros.empty()) tensors[name + ".zeros"] = {dtype::u8, {parts.zeros.size()}, parts.zeros};
  if (!parts.order.empty()) {
    tensors[name + ".order"] = {dtype::i32, {parts.order.size()}, std::as_bytes(parts.order)};
  }
}

void write_packed_model(fs::path const& directory, model const& m, fs::path const& source) {
  make_directory(directory);
  tensor_map tensors;
  m.for_each_float_tensor([&](std::string const& name, auto const& tensor) { tensors[name] = tensor; });
  ordered_json layers;
  m.for_each_packed([&](linear_layer const& layer, packed_linear const& packed) {
    add_packed(tensors, layer.name, packed);
    layers[layer.name] = json_of(packed.format());
  });
  write_safetensors(directory / "model.safetensors", tensors, {{"format", "pt"}});
  copy_tokenizer(source, directory);
  ordered_json config = is_gguf(source) ? json_of(m.config()) : read_json(source / "config.json");
  config["quantization_config"] = {{"quant_method", packed_method}, {"layers", layers}};
  write_text(directory / "config.json", config.dump(1) + "\n");
}

unfinished_run::unfinished_run(fs::path const& directory, ordered_json const& settings, bool resume)
    : path_(directory / "unfinished") {
  check_no_model(directory);
  make_directory(path_);
  lock_.emplace(path_ / "lock");
  try {
    check_no_model(directory);  // by one that has let go of the lock just now
  } catch (gptq::error const&) {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
    throw;
  }
  auto const file = path_ / "settings.json";
  if (!fs::exists(file)) {
    write_text(file, settings.dump(1) + "\n");
    return;
  }
  if (!resume) {
    throw gptq::error(path_.string() + ": holds a run that was interrupted; --resume goes on with it");
  }
  ordered_json const before = read_json(file);
  for (auto const& [key, value] : settings.items()) {
    if (before.value(key, ordered_json()) == value) continue;
    throw gptq::error(fmt::format("{}: that run had {} {}, not {}", file.string(), key,
                                  before.value(key, ordered_json()).dump(), value.dump()));
  }
  remove_parts(directory);
  remove_parts(path_);
}

fs::path unfinished_run::file_of(std::int64_t layer) const {
  return path_ / fmt::format("layer-{:05}.safetensors", layer);
}

std::optional<unfinished_run::saved_layer> unfinished_run::load(
    std::int64_t layer, decoder_description const& description) const {
  auto const path = file_of(layer);
  if (!fs::exists(path)) return std::nullopt;
  auto const file = std::make_shared<gptq::checkpoint::safetensors_file const>(path);
  saved_layer saved;
  try {
    for (auto const& json : ordered_json::parse(file->metadata().at(reports_key))) {
      saved.reports.push_back(report_of(json));
      linear_report const& r = saved.reports.back();
      saved.packed.push_back(find_packed(file->tensors(), r.name, r.format, r.out, r.in, file));
    }
  } catch (std::exception const& e) {
    throw gptq::error(path.string() + ": damaged: " + e.what());
  }
  bool const whole = std::equal(saved.reports.begin(), saved.reports.end(), description.linears.begin(),
                                description.linears.end(),
                                [](auto const& report, auto const& l) { return report.name == l.name; });
  if (!whole) throw gptq::error(path.string() + ": damaged: layers are missing");
  return saved;
}

void unfinished_run::save(std::int64_t layer, model const& m,
                          std::vector<linear_report> const& reports) const {
  tensor_map tensors;
  auto const& linears = m.config().layer(layer).linears;
  for (std::size_t place = 0; place < linears.size(); ++place) {
    add_packed(tensors, linears[place].name, *m.packed(layer, place));
  }
  ordered_json json = ordered_json::array();
  for (linear_report const& r : reports) json.push_back(json_of(r));
  write_safetensors(file_of(layer), tensors, {{reports_key, json.dump()}});
}

std::int64_t unfinished_run::finished() const {
  std::int64_t count = 0;
  while (fs::exists(file_of(count))) ++count;
  return count;
}

void unfinished_run::remove() const {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace lm
