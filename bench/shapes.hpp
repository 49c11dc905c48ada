// The matrices of a layer of real models, by the model's name.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include <gptq/config.hpp>

namespace bench {

struct shape {
  gptq::index_t out;
  gptq::index_t in;
};

struct model_shapes {
  std::string_view model;
  std::vector<shape> shapes;
};

/// As engines multiply them: gate and up stacked; q or o, k or v, gate and up, down; of a mixture the
/// experts' gate and up, down, and q.
inline std::vector<model_shapes> const& all_models() {
  static std::vector<model_shapes> const models = {
      {"llama3-8b", {{4096, 4096}, {1024, 4096}, {28672, 4096}, {4096, 14336}}},
      {"llama3-70b", {{8192, 8192}, {1024, 8192}, {57344, 8192}, {8192, 28672}}},
      {"qwen2.5-7b", {{3584, 3584}, {37888, 3584}, {3584, 18944}}},
      {"qwen3-30b-a3b", {{1536, 2048}, {2048, 768}, {4096, 2048}}},
  };
  return models;
}

/// Those of one model; empty where there is none of the name.
inline std::vector<shape> shapes_of_model(std::string_view name) {
  for (auto const& [model, shapes] : all_models()) {
    if (model == name) return shapes;
  }
  return {};
}

/// The same, or a message and the end of the program.
inline std::vector<shape> required_shapes(char const* model) {
  auto shapes = shapes_of_model(model);
  if (!shapes.empty()) return shapes;
  std::fprintf(stderr, "no model %s; there are:", model);
  for (auto const& known : all_models()) std::fprintf(stderr, " %s", known.model.data());
  std::fprintf(stderr, "\n");
  std::exit(2);
}

/// The shapes of each `--model name` among a program's arguments, which is taken out of them; `otherwise` if
/// there is none.
inline std::vector<shape> take_models(int& argc, char** argv, std::vector<shape> const& otherwise) {
  std::vector<shape> shapes;
  int left = 1;
  for (int i = 1; i < argc; ++i) {
    if (i + 1 < argc && std::strcmp(argv[i], "--model") == 0) {
      auto const more = required_shapes(argv[++i]);
      shapes.insert(shapes.end(), more.begin(), more.end());
    } else {
      argv[left++] = argv[i];
    }
  }
  argc = left;
  return shapes.empty() ? otherwise : shapes;
}

}  // namespace bench
