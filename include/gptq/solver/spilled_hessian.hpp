// A Hessian in a file of its own, which is removed with it.
#pragma once

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <unistd.h>

#include <gptq/error.hpp>
#include <gptq/hessian.hpp>

namespace gptq::solver {

class spilled_hessian {
 public:
  /// Writes it below `directory`, under a name that no other one of this or another process has. Throws
  /// gptq::error, and leaves no file, when it cannot be written.
  spilled_hessian(std::filesystem::path const& directory, hessian const& h) : path_(directory / new_name()) {
    try {
      std::ofstream out(path_, std::ios::binary | std::ios::trunc);
      h.save(out);
      out.close();
      if (!out) throw error("writing failed");
    } catch (error const& e) {
      remove();
      throw error(path_.string() + ": cannot be written: " + e.what());
    }
  }
  ~spilled_hessian() { remove(); }
  spilled_hessian(spilled_hessian const&) = delete;
  spilled_hessian& operator=(spilled_hessian const&) = delete;

  /// Throws gptq::error when the file is not there or not whole any more.
  hessian load() const {
    std::ifstream in(path_, std::ios::binary);
    if (!in) throw error(path_.string() + ": cannot be opened");
    try {
      return hessian::load(in);
    } catch (error const& e) {
      throw error(path_.string() + ": " + e.what());
    }
  }

 private:
  static std::string new_name() {
    static std::atomic<unsigned> count{0};
    return "hessian-" + std::to_string(::getpid()) + "-" + std::to_string(count++);
  }
  void remove() const {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }

  std::filesystem::path path_;
};

}  // namespace gptq::solver
