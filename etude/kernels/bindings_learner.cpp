// What the learner computes natively, as seen from Python: matrices out of blocks, and softmax rows of logits.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <thread>
#include <vector>

#include "bindings.h"
#include "kernels.h"
#include "pack.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace etude;

namespace {

using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;  // written to

// row(i) for each of n rows, on so many threads
template <class Row>
void each_row(int n, int threads, const Row& row) {
  const int parts = threads < 1 ? 1 : threads > n ? (n ? n : 1) : threads;
  auto work = [&](int part) {
    for (int i = int(int64_t(n) * part / parts); i < int(int64_t(n) * (part + 1) / parts); i++) row(i);
  };
  std::vector<std::thread> helpers;
  for (int part = 1; part < parts; part++) helpers.emplace_back(work, part);
  work(0);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

void bind_learner(nb::module_& m) {
  m.def(
      "dequantize_into",
      [](int type, U8 data, Floats out, int threads) {
        const int n = int(out.shape(0)), k = int(out.shape(1));
        nb::gil_scoped_release release;
        dequantize(type, n, k, data.data(), data.size(), out.data(), threads);
      },
      "ggml_type"_a, "data"_a.noconvert(), "out"_a.noconvert(), "threads"_a);
  m.def(
      "softmax_rows",
      [](Floats logits, int threads) {
        const int n = int(logits.shape(0)), width = int(logits.shape(1));
        auto out = new_array<float>({3, size_t(n)});
        float* found = out.data();
        {
          nb::gil_scoped_release release;
          each_row(n, threads, [=](int i) {
            const float* z = logits.data() + size_t(i) * width;
            double weighted = 0;
            found[i] = kernels().vocab_max(z, width);
            found[n + i] = float(kernels().vocab_sum_exp(z, width, found[i], 1.0f, &weighted));
            found[2 * n + i] = float(weighted);
          });
        }
        return out;
      },
      "logits"_a.noconvert(), "threads"_a);
  m.def(
      "softmax_gradient",
      [](Floats logits, F32 peak, F32 factor, int threads) {
        const int n = int(logits.shape(0)), width = int(logits.shape(1));
        if (peak.size() != size_t(n) || factor.size() != size_t(n)) throw nb::value_error("need a peak and a factor for each row");
        nb::gil_scoped_release release;
        each_row(n, threads, [=](int i) { kernels().vocab_gradient(logits.data() + size_t(i) * width, width, peak.data()[i], factor.data()[i]); });
      },
      "logits"_a.noconvert(), "peak"_a.noconvert(), "factor"_a.noconvert(), "threads"_a);
}
