// Files while everything around them fails: at every system call the disk is full or broken, a signal comes or the
// program is killed, and what is in the directory is one whole file, the old one or the new one.
#include "files.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>

#include <sys/wait.h>

#include <gptq/checkpoint/files.hpp>
#include <gptq/checkpoint/gguf.hpp>
#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "faults/faults.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using namespace gptq::checkpoint;
using test::contains;
using test::error_of;
using test::write_file;

std::string contents(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::set<std::string> names(fs::path const& directory) {
  std::set<std::string> all;
  for (auto const& entry : fs::directory_iterator(directory)) all.insert(entry.path().filename().string());
  return all;
}

std::ptrdiff_t open_files() {
  return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
}

template <class T>
std::span<std::byte const> bytes_of(std::vector<T> const& values) {
  return std::as_bytes(std::span(values));
}

/// A way to use files, and its name for messages.
struct way {
  std::string name;
  std::function<void(fs::path const&)> use;
};

std::vector<way> writers() {
  static std::vector<float> const values(1000, 1.5F);
  return {{"new_file",
           [](fs::path const& path) {
             new_file out(path);
             out.write("the first half, ");
             out.write("");
             out.write("and the second");
             out.finish();
           }},
          {"safetensors",
           [](fs::path const& path) {
             write_safetensors(path, {{"a", {dtype::f32, {10, 100}, bytes_of(values)}},
                                      {"empty", {dtype::f16, {0}, {}}},
                                      {"b", {dtype::f32, {}, bytes_of(values).first(4)}}});
           }},
          {"gguf", [](fs::path const& path) {
             gguf_metadata metadata;
             metadata.add("key", "value");
             write_gguf(path, metadata,
                        {{"a", {ggml_type::f32, {1000}, bytes_of(values)}},
                         {"b", {ggml_type::f32, {3}, bytes_of(values).first(12)}}});
           }}};
}

std::string const old_text = "what was there before";

/// Whether the file has `text`, which is not the same as that it begins with it.
void check_whole(fs::path const& path, std::string const& new_text, bool may_be_old, bool may_be_new) {
  std::string const text = contents(path);
  CHECK(((may_be_old && text == old_text) || (may_be_new && text == new_text)));
}

/// The bytes that a writer makes when nothing fails, and the calls that it takes.
struct undisturbed {
  std::string text;
  std::vector<std::string> calls;

  undisturbed(way const& w, test::scratch const& dir) {
    faults::start({.directory = dir.path.string()});
    w.use(dir.path / "x");
    calls = faults::stop();
    text = contents(dir.path / "x");
    fs::remove(dir.path / "x");
  }
};

}  // namespace

TEST_CASE("the system calls of a write", "[files]") {
  test::scratch const dir("files_test");
  for (way const& w : writers()) {
    INFO(w.name);
    auto const calls = undisturbed(w, dir).calls;
    auto const count = [&](char const* name) { return std::count(calls.begin(), calls.end(), name); };
    CHECK(count("open") == 2);  // the file and its directory
    CHECK(count("write") >= 2);
    CHECK(count("fsync") == 2);
    CHECK(count("rename") == 1);
    CHECK(count("close") == 2);
    // The name comes when the bytes are on the disk, and the directory after it.
    auto const position = [&](char const* name, auto from) { return std::find(from, calls.end(), name); };
    auto const synced = position("fsync", calls.begin());
    CHECK(position("write", synced) == calls.end());
    auto const renamed = position("rename", synced);
    CHECK(position("fsync", renamed) != calls.end());
  }
}

