// Who may write to a directory: one process at a time.
#pragma once

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <string>
#include <unistd.h>
#include <utility>

#include <sys/file.h>
#include <sys/stat.h>

#include <gptq/error.hpp>

namespace lm {

/// A file that one process at a time can hold, as long as it runs: the system takes it from one that is killed.
class lock_file {
 public:
  /// Throws gptq::error when another has it, or when it cannot be made. File systems that know no locks give it to
  /// everyone.
  explicit lock_file(std::filesystem::path path) : path_(std::move(path)) {
    while (!lock()) {
    }
  }
  ~lock_file() {
    ::unlink(path_.c_str());  // before it is given up, so that nobody's new one is removed
    ::close(file_);
  }
  lock_file(lock_file const&) = delete;
  lock_file& operator=(lock_file const&) = delete;

 private:
  /// False: the one who had it has removed it in the meantime, and what is locked has no name.
  bool lock() {
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) throw gptq::error(path_.string() + ": cannot be written: " + std::strerror(errno));
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(file_);
      throw gptq::error(path_.parent_path().string() + ": another process is writing to it");
    }
    struct stat held {};
    struct stat named {};
    if (::fstat(file_, &held) == 0 && ::stat(path_.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
        held.st_dev == named.st_dev) {
      return true;
    }
    ::close(file_);
    return false;
  }

  std::filesystem::path path_;
  int file_ = -1;
};

}  // namespace lm
