// The programs, run as a user does: what they write, and what they say when something is wrong.
#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>
#include <sys/wait.h>

#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "files.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using nlohmann::json;
using test::contains;
using test::scratch;
using test::small_config;
using test::write_file;
using test::write_model;

struct result {
  int status;
  std::string errors;
};

/// Runs a shell command and collects what it writes to stderr; stdout goes to `output`. $bin is where the
/// programs are.
result run_command(std::string const& text, fs::path const& output = "/dev/null") {
  std::string const command =
      "bin='" GPTQ_MODEL_PROGRAMS "'; { " + text + "; } 2>&1 >'" + output.string() + "'";
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  result r{};
  char buffer[256];
  while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) r.errors += buffer;
  int const status = ::pclose(pipe);
  r.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return r;
}

result run_program(std::string const& arguments, fs::path const& output = "/dev/null") {
  return run_command("\"$bin/quantize_model\" " + arguments, output);
}

std::string contents_of(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

TEST_CASE("a signal ends the work between two steps") {
  lm::check_interrupt();
  lm::catch_interrupts();
  std::raise(SIGTERM);
  CHECK_THROWS_AS(lm::check_interrupt(), lm::interrupted);
  CHECK(lm::interrupt_status() == 143);
  lm::detail::interrupt_signal = 0;
  std::signal(SIGINT, SIG_DFL);
}

TEST_CASE("the program") {
  scratch const dir;
  json config = small_config();
  config["vocab_size"] = 256;
  write_model(dir.path, config, dtype::bf16);
  std::string text;
  for (int i = 0; i < 2000; ++i) text += static_cast<char>('a' + i * i % 26);
  write_file(dir.path / "text.txt", text);
  std::string const model = "'" + dir.path.string() + "'";
  std::string const file = "'" + (dir.path / "text.txt").string() + "'";

  SECTION("quantizes, evaluates, generates") {
    auto const r =
        run_program(model + " --calibration " + file + " --evaluation " + file +
                        " --group-size 32 --samples 8 --window 32 --generate abc"
                        " --generate-tokens 5 --observe --topk 2 --held-out 2 --tune model --tune-steps 3"
                        " --log '" +
                        (dir.path / "out.jsonl").string() + "'",
                    dir.path / "out.txt");
    CHECK(r.errors == "");
    REQUIRE(r.status == 0);
    std::ifstream lines(dir.path / "out.jsonl");
    std::vector<json> log;
    for (std::string line; std::getline(lines, line);) log.push_back(json::parse(line));
    REQUIRE(log.size() == 19);  // settings, 14 layers, 2 of them again, tuned, summary
    CHECK(log[0].at("event") == "settings");
    CHECK(log[14].at("name") == "model.layers.1.mlp.down_proj");
    CHECK(log[14].at("shape") == json::array({32, 48}));
    CHECK(log[14].at("int8_snr_db").get<double>() < log[14].at("snr_db").get<double>() + 0.1);
    CHECK(log[15].at("attempts").size() == 2);
    CHECK(log[15].at("attempts")[1].at("bits") == 8);
    CHECK(log[17].at("event") == "tuned");
    CHECK(log[17].at("steps") == 3);
    CHECK(log[17].at("after").get<double>() <= log[17].at("before").get<double>());
    json const& out = log.back();
    CHECK(out.at("float32_perplexity").get<double>() > 1.0);
    CHECK(out.at("perplexity").get<double>() ==
          Approx(out.at("float32_perplexity").get<double>()).epsilon(0.2));
    std::ifstream in(dir.path / "out.txt");
    std::string const printed((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    for (auto const* const part : {"model.layers.0.self_attn.k_proj", "32 x 48", "the worst layers again",
                                   "> 8 bits, groups of 32", "tuned", "perplexity", "quantized    abc"}) {
      CHECK(contains(printed, part));
    }
  }
  SECTION("prints no number where a layer has no signal") {
    std::vector<std::byte> const zeros(48 * 32 * 2);
    auto const weights = dir.path / "model.safetensors";
    {
      gptq::checkpoint::safetensors_file const mapped(weights);
      auto tensors = mapped.tensors();
      for (auto& [name, tensor] : tensors) {
        if (!contains(name, "layers.0.self_attn.k_proj") && !contains(name, "layers.1.mlp")) continue;
        tensor.bytes = std::span(zeros).first(tensor.bytes.size());
      }
      write_safetensors(dir.path / "changed", tensors);
    }
    fs::rename(dir.path / "changed", weights);
    auto const log = dir.path / "out.jsonl", printed = dir.path / "out.txt";
    auto const r = run_program(model + " --calibration " + file +
                                   " --group-size 32 --samples 8 --window 32 --observe --topk 14 --log '" +
                                   log.string() + "'",
                               printed);
    CHECK(r.errors == "");
    CHECK(r.status == 0);
    auto const from = [](std::string const& all, char const* mark) { return all.substr(all.find(mark)); };
    std::string const table = from(contents_of(printed), "linear layer");
    CHECK_FALSE(contains(table, "nan"));
    CHECK_FALSE(contains(from(contents_of(log), "k_proj"), "nan"));
    std::istringstream lines(table);
    std::string line;
    while (std::getline(lines, line) && !contains(line, "layers.0.self_attn.k_proj")) continue;
    std::vector<std::string> cells;
    std::istringstream words(line);
    for (std::string word; words >> word;) cells.push_back(word);
    REQUIRE(cells.size() == 10);  // name, out x in, loss, relative error, SNR, int8, damping, seconds
    CHECK(cells[5] == "-");
    CHECK(cells[6] == "-");
    CHECK(cells[7] == "-");
  }
  SECTION("takes and makes paths that are no UTF-8") {
    auto const odd = dir.path / "m\xff\xfe";
    config["intermediate_size"] = 64;  // whole blocks of GGUF
    fs::create_directory(odd);
    write_model(odd, config, dtype::bf16);
    std::string const text_file = "'" + (odd / "t\xff.txt").string() + "'";
    fs::copy(dir.path / "text.txt", odd / "t\xff.txt");
    for (std::string const format : {"packed", "gguf", "gptq"}) {
      auto const out = dir.path / ("out\xff" + format);
      auto const r =
          run_program("'" + odd.string() + "' --calibration " + text_file +
                      " --scheme fixed_zero --group-size 32 --window 32 --samples 2 --format " + format +
                      " --output '" + out.string() + "' --log '" + out.string() + ".jsonl'");
      CHECK(r.errors == "");
      CHECK(r.status == 0);
      CHECK(fs::exists(out / (format == "gguf" ? "model.gguf" : "config.json")));
      if (format == "gguf") continue;
      CHECK(run_command("\"$bin/generate\" '" + out.string() + "' abc --tokens 2").status == 0);
      auto const again = run_program("'" + out.string() + "' --calibration " + text_file);
      CHECK(again.status == 2);
      CHECK(contains(again.errors, "quantized already"));
    }
  }
  SECTION("has help") {
    for (std::string const program : {"quantize_model", "compare", "generate", "perplexity", "plot"}) {
      auto const r = run_command("\"$bin/" + program + "\" --help");
      CHECK(r.status == 0);
      CHECK(r.errors == "");
      CHECK(run_command("\"$bin/" + program + "\" --nonsense").status == 2);
    }
  }
  SECTION("writes what the other programs read") {
    auto const packed = dir.path / "packed";
    std::string const out = "'" + packed.string() + "'";
    std::string const quantize =
        model + " --calibration " + file + " --group-size 32 --window 32 --samples 8";
    std::string const grids = " --quant-directory '" + (dir.path / "grids").string() + "'";
    REQUIRE(run_program(quantize + " --output " + out + grids).status == 0);
    CHECK(contains(run_program(quantize + " --output " + out).errors, "holds a model already"));
    CHECK(contains(run_program(quantize + grids).errors, "holds such an export already"));
    CHECK(contains(run_program(out + " --calibration " + file).errors, "quantized already"));
    auto const printed = dir.path / "out.txt";
    CHECK(run_command("\"$bin/perplexity\" " + out + " " + file + " --window 32", printed).status == 0);
    for (char const* const name : {"float32", "int15", "int8"}) CHECK(contains(contents_of(printed), name));
    std::string const rounded = " " + file + " --window 32" + grids;
    CHECK(run_command("\"$bin/perplexity\" " + model + rounded, printed).status == 0);
    CHECK(contains(contents_of(printed), "float32"));
    CHECK(contains(run_command("\"$bin/perplexity\" " + out + rounded).errors, "is quantized already"));
    CHECK(run_command("\"$bin/generate\" " + out + " abc --tokens 4 --beside " + model, printed).status == 0);
    CHECK(contains(contents_of(printed), "int8: prompt of 3 tokens"));
    CHECK(contains(contents_of(printed), "float32: prompt of 3 tokens"));
    write_file(dir.path / "ids.i32", std::string("a\0\0\0b\0\0\0", 8));
    CHECK(run_command("\"$bin/generate\" " + out + " '" + (dir.path / "ids.i32").string() + "' --tokens 1",
                      printed)
              .status == 0);
    CHECK(contents_of(printed).starts_with("97 98 "));
    auto const r = run_command("\"$bin/generate\" " + model + " abc --tokens 4 --arithmetic int8");
    CHECK(r.status == 2);
    CHECK(contains(r.errors, "is not quantized"));
  }
  SECTION("compares") {
    auto const printed = dir.path / "out.txt";
    std::string const compare = "\"$bin/compare\" " + model + " --calibration " + file +
                                " --group-size 32 --window 32 --samples 8 --topk 2 ";
    REQUIRE(run_command(compare + "--evaluation " + file, printed).status == 0);
    for (char const* const row : {"float32", "asymmetric, 0..15", "symmetric, observed", "half step"}) {
      CHECK(contains(contents_of(printed), row));
    }
    auto const log = dir.path / "log.jsonl";
    REQUIRE(run_command(compare + "--log '" + log.string() + "'").status == 0);
    auto const plot = [&] {
      return run_command("\"$bin/plot\" '" + log.string() + "' '" + (dir.path / "p").string() + "'");
    };
    if (run_command("gnuplot --version").status == 0) {
      CHECK(plot().errors == "");
      for (char const* const name : {"p-loss", "p-weights", "p-inputs", "p-schemes"}) {
        CHECK(fs::file_size(dir.path / (name + std::string(".png"))) > 1000);
        CHECK(contains(contents_of(dir.path / (name + std::string(".svg"))), "<svg"));
      }
    } else {
      CHECK(plot().status == 2);
    }
    write_file(log, "{\"event\": \"layer\"}\nnonsense\n");
    CHECK(plot().status == 2);
    CHECK(contains(plot().errors, "line 2"));
    auto const published = dir.path / "published.json";
    auto const check = [&](double loss) {
      write_file(published, json::array({{{"method", "gptq asym act-order"},
                                          {"bits", 4},
                                          {"group_size", 32},
                                          {"loss_max", loss},
                                          {"loss_sum", loss}}})
                                .dump());
      return run_command(compare + "--quality reference --true-sequential --published '" +
                         published.string() + "'")
          .status;
    };
    CHECK(check(1e9) == 3);
  }
  SECTION("leaves nothing half when it is cut off") {
    auto const out = dir.path / "packed";
    std::string const quantize = model + " --calibration " + file +
                                 " --group-size 32 --window 32 --samples 8 --output '" + out.string() + "'";
    auto const parts = [&] {
      auto const all = fs::recursive_directory_iterator(dir.path);
      return std::count_if(begin(all), end(all), [](auto const& entry) {
        return contains(entry.path().filename().string(), ".part-");
      });
    };
    // The disk is full: no file may be longer than 8 KiB.
    auto full = run_command("trap '' XFSZ; ulimit -f 8; \"$bin/quantize_model\" " + quantize);
    CHECK(full.status == 2);
    CHECK(contains(full.errors, "cannot be written: "));
    CHECK(std::count(full.errors.begin(), full.errors.end(), '\n') == 1);
    CHECK(parts() == 0);
    CHECK_FALSE(fs::exists(out / "config.json"));
    CHECK(run_program(quantize + " --resume").status == 0);
    CHECK_FALSE(fs::exists(out / "unfinished"));
    full = run_program(model + " --calibration " + file + " --group-size 32 --window 32 --log /dev/full");
    CHECK(full.status == 2);
    CHECK(contains(full.errors, "/dev/full: cannot be written"));

    // Ctrl-C, once it is at it: far more work than that takes.
    fs::remove_all(out);
    std::string long_text;
    while (long_text.size() < 700'000) long_text += text;
    write_file(dir.path / "text.txt", long_text);
    std::string const much = model + " --calibration " + file +
                             " --group-size 32 --window 32 --samples 20000 --output '" + out.string() + "'";
    std::string const begun = "for i in $(seq 600); do test -e '" + out.string() +
                              "/unfinished/settings.json' && break; sleep 0.1; done; ";
    auto const r =
        run_command("\"$bin/quantize_model\" " + much + " & pid=$!; " + begun + "kill -INT $pid; wait $pid");
    CHECK(r.status == 130);
    CHECK(contains(r.errors, "interrupted"));
    CHECK(std::count(r.errors.begin(), r.errors.end(), '\n') == 1);
    CHECK(parts() == 0);
    CHECK_FALSE(fs::exists(out / "config.json"));
    CHECK_FALSE(fs::exists(out / "unfinished" / "lock"));

    // While one is at it another does not begin, whether it may resume or not.
    fs::remove_all(out);
    auto const second =
        run_command("\"$bin/quantize_model\" " + much + " 2>/dev/null & first=$!; " + begun +
                    "\"$bin/quantize_model\" " + much + "; \"$bin/quantize_model\" " + much +
                    " --resume; status=$?; kill -9 $first; wait $first 2>/dev/null; exit $status");
    CHECK(second.status == 2);
    std::string const busy = (out / "unfinished").string() + ": another process is writing to it\n";
    CHECK(second.errors == "quantize_model: " + busy + "quantize_model: " + busy);
    CHECK(fs::exists(out / "unfinished" / "lock"));  // killed: the file is there, and nobody has it
    // Both at the same time: one makes the model, and the other says why it does not.
    fs::remove_all(out);
    auto const both =
        run_command("(\"$bin/quantize_model\" " + quantize + "; echo $? >&2) & (\"$bin/quantize_model\" " +
                    quantize + "; echo $? >&2); wait");
    CHECK(contains(both.errors, "0\n"));
    CHECK(contains(both.errors, "2\n"));
    CHECK((contains(both.errors, busy) || contains(both.errors, "holds a model already\n")));
    CHECK(fs::exists(out / "config.json"));
    CHECK_FALSE(fs::exists(out / "unfinished"));
    CHECK(parts() == 0);
  }
  SECTION("is converted") {
    auto const path = [&](char const* name) { return "'" + (dir.path / name).string() + "'"; };
    REQUIRE(run_program(model + " --calibration " + file +
                        " --group-size 32 --window 32 --samples 2 --rtn --output " + path("packed"))
                .status == 0);
    auto const convert = [](std::string const& arguments) {
      return run_command("\"$bin/convert\" " + arguments);
    };
    CHECK(convert(path("packed") + " " + path("awq") + " --format awq").status == 0);
    CHECK(convert(path("awq") + " " + path("gptq") + " --format gptq_v2 --shard-size 20K").status == 0);
    CHECK(fs::exists(dir.path / "gptq" / "model.safetensors.index.json"));
    CHECK_FALSE(fs::exists(dir.path / "gptq" / "quant_config.json"));
    CHECK(convert(path("gptq") + " " + path("again")).status == 0);
    CHECK(contents_of(dir.path / "again" / "model.safetensors") ==
          contents_of(dir.path / "packed" / "model.safetensors"));
    for (auto const& [arguments, message] :
         {std::pair<std::string, std::string>{model + " " + path("x"), "is not quantized"},
          {path("packed") + " " + path("awq"), "holds a model already"},
          {path("packed") + " " + path("x") + " --format gguf", "no whole blocks of 32"},
          {path("packed") + " " + path("x") + " --embeddings f16", "--embeddings is about"},
          {path("packed"), "OUTPUT"}}) {
      auto const r = convert(arguments);
      INFO(arguments << ": " << r.errors);
      CHECK(r.status == 2);
      CHECK(contains(r.errors, message));
      CHECK_FALSE(fs::exists(dir.path / "x" / "config.json"));
    }
  }
  SECTION("ends with one line and status 2 when something is wrong") {
    write_file(dir.path / "short.txt", "abc");
    std::string const good = " --calibration " + file + " --window 32 --group-size 32 ";
    std::vector<std::pair<std::string, std::string>> const cases{
        {"", "MODEL"},
        {model, "--calibration"},
        {"/none" + good, "/none: is not a directory"},
        {model + " --calibration /none", "/none: cannot be opened"},
        {model + " --calibration '" + dir.path.string() + "'", "cannot be opened"},
        {model + good + "--evaluation '" + (dir.path / "short.txt").string() + "'",
         "3 tokens do not fill a window"},
        {model + " --group-size 32 --calibration '" + (dir.path / "short.txt").string() + "'",
         "3 tokens do not fill a window of 64"},
        {model + good + "--resume", "--output"},
        {model + good + "--bits 5", "--bits"},
        {model + " --group-size 48 --calibration " + file, "--group-size"},
        {model + good + "--scheme none", "--scheme"},
        {model + good + "--grid none", "--grid"},
        {model + good + "--scale float64", "--scale"},
        {model + " --window 65 --calibration " + file, "64 positions"},
        {model + " --window 1 --calibration " + file, "--window"},
        {model + good + "--samples 0", "--samples"},
        {model + good + "--generate abc --generate-tokens 62", "64 positions"},
        {model + good + "--log /none/x", "/none/x: cannot be written"},
        {model + good + "--extra-bytes 4K", "--observe"},
        {model + good + "--observe --topk 0", "--topk"},
        {model + good + "--format gptq", "needs an --output"},
        {model + good + "--format gptq --output x --scheme half_step", "half_step does not fit"},
        {model + good + "--format gptq --output x --scale float32", "float16 scales"},
        {model + good + "--format gguf --output x --scheme fixed_zero --act-order --quality plain",
         "--act-order needs --static-groups"},
        {model + good + "--format gguf --output x --scheme fixed_zero --act-order --held-out 2",
         "--act-order needs --static-groups"},
        {model + good + "--format awq --output x --scheme fixed_zero --bits 8",
         "AWQ checkpoints have 4 bits, not 8"},
        {model + good + "--format awq --output x --act-order --quality plain",
         "AWQ keeps columns in their order"},
        {model + good + "--format compressed-tensors --output x --observe",
         "--observe makes layers of other"},
        {model + good + "--format compressed-tensors --output x --scheme half_step",
         "half_step does not fit"},
        {model + good + "--shard-size 1G", "--shard-size is about --format gptq"},
        {model + good + "--quant-directory " + file, "text.txt: cannot be made"},
        {model + good + "--observe --extra-bytes some", "--extra-bytes"},
        {model + good + "--quality reference --scale float16", "--quality reference"},
        {model + good + "--quality reference --device cuda", "--quality reference is the CPU's"},
        {model + good + "--tune model", "--tune needs --held-out"},
        {model + good + "--tune-steps 3", "are about --tune"},
        {model + good + "--tune layer --held-out 2 --tune-steps 3 --tune-minutes 1", "two budgets"},
        {model + good + "--tune none --held-out 2", "--tune"},
        {model + good + "--nonsense", "--nonsense"},
    };
    for (auto const& [arguments, message] : cases) {
      auto const r = run_program(arguments);
      INFO(arguments << ": " << r.errors);
      CHECK(r.status == 2);
      CHECK(contains(r.errors, message));
      CHECK(std::count(r.errors.begin(), r.errors.end(), '\n') == 1);
    }
    fs::resize_file(dir.path / "model.safetensors", fs::file_size(dir.path / "model.safetensors") - 100);
    auto const truncated = run_program(model + good);
    CHECK(truncated.status == 2);
    CHECK(contains(truncated.errors, "model.safetensors"));
    CHECK(std::count(truncated.errors.begin(), truncated.errors.end(), '\n') == 1);
    config["model_type"] = "gpt2";
    write_file(dir.path / "config.json", config.dump());
    auto const r = run_program(model + good);
    CHECK(r.status == 2);
    CHECK(contains(r.errors, "gpt2"));
    CHECK(contains(r.errors, "llama"));  // among those that there are
    CHECK(std::count(r.errors.begin(), r.errors.end(), '\n') == 1);
  }
}

#if defined(GPTQ_MPIEXEC)
TEST_CASE("several ranks of the program") {
  // As root, with more ranks than cores: what a container needs, and no one else minds.
  std::string const mpiexec =
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 "
      "OMPI_MCA_hwloc_base_binding_policy=none '" GPTQ_MPIEXEC "' ";
  scratch const dir;
  std::string const data = GPTQ_SOURCE_DIR "/examples/data/kjv-bytes";
  auto const with_samples = [&](char const* samples) {
    return "\"$bin/quantize_model\" '" + data + "' --calibration '" + data + "/calibration.txt' --samples " +
           samples +
           " --window 64 --quality plain --group-size 32 --threads 1 --no-float-baseline "
           "--deterministic-reduction ";
  };
  std::string const program = with_samples("6");
  auto const into = [&](char const* name) { return " --output '" + (dir.path / name).string() + "' "; };
  auto const weights = [&](char const* name) { return contents_of(dir.path / name / "model.safetensors"); };
  auto const alone = run_command(program + into("one"));
  REQUIRE(alone.errors == "");
  REQUIRE(alone.status == 0);

  SECTION("make the same bytes, and say who does what") {
    auto const printed = dir.path / "printed.txt";
    auto const two = run_command(mpiexec + "-n 2 " + program + into("two") + " --evaluation '" + data +
                                     "/evaluation.txt' --eval-windows 3",
                                 printed);
    CHECK(two.errors == "");
    CHECK(two.status == 0);
    CHECK(weights("two") == weights("one"));
    std::string const text = contents_of(printed);
    for (auto const* const part : {"ranks        2, 1 thread each", "rank 0 solves", "rank 1 solves",
                                   "model.layers.3.mlp.down_proj", "perplexity"}) {
      CHECK(contains(text, part));
    }
    CHECK(text.find("method") == text.rfind("method"));  // one rank prints
    auto const three = run_command(mpiexec + "-n 3 " + program + into("three"));
    CHECK(three.errors == "");
    CHECK(three.status == 0);
    CHECK(weights("three") == weights("one"));
  }
  SECTION("say once what is wrong") {
    auto const r = run_command(mpiexec + "-n 3 \"$bin/quantize_model\" /nowhere --calibration x");
    CHECK(r.status == 2);
    CHECK(contains(r.errors, "/nowhere"));
    CHECK(r.errors.find("quantize_model: ") == r.errors.rfind("quantize_model: "));
  }
  SECTION("need the same files") {
    auto const r = run_command(mpiexec + "-n 1 " + program + " : -n 1 " + with_samples("5"));
    CHECK(r.status == 2);
    CHECK(contains(r.errors, "rank 1 has "));
  }
  SECTION("end when one dies, and others go on where it was") {
    std::string const pid = "'" + (dir.path / "pid").string() + "'";
    std::string const first_layer = (dir.path / "killed/unfinished/layer-00000.safetensors").string();
    auto const r =
        run_command("(until [ -e '" + first_layer + "' ]; do sleep 0.01; done; kill -9 $(cat " + pid +
                    ")) & " + mpiexec + "-n 1 " + program + into("killed") + " : -n 1 sh -c 'echo $$ > " +
                    (dir.path / "pid").string() + "; exec \"$0\" \"$@\"' " + program + into("killed"));
    CHECK(r.status != 0);
    CHECK(contains(r.errors, "signal 9"));
    CHECK(fs::exists(first_layer));
    CHECK_FALSE(fs::exists(dir.path / "killed/config.json"));
    auto const resumed = run_command(mpiexec + "-n 3 " + program + into("killed") + " --resume");
    CHECK(resumed.errors == "");
    CHECK(resumed.status == 0);
    CHECK(weights("killed") == weights("one"));
  }
}
#endif
