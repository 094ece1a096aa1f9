// Pool, decoder step and its result as seen from Python.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace etude;

namespace {

struct StepOutput {
  nb::object token_ids, logprobs, raw_logprobs, entropies, top_ids, top_logprobs, logits, hidden;  // numpy arrays or None
};

// A new array in `to`; where its values go.
template <class T>
T* place(nb::object& to, std::initializer_list<size_t> shape) {
  NumpyArray<T> array = new_array<T>(shape);
  to = nb::cast(array);
  return array.data();
}

const int32_t* checked(const char* name, const I32& a, size_t size) {
  if (a.ndim() != 1 || a.size() != size)
    throw nb::value_error((std::string(name) + " has " + std::to_string(a.size()) + " values, expected " + std::to_string(size)).c_str());
  return a.data();
}

StepInput input_of(const I32& token_ids, const I32& first_token, const I32& first_position, const I32& pages, const I32& first_page,
                   const std::vector<const Adapter*>& adapters, const F32& adapter_scales, const I32& rows, const std::vector<Sampler*>& samplers,
                   const I32& targets, const I32& n_top) {
  if (first_token.size() < 2) throw nb::value_error("first_token needs one value a sequence and one more");
  StepInput in{};
  const size_t sequences = first_token.size() - 1, wanted = rows.size();
  in.n_sequences = int(sequences);
  in.n_tokens = int(token_ids.size());
  in.n_rows = int(wanted);
  in.token_ids = checked("token_ids", token_ids, token_ids.size());
  in.first_token = checked("first_token", first_token, sequences + 1);
  in.first_position = checked("first_position", first_position, sequences);
  in.first_page = checked("first_page", first_page, sequences + 1);
  in.pages = checked("pages", pages, pages.size());
  for (size_t s = 0; s < sequences; s++)
    if (in.first_token[s] > in.first_token[s + 1] || in.first_page[s] > in.first_page[s + 1]) throw nb::value_error("first_token and first_page must not fall");
  if (in.first_page[0] != 0 || size_t(in.first_page[sequences]) != pages.size()) throw nb::value_error("first_page must run from 0 to the number of pages");
  if (!adapters.empty() && (adapters.size() != sequences || adapter_scales.size() != sequences)) throw nb::value_error("adapters and adapter_scales need one value a sequence");
  in.adapters = adapters;
  in.adapter_scales = adapter_scales.data();
  in.rows = checked("rows", rows, wanted);
  in.targets = checked("targets", targets, wanted);
  in.n_top = checked("n_top", n_top, wanted);
  if (samplers.size() != wanted) throw nb::value_error("samplers need one value a row");
  in.samplers = samplers;
  for (size_t r = 0; r < wanted; r++) in.max_top = std::max(in.max_top, in.n_top[r]);
  return in;
}

StepOutput step(Decoder& self, I32 token_ids, I32 first_token, I32 first_position, I32 pages, I32 first_page, std::vector<const Adapter*> adapters,
                F32 adapter_scales, I32 rows, std::vector<Sampler*> samplers, I32 targets, nb::list masks, I32 n_top,
                bool want_logits, bool want_hidden, int n_vocab, int d_model) {
  StepInput in = input_of(token_ids, first_token, first_position, pages, first_page, adapters, adapter_scales, rows, samplers, targets, n_top);
  const size_t wanted = rows.size();
  if (in.max_top > n_vocab) throw nb::value_error(("n_top = " + std::to_string(in.max_top) + ", the vocabulary has " + std::to_string(n_vocab)).c_str());
  if (masks.size() != wanted) throw nb::value_error("masks need one value a row");
  for (nb::handle item : masks) {  // the list keeps the arrays alive through the step: no converted copies
    in.masks.push_back(nullptr);
    if (item.is_none()) continue;
    U32 mask;
    if (!nb::try_cast(item, mask, false)) throw nb::type_error("a mask must be a contiguous array of uint32, or None");
    if (mask.size() * 32 < size_t(n_vocab)) throw nb::value_error("a mask needs one bit a vocabulary entry");
    in.masks.back() = mask.data();
  }
  for (size_t r = 0; r < wanted; r++)
    if (!want_hidden && !samplers[r] && in.targets[r] == hidden_only)
      throw nb::value_error(("row " + std::to_string(r) + " has neither a sampler nor a target token").c_str());
  const size_t top = size_t(std::max(0, in.max_top));
  StepOutput out;
  StepResult result{};
  result.token_ids = place<int32_t>(out.token_ids, {wanted});
  result.logprobs = place<float>(out.logprobs, {wanted});
  result.raw_logprobs = place<float>(out.raw_logprobs, {wanted});
  result.entropies = place<float>(out.entropies, {wanted});
  result.top_ids = place<int32_t>(out.top_ids, {wanted, top});
  result.top_logprobs = place<float>(out.top_logprobs, {wanted, top});
  std::fill(result.top_ids, result.top_ids + wanted * top, -1);
  out.logits = out.hidden = nb::none();
  if (want_logits) result.logits = place<float>(out.logits, {wanted, size_t(n_vocab)});
  if (want_hidden) result.hidden = place<float>(out.hidden, {wanted, size_t(d_model)});
  nb::gil_scoped_release release;
  self.step(in, result);
  return out;
}

}  // namespace

