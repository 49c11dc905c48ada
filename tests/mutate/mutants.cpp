// Linked into every program of a build with mutants.
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

#include <sys/mman.h>

extern "C" {
static unsigned char nowhere[1 << 16];
int gptq_mutant_on = 0;
unsigned char* gptq_mutants_reached = nowhere;

/// Before constructors of programs, which may come by mutants.
__attribute__((constructor(101))) static void gptq_choose_mutant() {
  if (char const* const number = std::getenv("GPTQ_MUTANT")) gptq_mutant_on = std::atoi(number);
  char const* const path = std::getenv("GPTQ_MUTANTS_REACHED");
  if (path == nullptr) return;
  int const file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return;
  void* const shared = mmap(nullptr, sizeof nowhere, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (shared != MAP_FAILED) gptq_mutants_reached = static_cast<unsigned char*>(shared);
  close(file);
}
}
