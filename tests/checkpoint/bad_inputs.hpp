// Bad inputs and what a user is told of them: bad_inputs.md lists both, and is held against what is thrown.
#pragma once

#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support.hpp"

namespace test {

struct bad_input {
  std::string input;  ///< in words
  std::function<void()> read;
};

/// Each input ends in the gptq::error that its line of the section gives, and the section has no other lines.
/// @param directory  where files are, written as `dir`
inline void check_bad_inputs(std::string const& section, std::vector<bad_input> const& inputs,
                             std::string const& directory = {}) {
  std::vector<std::string> expected;
  std::ifstream file(std::string(GPTQ_SOURCE_DIR) + "/tests/checkpoint/bad_inputs.md");
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("## ")) inside = line == "## " + section;
    if (inside && line.starts_with("| ")) expected.push_back(line);
  }

  std::vector<std::string> actual{"| input | message |"};
  for (auto const& [input, read] : inputs) {
    INFO(input);
    std::string message = error_of(read);
    CHECK(!message.empty());
    for (auto at = message.find(directory); !directory.empty() && at != message.npos;
         at = message.find(directory)) {
      message.replace(at, directory.size(), "dir");
    }
    // The rest is the JSON library's, and another version's is another.
    constexpr std::string_view parser = ": not valid JSON: ";
    if (auto const at = message.find(parser); at != message.npos) {
      message.replace(at + parser.size(), message.npos, "...");
    }
    actual.push_back("| " + input + " | `" + message + "` |");
  }
  if (actual == expected) return;
  std::cerr << "tests/checkpoint/bad_inputs.md, section \"" << section << "\" as it would be true:\n";
  for (auto const& line : actual) std::cerr << line << '\n';
  FAIL_CHECK("tests/checkpoint/bad_inputs.md says something else of " << section);
}

}  // namespace test
