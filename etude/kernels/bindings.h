// What the binding files share: array types, ownership of results, and the functions that fill the module.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "decoder.h"

using F32 = nanobind::ndarray<const float, nanobind::c_contig, nanobind::device::cpu>;
using I32 = nanobind::ndarray<const int32_t, nanobind::c_contig, nanobind::device::cpu>;
using U32 = nanobind::ndarray<const uint32_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using U8 = nanobind::ndarray<const uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

template <class T>
using NumpyArray = nanobind::ndarray<nanobind::numpy, T>;

// A new numpy array, zeroed, owned by Python.
template <class T>
NumpyArray<T> new_array(std::initializer_list<size_t> shape) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  T* data = new T[n ? n : 1]();
  nanobind::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return NumpyArray<T>(data, shape.size(), shape.begin(), owner);
}

// y (t, n) = x (t, k) @ W^T through encoding and tiles, on `threads` threads.
void multiply_once(const etude::PackedMatrix& w, const float* x, int t, int threads, float* y);

void bind_step(nanobind::module_& m);
void bind_learner(nanobind::module_& m);
