// plot: pictures of what quantize_model --log and compare --log have written, drawn by gnuplot.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

#include "cli.hpp"
#include "model.hpp"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// The lines of a log of one kind, those of one setting together.
struct run {
  std::string setting;  ///< compare's; empty in a log of quantize_model
  std::vector<json> layers;
  json summary;
};

struct log_file {
  std::string title;
  std::vector<run> runs;
};

log_file read_log(fs::path const& path) {
  std::ifstream in(path);
  if (!in) throw gptq::error(path.string() + ": cannot be opened");
  log_file log;
  std::size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    try {
      json const event = json::parse(line);
      if (event.at("event") == "settings") {
        log.title = fmt::format("{}, {}, {} bits", event.at("model").get<std::string>(),
                                event.at("scheme").get<std::string>(), event.at("bits").get<int>());
        continue;
      }
      std::string const setting = event.value("setting", "");
      if (log.runs.empty() || log.runs.back().setting != setting) log.runs.push_back({setting, {}, {}});
      if (event.at("event") == "layer") log.runs.back().layers.push_back(event);
      if (event.at("event") == "summary") log.runs.back().summary = event;
    } catch (json::exception const& e) {
      throw gptq::error(fmt::format("{}: line {}: {}", path.string(), number, e.what()));
    }
  }
  if (log.runs.empty() || log.runs.front().layers.empty()) {
    throw gptq::error(path.string() + ": no layer in it");
  }
  if (log.title.empty()) log.title = log.runs.front().setting;
  return log;
}

/// "model.layers.3.mlp.up_proj" -> 3, "up_proj"
std::pair<int, std::string> place(json const& layer) {
  auto const name = layer.at("name").get<std::string>();
  constexpr std::string_view before = "layers.";
  std::size_t const index = name.find(before);
  if (index == std::string::npos) throw gptq::error("'" + name + "' is no linear layer of a decoder layer");
  return {std::stoi(name.substr(index + before.size())), name.substr(name.rfind('.') + 1)};
}

