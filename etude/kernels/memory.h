// Zeroed memory aligned to 64 bytes, in huge pages where the system has them; frees itself.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace etude {

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes);  // std::bad_alloc
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    Memory taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Memory();
  void swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  template <class T = uint8_t> T* as() const { return static_cast<T*>(data_); }
  size_t bytes() const { return bytes_; }
  void release();  // what it holds is lost, and its pages are the system's until they are written again

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace etude
