// Blocks of memory that end where the process may read nothing, and can be read no more once they are freed: what goes
// past a tensor of torch's, or comes after it, ends the process. For the emulated GPU's kernels, which change stacks in
// a way that the address sanitizer does not follow. To be preloaded (see the Makefile).
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <atomic>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kSpace = size_t(1) << 40;  // of addresses, none of them used twice
// Of what torch asks for, 64, nothing but speed depends on more than this, and it would hide what is that near the end.
constexpr size_t kAlignment = 16;

void* reserved(size_t bytes) {
  void* space = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return space == MAP_FAILED ? nullptr : space;
}

struct Fences {
  char* space = static_cast<char*>(reserved(kSpace));
  // Pages of the block that begins with a page; memory only where it is looked at.
  uint32_t* pages = static_cast<uint32_t*>(reserved(kSpace / kPage * sizeof(uint32_t)));
  std::atomic<size_t> next{1};

  Fences() {
    if (space == nullptr || pages == nullptr) abort();
    mprotect(pages, kSpace / kPage * sizeof(uint32_t), PROT_READ | PROT_WRITE);
  }
};

Fences& fences() {
  static Fences all;
  return all;
}

template <class Function>
Function* next_of(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" int posix_memalign(void** out, size_t alignment, size_t bytes) {
  static auto* const other = next_of<int(void**, size_t, size_t)>("posix_memalign");
  if (alignment > 64 || bytes == 0) return other(out, alignment, bytes);
  Fences& all = fences();
  const size_t count = (bytes + kPage - 1) / kPage, first = all.next.fetch_add(count + 1);
  char* start = all.space + first * kPage;
  if ((first + count) * kPage >= kSpace || mprotect(start, count * kPage, PROT_READ | PROT_WRITE) != 0) abort();
  all.pages[first] = uint32_t(count);
  *out = start + count * kPage - (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return 0;
}

extern "C" void free(void* block) {
  static auto* const other = next_of<void(void*)>("free");
  Fences& all = fences();
  const size_t offset = size_t(static_cast<char*>(block) - all.space);
  if (block == nullptr || offset >= kSpace) return other(block);
  const size_t first = offset / kPage;
  mprotect(all.space + first * kPage, all.pages[first] * kPage, PROT_NONE);
  madvise(all.space + first * kPage, all.pages[first] * kPage, MADV_DONTNEED);
}