/// The kinds of linear layers, in the order of the log.
std::vector<std::string> projections(log_file const& log) {
  std::vector<std::string> names;
  for (json const& layer : log.runs.front().layers) {
    auto const name = place(layer).second;
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

/// Runs gnuplot twice with the same commands: once for each kind of file.
void draw(fs::path const& file, int width, int height, std::string const& commands) {
  for (auto const& [extension, terminal] :
       {std::pair(".png", fmt::format("pngcairo size {},{} font 'Sans,11'", width, height)),
        std::pair(".svg", fmt::format("svg size {},{} font 'Sans,12' background 'white'", width, height))}) {
    std::string const name = file.string() + extension;
    std::FILE* const gnuplot = ::popen("gnuplot", "w");
    if (gnuplot == nullptr) throw gptq::error("gnuplot cannot be started");
    std::fputs(fmt::format("set terminal {}\nset output \"{}\"\n{}", terminal, name, commands).c_str(),
               gnuplot);
    if (::pclose(gnuplot) != 0 || !fs::exists(name)) {
      throw gptq::error(name + ": gnuplot did not draw it; is it installed?");
    }
    fmt::print("{}\n", name);
  }
}

/// The picture that started it: loss over decoder layer, a line a projection.
std::string loss_commands(log_file const& log) {
  std::map<std::string, std::string> lines;
  for (json const& layer : log.runs.front().layers) {
    if (layer.at("loss").is_null()) continue;
    auto const [index, projection] = place(layer);
    lines[projection] += fmt::format("{} {}\n", index, layer.at("loss").get<double>());
  }
  std::string commands = fmt::format(
      "set title \"{}\" noenhanced\nset xlabel 'decoder layer'\nset ylabel 'loss'\nset logscale y\n"
      "set format y '%g'\nset xtics 1\nset key outside right\nset grid y\n",
      log.title);
  std::string plots;
  for (std::string const& projection : projections(log)) {
    commands += fmt::format("${} << EOD\n{}EOD\n", projection, lines[projection]);
    plots += fmt::format("{} ${} using 1:2 with linespoints lw 2 title '{}' noenhanced",
                         plots.empty() ? "plot" : ",", projection, projection);
  }
  return commands + plots + "\n";
}

/// Where values lie: boxes from 25 to 75 %, whiskers from 1 to 99 %, points at 0.1 and 99.9 % and at the
/// ends.
std::string quantile_commands(log_file const& log, char const* key, char const* title) {
  auto const names = projections(log);
  std::vector<json> const& layers = log.runs.front().layers;
  int decoder_layers = 0;
  for (json const& layer : layers) decoder_layers = std::max(decoder_layers, place(layer).first + 1);
  std::string rows;
  std::string tics;
  for (std::size_t p = 0; p < names.size(); ++p) {
    auto const first = static_cast<int>(p) * (decoder_layers + 1);
    tics += fmt::format("{}'{}' {}", p == 0 ? "" : ", ", names[p], first + 0.5 * (decoder_layers - 1));
    for (json const& layer : layers) {
      auto const [index, projection] = place(layer);
      if (projection != names[p]) continue;
      rows += fmt::format("{}", first + index);
      for (json const& value : layer.at(key)) rows += fmt::format(" {}", value.get<double>());
      rows += "\n";
    }
  }
  // Columns: position, then 0, 0.1, 1, 25, 50, 75, 99, 99.9 and 100 %.
  return fmt::format(
      "set title \"{}: {}, from decoder layer 0 on\" noenhanced\n$rows << EOD\n{}EOD\nset xtics ({}) "
      "noenhanced\n"
      "set boxwidth 0.7\nset style fill solid 0.4\nset grid y\nunset key\nset xzeroaxis\nset offsets 1, 1, "
      "0, 0\n"
      "plot $rows using 1:5:4:8:7 with candlesticks lc 3 whiskerbars, $rows using 1:6:6:6:6 with "
      "candlesticks "
      "lc -1 lw 2, for [c in '3 9'] $rows using 1:int(c) with points pt 2 ps 0.5 lc 3, for [c in '2 10'] "
      "$rows using 1:int(c) with points pt 7 ps 0.4 lc 7\n",
      log.title, title, rows, tics);
}

/// Schemes side by side, as shares of the first one's losses.
std::string scheme_commands(log_file const& log) {
  std::string rows;
  json const& base = log.runs.front().summary;
  for (run const& r : log.runs) {
    if (r.summary.is_null()) continue;
    auto const share = [&](char const* key) {
      return 100.0 * r.summary.at(key).get<double>() / base.at(key).get<double>();
    };
    std::string name = r.setting;
    if (auto const at = name.find(", "); at != std::string::npos) name.replace(at, 2, "\\n");
    rows += fmt::format("\"{}\" {} {} \"{}\"\n", name, share("largest_loss"), share("loss"),
                        r.summary.at("perplexity").is_null()
                            ? ""
                            : fmt::format("{:.4f}", r.summary.at("perplexity").get<double>()));
  }
  return fmt::format(
      "set title 'losses, % of the first; perplexity above'\n$rows << EOD\n{}EOD\nset style data histogram\n"
      "set style histogram clustered gap 1\nset style fill solid 0.6\nset yrange [0:*]\nset offsets 0, 0, "
      "15, 0\n"
      "set grid y\nset bmargin 3.5\nset key top right\nplot $rows using 2:xtic(1) title 'largest loss' lc 7, "
      "'' using 3 title "
      "'sum of losses' lc 3, '' using 0:($2 > $3 ? $2 : $3):4 with labels offset 0, 0.8 notitle\n",
      rows);
}

struct arguments {
  fs::path log;
  fs::path output;
};

std::optional<arguments> parse(int argc, char** argv) {
  arguments args;
  CLI::App app(
      "Draws what quantize_model --log or compare --log has written, as PREFIX-loss, PREFIX-weights,\n"
      "PREFIX-inputs and, for compare, PREFIX-schemes, each .png and .svg. Needs gnuplot.\n",
      "plot");
  app.get_formatter()->column_width(30);
  app.add_option("LOG", args.log, "JSON lines")->required()->type_name("");
  app.add_option("PREFIX", args.output, "Where pictures go and how their names begin")
      ->required()
      ->type_name("");
  if (!lm::parse_options(app, argc, argv)) return std::nullopt;
  return args;
}

void draw_all(arguments const& args) {
  log_file const log = read_log(args.log);
  auto const name = [&](char const* what) { return fs::path(args.output.string() + what); };
  draw(name("-loss"), 800, 480, loss_commands(log));
  draw(name("-weights"), 1000, 480, quantile_commands(log, "weight_quantiles", "weights"));
  draw(name("-inputs"), 1000, 480, quantile_commands(log, "input_quantiles", "inputs"));
  if (log.runs.size() > 1) draw(name("-schemes"), 800, 480, scheme_commands(log));
}

}  // namespace

/// 0: done; 2: something in the arguments or files is wrong, or there is no gnuplot; 1: anything else.
int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // there may be no gnuplot to read what we write
  try {
    if (auto const args = parse(argc, argv)) draw_all(*args);
    return 0;
  } catch (gptq::error const& e) {
    fmt::print(stderr, "plot: {}\n", e.what());
    return 2;
  } catch (std::exception const& e) {
    fmt::print(stderr, "plot: {}\n", e.what());
    return 1;
  }
}