void multiply_once(const PackedMatrix& w, const float* x, int t, int threads, float* y) {
  const Matrix& m = w.matrix;
  ActivationBuffer buffer;
  buffer.reserve(t, m.k);
  for (int i = 0; i < t; i++) kernels().encode(x + size_t(i) * m.k, m.k, encoding_for(m), buffer.view, i);
  const size_t stride = size_t(m.tiles) * 16;
  std::vector<float> padded(stride * t);
  Pool pool(threads);
  pool.run([&](int) {
    for (int tile; (tile = pool.take(m.tiles, 3)) < m.tiles;) kernels().matmul(m, buffer.view, 0, t, tile, std::min(tile + 3, m.tiles), padded.data(), stride);
  });
  for (int i = 0; i < t; i++) std::copy(padded.begin() + i * stride, padded.begin() + i * stride + m.n, y + size_t(i) * m.n);
}

void bind_step(nb::module_& m) {
  nb::class_<Pool>(m, "Pool").def(nb::init<int>(), "threads"_a).def_prop_ro("threads", &Pool::threads);
  nb::class_<StepOutput>(m, "StepOutput")
      .def_ro("token_ids", &StepOutput::token_ids)
      .def_ro("logprobs", &StepOutput::logprobs)
      .def_ro("raw_logprobs", &StepOutput::raw_logprobs)
      .def_ro("entropies", &StepOutput::entropies)
      .def_ro("top_ids", &StepOutput::top_ids)
      .def_ro("top_logprobs", &StepOutput::top_logprobs)
      .def_ro("logits", &StepOutput::logits)
      .def_ro("hidden", &StepOutput::hidden);
  nb::class_<Decoder>(m, "Decoder")
      .def(nb::init<const Model&, Cache&, Pool&>(), "model"_a, "cache"_a, "pool"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>())
      .def(
          "step",
          [](Decoder& self, I32 token_ids, I32 first_token, I32 first_position, I32 pages, I32 first_page, std::vector<const Adapter*> adapters,
             F32 adapter_scales, I32 rows, std::vector<Sampler*> samplers, I32 targets, nb::list masks, I32 n_top, bool want_logits,
             bool want_hidden) {
            return step(self, token_ids, first_token, first_position, pages, first_page, std::move(adapters), adapter_scales, rows, std::move(samplers), targets,
                        masks, n_top, want_logits, want_hidden, self.n_vocab(), self.d_model());
          },
          nb::kw_only(), "token_ids"_a.noconvert(), "first_token"_a.noconvert(), "first_position"_a.noconvert(), "pages"_a.noconvert(), "first_page"_a.noconvert(),
          "adapters"_a, "adapter_scales"_a.noconvert(), "rows"_a.noconvert(), "samplers"_a, "targets"_a.noconvert(), "masks"_a, "n_top"_a.noconvert(),
          "want_logits"_a = false, "want_hidden"_a = false);
}
