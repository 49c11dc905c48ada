// Descriptors, and system calls that a signal may interrupt.
#pragma once

#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>
#include <utility>

#include <sys/types.h>

namespace gptq::checkpoint::detail {

/// Closed when it goes; negative: none.
class descriptor {
 public:
  explicit descriptor(int number) : number_(number) {}
  ~descriptor() { close(); }
  descriptor(descriptor const&) = delete;
  descriptor& operator=(descriptor const&) = delete;

  int get() const { return number_; }
  void close() {
    if (int const open = std::exchange(number_, -1); open >= 0) ::close(open);
  }

 private:
  int number_;
};

/// The result of a call, made again as long as a signal interrupts it.
template <class Call>
auto again_if_interrupted(Call&& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

inline int open_again(std::filesystem::path const& path, int flags, ::mode_t mode = 0) {
  return again_if_interrupted([&] { return ::open(path.c_str(), flags, mode); });
}

}  // namespace gptq::checkpoint::detail
