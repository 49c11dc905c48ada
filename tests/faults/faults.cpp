// Stands before the C library's calls on files. In a test, faults.hpp says what fails; in a program, the environment
// does:
//
//   LD_PRELOAD=libgptq_faults.so GPTQ_FAULTS="/absolute/directory 12 error 28" program ...
//
// The words are the directory, the call, the kind (none, error, short_write, kill, kill_in_write), errno, and,
// optionally, "all" for all later calls as well. GPTQ_FAULTS_LOG names a file that has, in the end, the name of each
// call in a line.
#include "faults.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <sstream>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

namespace {

std::atomic<bool> active = false;
struct state {
  std::mutex mutex;
  faults::plan plan;
  std::vector<std::string> calls;
};
state& global() {
  static state& s = *new state;  // is still there when other statics are gone
  return s;
}
thread_local bool inside = false;  // calls of this file's own

long raw_write(int file, void const* data, std::size_t size) {
  return ::syscall(SYS_write, file, data, size);
}

bool is_below(std::string path, std::string const& directory) {
  if (!path.starts_with('/')) {
    std::array<char, 4096> here{};
    if (::syscall(SYS_getcwd, here.data(), here.size()) < 0) return false;
    path = std::string(here.data()) + "/" + path;
  }
  return path == directory || path.starts_with(directory + "/");
}

bool is_below(int file, std::string const& directory) {
  std::array<char, 4096> target{};
  std::string const link = "/proc/self/fd/" + std::to_string(file);
  long const length = ::syscall(SYS_readlinkat, AT_FDCWD, link.c_str(), target.data(), target.size() - 1);
  return length > 0 && is_below(std::string(target.data(), static_cast<std::size_t>(length)), directory);
}

/// What is to happen to a call, which is counted when it concerns the directory.
struct verdict {
  faults::kind what = faults::kind::none;
  int error = 0;
};

template <class File>
verdict count(char const* name, File const& file) {
  if (!active || inside) return {};
  state& s = global();
  std::lock_guard const lock(s.mutex);
  inside = true;
  bool const counted =
      (s.plan.only_call.empty() || s.plan.only_call == name) && is_below(file, s.plan.directory);
  verdict v;
  if (counted) {
    int const number = static_cast<int>(s.calls.size());
    s.calls.emplace_back(name);
    bool const is_due = number == s.plan.at || (s.plan.and_all_later && s.plan.at >= 0 && number > s.plan.at);
    if (is_due) v = {s.plan.what, s.plan.error};
  }
  inside = false;
  if (v.what == faults::kind::kill) ::raise(SIGKILL);
  return v;
}

/// Whether the call has failed, with errno set.
bool fails(verdict v) {
  if (v.what != faults::kind::error) return false;
  errno = v.error;
  return true;
}

struct from_environment {
  from_environment() {
    char const* const words = std::getenv("GPTQ_FAULTS");
    if (words == nullptr) return;
    std::istringstream in(words);
    faults::plan p;
    std::string kind, all;
    in >> p.directory >> p.at >> kind >> p.error >> all;
    p.what = kind == "error"           ? faults::kind::error
             : kind == "short_write"   ? faults::kind::short_write
             : kind == "kill"          ? faults::kind::kill
             : kind == "kill_in_write" ? faults::kind::kill_in_write
                                       : faults::kind::none;
    p.and_all_later = all == "all";
    faults::start(p);
  }
  ~from_environment() {
    char const* const log = std::getenv("GPTQ_FAULTS_LOG");
    auto const calls = faults::stop();
    if (log == nullptr || std::getenv("GPTQ_FAULTS") == nullptr) return;
    std::string text;
    for (auto const& call : calls) text += call + "\n";
    int const file = static_cast<int>(
        ::syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (file < 0) return;
    if (raw_write(file, text.data(), text.size()) < 0) std::perror("GPTQ_FAULTS_LOG");
    ::syscall(SYS_close, file);
  }
};
from_environment const environment;

}  // namespace

namespace faults {

void start(plan const& p) {
  state& s = global();
  std::lock_guard const lock(s.mutex);
  s.plan = p;
  s.calls.clear();
  active = true;
}

std::vector<std::string> stop() {
  state& s = global();
  std::lock_guard const lock(s.mutex);
  active = false;
  return s.calls;
}

}  // namespace faults

// NOLINTBEGIN: these have the names and types that the C library gives them
extern "C" {

int open(char const* path, int flags, ...) {
  mode_t mode = 0;
  if ((flags & (O_CREAT | O_TMPFILE)) != 0) {
    va_list more;
    va_start(more, flags);
    mode = static_cast<mode_t>(va_arg(more, int));
    va_end(more);
  }
  if (fails(count("open", path))) return -1;
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

ssize_t write(int file, void const* data, size_t size) {
  verdict const v = count("write", file);
  if (fails(v)) return -1;
  bool const half = v.what == faults::kind::short_write || v.what == faults::kind::kill_in_write;
  long const written = raw_write(file, data, half ? (size + 1) / 2 : size);
  if (v.what == faults::kind::kill_in_write) ::raise(SIGKILL);
  return written;
}

int fsync(int file) {
  if (fails(count("fsync", file))) return -1;
  return static_cast<int>(::syscall(SYS_fsync, file));
}

int rename(char const* from, char const* to) noexcept {
  if (fails(count("rename", to))) return -1;
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

int mkdir(char const* path, mode_t mode) noexcept {
  if (fails(count("mkdir", path))) return -1;
  return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}

int close(int file) {
  verdict const v = count("close", file);
  auto const result =
      static_cast<int>(::syscall(SYS_close, file));  // closed even when it says that it failed
  return fails(v) ? -1 : result;
}

int fstat(int file, struct stat* status) noexcept {
  if (fails(count("fstat", file))) return -1;
  return ::fstatat(file, "", status, AT_EMPTY_PATH);
}

void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) noexcept {
  if (file >= 0 && fails(count("mmap", file))) return MAP_FAILED;
  return reinterpret_cast<void*>(::syscall(SYS_mmap, address, size, protection, flags, file, offset));
}

}  // extern "C"
// NOLINTEND