TEST_CASE("a call that fails leaves the old file or the new one, and nothing else", "[files]") {
  test::scratch const dir("files_test");
  auto const path = dir.path / "x";
  for (way const& w : writers()) {
    undisturbed const expected(w, dir);
    for (int const error : {ENOSPC, EIO, EACCES, EMFILE}) {
      for (bool const and_all_later : {false, true}) {
        for (std::size_t at = 0; at < expected.calls.size(); ++at) {
          INFO(w.name << ", " << expected.calls[at] << " (call " << at << "), " << std::strerror(error));
          write_file(path, old_text);
          auto const before = open_files();
          faults::start({.directory = dir.path.string(),
                         .at = static_cast<int>(at),
                         .what = faults::kind::error,
                         .error = error,
                         .and_all_later = and_all_later});
          auto const message = error_of([&] { w.use(path); });
          faults::stop();
          bool const is_closing = expected.calls[at] == "close";
          bool const is_renamed =
              std::find(expected.calls.begin(), expected.calls.begin() + static_cast<std::ptrdiff_t>(at),
                        "rename") != expected.calls.begin() + static_cast<std::ptrdiff_t>(at);
          if (is_closing && !and_all_later) CHECK(message.empty());
          if (!is_renamed) CHECK(message == path.string() + ": cannot be written: " + std::strerror(error));
          check_whole(path, expected.text, !message.empty() && !is_renamed, is_renamed);
          CHECK(names(dir.path) == std::set<std::string>{"x"});
          CHECK(open_files() == before);
        }
      }
    }
  }
}

TEST_CASE("a directory that cannot be read takes files, and one that breaks says so", "[files]") {
  test::scratch const dir("files_test");
  auto const path = dir.path / "x";
  way const w = writers().front();
  auto const calls = undisturbed(w, dir).calls;
  auto const renamed = std::find(calls.begin(), calls.end(), "rename") - calls.begin();
  auto const with = [&](char const* call, int error) {
    auto const at = std::find(calls.begin() + renamed, calls.end(), call) - calls.begin();
    faults::start({.directory = dir.path.string(),
                   .at = static_cast<int>(at),
                   .what = faults::kind::error,
                   .error = error});
    auto const message = error_of([&] { w.use(path); });
    faults::stop();
    return message;
  };
  CHECK(with("open", EACCES).empty());
  CHECK(contains(with("open", EMFILE), "cannot be written: Too many open files"));
  CHECK(with("fsync", EINVAL).empty());
  CHECK(contains(with("fsync", EIO), "cannot be written: Input/output error"));
}

TEST_CASE("signals and short writes change nothing", "[files]") {
  test::scratch const dir("files_test");
  auto const path = dir.path / "x";
  for (way const& w : writers()) {
    undisturbed const expected(w, dir);
    for (std::size_t at = 0; at < expected.calls.size(); ++at) {
      auto const& call = expected.calls[at];
      INFO(w.name << ", " << call << " (call " << at << ")");
      for (faults::kind const what : {faults::kind::error, faults::kind::short_write}) {
        if (what == faults::kind::error && (call == "rename" || call == "close"))
          continue;  // not interrupted
        write_file(path, old_text);
        faults::start(
            {.directory = dir.path.string(), .at = static_cast<int>(at), .what = what, .error = EINTR});
        CHECK(error_of([&] { w.use(path); }).empty());
        faults::stop();
        CHECK(contents(path) == expected.text);
      }
    }
    // Every write of it short, so that each takes many.
    write_file(path, old_text);
    faults::start({.directory = dir.path.string(),
                   .at = 0,
                   .what = faults::kind::short_write,
                   .and_all_later = true,
                   .only_call = "write"});
    w.use(path);
    CHECK(std::ssize(faults::stop()) > std::count(expected.calls.begin(), expected.calls.end(), "write"));
    CHECK(contents(path) == expected.text);
  }
}

