// Two kinds of allocation. Large ones are mapped by themselves and stay untouched (so a cache costs nothing until it is
// used). Small ones, most weight matrices of a small model among them, are cut from slabs of huge pages: streamed weights in
// 4 KiB pages spend a fifth of their time in address translation.
#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace etude {
namespace {

constexpr size_t huge_page = size_t(2) << 20, slab_bytes = size_t(32) << 20, line = 64;

size_t round_up(size_t bytes, size_t to) {
  if (bytes > SIZE_MAX - to) throw std::bad_alloc();
  return (bytes + to - 1) / to * to;
}

#if defined(__linux__)

void* map(size_t bytes) {
  const size_t padded = round_up(bytes, huge_page) + huge_page;
  void* raw = mmap(nullptr, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t begin = (uintptr_t)raw, aligned = round_up(begin, huge_page);
  if (aligned > begin) munmap(raw, aligned - begin);
  const uintptr_t end = aligned + round_up(bytes, huge_page);
  if (begin + padded > end) munmap((void*)end, begin + padded - end);
  madvise((void*)aligned, end - aligned, MADV_HUGEPAGE);
  return (void*)aligned;
}

void unmap(void* data, size_t bytes) { munmap(data, round_up(bytes, huge_page)); }

#else

void* map(size_t bytes) {
  void* data = std::aligned_alloc(line, round_up(bytes, line));
  if (!data) throw std::bad_alloc();
  std::memset(data, 0, bytes);
  return data;
}

void unmap(void* data, size_t) { std::free(data); }

#endif

// Pieces of slabs; a freed piece waits for the next request of its size (new weights have the sizes of the old ones).
class Slabs {
 public:
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<void*>& waiting = free_[bytes];
    if (!waiting.empty()) {
      void* data = waiting.back();
      waiting.pop_back();
      std::memset(data, 0, bytes);
      return data;
    }
    if (left_ < bytes) {
      next_ = static_cast<uint8_t*>(map(slab_bytes));
      left_ = slab_bytes;
    }
    void* data = next_;
    next_ += bytes;
    left_ -= bytes;
    return data;
  }

  void give(void* data, size_t bytes) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_[bytes].push_back(data);
  }

 private:
  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  uint8_t* next_ = nullptr;
  size_t left_ = 0;
};

// Never destroyed: memory may be given back while the process ends.
Slabs& slabs() {
  static Slabs* const all = new Slabs();
  return *all;
}

bool is_large(size_t bytes) { return bytes >= huge_page; }

}  // namespace

Memory::Memory(size_t bytes) : bytes_(bytes) {
  if (!bytes) return;
  data_ = is_large(bytes) ? map(bytes) : slabs().take(round_up(bytes, line));
}

void Memory::release() {
#if defined(__linux__)
  if (data_ && is_large(bytes_)) madvise(data_, bytes_, MADV_DONTNEED);
#endif
}

Memory::~Memory() {
  if (!data_) return;
  if (is_large(bytes_)) unmap(data_, bytes_);
  else slabs().give(data_, round_up(bytes_, line));
}

}  // namespace etude
