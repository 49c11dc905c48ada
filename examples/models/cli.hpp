// What the command lines of all programs have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <gptq/error.hpp>

namespace lm {

inline void add_threads_option(CLI::App& app, int& threads) {
  app.add_option("--threads", threads, "Threads to use [one a core]")
      ->check(CLI::Range(1, 4096).description(""))
      ->type_name("N");
}

/// False after --help, which it prints. Throws gptq::error when an option is wrong.
inline bool parse_options(CLI::App& app, int argc, char** argv) {
  app.set_help_flag("-h,--help", "Print this and exit");
  try {
    app.parse(argc, argv);
    return true;
  } catch (CLI::CallForHelp const&) {
    fmt::print("{}", app.help());
    return false;
  } catch (CLI::ParseError const& e) {
    throw gptq::error(fmt::format("{} (--help lists the options)", e.what()));
  }
}

}  // namespace lm