TEST_CASE("killed at any call, a program leaves a whole file", "[files]") {
  test::scratch const dir("files_test");
  auto const path = dir.path / "x";
  for (way const& w : writers()) {
    undisturbed const expected(w, dir);
    for (std::size_t at = 0; at < expected.calls.size(); ++at) {
      auto const& call = expected.calls[at];
      for (faults::kind const what : {faults::kind::kill, faults::kind::kill_in_write}) {
        if (what == faults::kind::kill_in_write && call != "write") continue;
        INFO(w.name << ", " << call << " (call " << at << ")");
        write_file(path, old_text);
        pid_t const child = ::fork();
        if (child == 0) {
          faults::start({.directory = dir.path.string(), .at = static_cast<int>(at), .what = what});
          w.use(path);
          ::_exit(0);
        }
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFSIGNALED(status));
        REQUIRE(WTERMSIG(status) == SIGKILL);
        bool const is_renamed =
            std::find(expected.calls.begin(), expected.calls.begin() + static_cast<std::ptrdiff_t>(at),
                      "rename") != expected.calls.begin() + static_cast<std::ptrdiff_t>(at);
        check_whole(path, expected.text, !is_renamed, is_renamed);
        // What was on its way is named for the process; whoever comes next is not in its way.
        for (auto const& name : names(dir.path)) {
          CHECK((name == "x" || name == "x.part-" + std::to_string(child)));
          if (name != "x") fs::remove(dir.path / name);
        }
      }
    }
  }
}

TEST_CASE("two processes that write one file leave it whole", "[files]") {
  test::scratch const dir("files_test");
  auto const path = dir.path / "x";
  {
    new_file const out(path);
    CHECK(names(dir.path) == std::set<std::string>{"x.part-" + std::to_string(::getpid())});
  }
  CHECK(names(dir.path).empty());
  auto const write = [&](char letter) {
    for (int i = 0; i < 50; ++i) {
      new_file out(path);
      for (int piece = 0; piece < 20; ++piece) out.write(std::string(500, letter));
      out.finish();
    }
  };
  pid_t const child = ::fork();
  if (child == 0) {
    write('b');
    ::_exit(0);
  }
  write('a');
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  auto const text = contents(path);
  CHECK((text == std::string(10'000, 'a') || text == std::string(10'000, 'b')));
  CHECK(names(dir.path) == std::set<std::string>{"x"});
}

TEST_CASE("a file that cannot be read is an error that says why, and is closed", "[files]") {
  test::scratch const dir("files_test");
  std::vector<float> const values{1.0F, 2.0F};
  auto const model = dir.path / "model-1.safetensors";
  write_safetensors(model, {{"a", {dtype::f32, {2}, bytes_of(values)}}});
  write_safetensors(dir.path / "model-2.safetensors", {{"b", {dtype::f32, {2}, bytes_of(values)}}});
  write_file(dir.path / "model.safetensors.index.json",
             R"({"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})");
  auto const gguf = dir.path / "x.gguf";
  write_gguf(gguf, {}, {{"a", {ggml_type::f32, {2}, bytes_of(values)}}});
  std::vector<way> const readers{
      {"mapped_file", [](fs::path const& directory) { mapped_file(directory / "model-1.safetensors"); }},
      {"safetensors_file",
       [](fs::path const& directory) { safetensors_file(directory / "model-1.safetensors"); }},
      {"safetensors_directory", [](fs::path const& directory) { safetensors_directory{directory}; }},
      {"gguf_file", [](fs::path const& directory) { gguf_file{directory / "x.gguf"}; }}};
  for (way const& reader : readers) {
    faults::start({.directory = dir.path.string()});
    reader.use(dir.path);
    auto const calls = faults::stop();
    auto const before = open_files();
    CHECK(calls.size() % 4 == 0);  // open, fstat, mmap, close
    for (std::size_t at = 0; at < calls.size(); ++at) {
      INFO(reader.name << ", " << calls[at] << " (call " << at << ")");
      faults::start({.directory = dir.path.string(),
                     .at = static_cast<int>(at),
                     .what = faults::kind::error,
                     .error = EACCES});
      auto const message = error_of([&] { reader.use(dir.path); });
      faults::stop();
      auto const reason = calls[at] == "open"    ? "cannot be opened: Permission denied"
                          : calls[at] == "fstat" ? "cannot be read: Permission denied"
                                                 : "cannot be mapped: Permission denied";
      if (calls[at] == "close") {
        CHECK(message.empty());
      } else {
        CHECK(contains(message, reason));
        CHECK(contains(message, dir.path.string() + "/"));
      }
      CHECK(open_files() == before);
    }
    // A signal while it is opened.
    faults::start({.directory = dir.path.string(),
                   .at = 0,
                   .what = faults::kind::error,
                   .error = EINTR,
                   .only_call = "open"});
    CHECK(error_of([&] { reader.use(dir.path); }).empty());
    faults::stop();
  }
}

