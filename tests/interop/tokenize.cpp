// For tokenizers.py: the tokens of texts by a directory's tokenizer.json, their text, and how long that took.
//
//     tokenize DIRECTORY TEXTS RESULTS [REPETITIONS]
//
// TEXTS is a JSON array of strings. RESULTS becomes {"ids": the tokens of each text with those around it,
// "decoded": the text of each of these rows, special tokens included, "seconds": of the processor, the
// fastest repetition of encoding all of them}.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tokenizer/tokenizer.hpp"

int main(int argc, char** argv) try {
  if (argc < 4) return 2;
  auto const words = lm::tokenizers::tokenizer::load(argv[1]);
  auto const texts = nlohmann::json::parse(std::ifstream(argv[2])).get<std::vector<std::string>>();

  std::vector<std::vector<lm::tokenizers::token_id>> ids(texts.size());
  double fastest = std::numeric_limits<double>::infinity();
  for (int repetition = argc > 4 ? std::stoi(argv[4]) : 1; repetition > 0; --repetition) {
    std::clock_t const start = std::clock();
    for (std::size_t i = 0; i < texts.size(); ++i) ids[i] = words.encode(texts[i]);
    fastest = std::min(fastest, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }

  std::vector<std::string> decoded;
  for (auto const& row : ids) {
    auto stream = words.start_decoding();
    std::string text;
    for (auto const id : row) text += stream.add(id);
    text += stream.finish();
    if (text != words.decode(row)) throw std::runtime_error("a stream and decode() differ");
    decoded.push_back(text);
  }
  // With its checks of UTF-8: a part that is none would throw.
  std::ofstream(argv[3]) << nlohmann::json{{"ids", ids}, {"decoded", decoded}, {"seconds", fastest}}.dump();
  return 0;
} catch (std::exception const& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