TEST_CASE("each shard is opened once", "[files]") {
  test::scratch const dir("files_test");
  std::vector<float> const values{1.0F, 2.0F};
  write_safetensors(dir.path / "one",
                    {{"a", {dtype::f32, {2}, bytes_of(values)}}, {"c", {dtype::f32, {2}, bytes_of(values)}}});
  write_safetensors(dir.path / "two", {{"b", {dtype::f32, {2}, bytes_of(values)}}});
  write_file(dir.path / "model.safetensors.index.json", R"({"weight_map":{"a":"one","b":"two","c":"one"}})");
  faults::start({.directory = dir.path.string(), .only_call = "mmap"});
  safetensors_directory const model(dir.path);
  CHECK(faults::stop().size() == 3);  // the index, and two shards
  CHECK(model.tensors().size() == 3);
}

TEST_CASE("a shard that goes after it was opened is still there, and one that goes before is named",
          "[files]") {
  test::scratch const dir("files_test");
  std::vector<float> const values{1.0F, 2.0F};
  write_safetensors(dir.path / "one", {{"a", {dtype::f32, {2}, bytes_of(values)}}});
  write_file(dir.path / "model.safetensors.index.json", R"({"weight_map":{"a":"one"}})");
  safetensors_directory const model(dir.path);
  fs::remove(dir.path / "one");
  CHECK(to_float(model.at("a")) == values);
  CHECK(error_of([&] { safetensors_directory{dir.path}; }) ==
        (dir.path / "one").string() + ": cannot be opened: No such file or directory");
}

TEST_CASE("a link to nothing says what is missing", "[files]") {
  test::scratch const dir("files_test");
  fs::create_symlink("blobs/0123", dir.path / "model.safetensors");
  std::string const expected =
      (dir.path / "model.safetensors").string() +
      ": cannot be opened: it is a link, and the file it points to is not there: blobs/0123";
  CHECK(error_of([&] { mapped_file{dir.path / "model.safetensors"}; }) == expected);
  CHECK(error_of([&] { safetensors_directory{dir.path}; }) == expected);
  fs::rename(dir.path / "model.safetensors", dir.path / "model.safetensors.index.json");
  CHECK(contains(
      error_of([&] { safetensors_directory{dir.path}; }),
      "index.json: cannot be opened: it is a link, and the file it points to is not there: blobs/0123"));
  fs::create_directory(dir.path / "blobs");
  write_file(dir.path / "blobs/0123", R"({"weight_map":{}})");
  CHECK(safetensors_directory(dir.path).tensors().empty());
}

TEST_CASE("a mapped file that is shortened ends the program where the missing part is read", "[files]") {
  test::scratch const dir("files_test");
  auto const path = dir.path / "x";
  std::size_t const page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  write_file(path, std::string(2 * page, 'x'));
  pid_t const child = ::fork();
  if (child == 0) {
    std::signal(SIGBUS, SIG_DFL);
    mapped_file const file(path);
    fs::resize_file(path, page);
    if (file.bytes()[page - 1] != std::byte{'x'}) ::_exit(1);
    ::_exit(file.bytes()[page] == std::byte{'x'} ? 2 : 3);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGBUS);
}
