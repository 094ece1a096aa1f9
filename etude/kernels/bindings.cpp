// Python signatures of the model, cache and adapter, and their shape checks; no maths.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdio>
#include <cstring>
#include <optional>

#include "adapter.h"
#include "bindings.h"
#include "bindings_sampler.h"
#include "cache.h"
#include "model.h"
#include "quantize.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace etude;

namespace {

constexpr int packing_threads = 2;

std::vector<int> ints(const I32& a) { return {a.data(), a.data() + a.size()}; }
std::vector<float> floats(const F32& a) { return {a.data(), a.data() + a.size()}; }

void bind_model(nb::module_& m) {
  nb::class_<Model>(m, "Model")
      .def(
          "__init__",
          [](Model* self, int n_layers, int d_model, int n_heads, int n_kv_heads, int head_dim, int d_ff, int n_vocab, float norm_eps, float attention_scale,
             float embedding_scale, float logit_softcap, float attention_softcap, const std::string& activation, I32 windows, I32 rope_of_layer, F32 inv_freqs, F32 rope_scales) {
            ModelShape s;
            s.n_layers = n_layers;
            s.d_model = d_model;
            s.n_heads = n_heads;
            s.n_kv_heads = n_kv_heads;
            s.head_dim = head_dim;
            s.d_ff = d_ff;
            s.n_vocab = n_vocab;
            s.norm_eps = norm_eps;
            s.attention_scale = attention_scale;
            s.embedding_scale = embedding_scale;
            s.logit_softcap = logit_softcap;
            s.attention_softcap = attention_softcap;
            if (activation != "silu" && activation != "gelu_tanh") throw nb::value_error("activation must be silu or gelu_tanh");
            s.gelu_tanh = activation == "gelu_tanh";
            s.windows = ints(windows);
            s.rope_of_layer = ints(rope_of_layer);
            if (inv_freqs.ndim() != 2) throw nb::value_error("inv_freqs must be (tables, rope_dim / 2)");
            s.rope_half = int(inv_freqs.shape(1));
            s.inv_freqs = floats(inv_freqs);
            s.rope_scales = floats(rope_scales);
            new (self) Model(std::move(s));
          },
          nb::kw_only(), "n_layers"_a, "d_model"_a, "n_heads"_a, "n_kv_heads"_a, "head_dim"_a, "d_ff"_a, "n_vocab"_a, "norm_eps"_a, "attention_scale"_a,
          "embedding_scale"_a, "logit_softcap"_a, "attention_softcap"_a, "activation"_a, "windows"_a.noconvert(), "rope_of_layer"_a.noconvert(), "inv_freqs"_a.noconvert(), "rope_scales"_a.noconvert())
      .def(
          "set_matrix",
          [](Model& self, const std::string& slot, int layer, int ggml_type, int n, int k, U8 data, std::optional<I32> row_order) {
            if (row_order && int(row_order->size()) != n) throw nb::value_error("row_order needs one index a row");
            const int32_t* order = row_order ? row_order->data() : nullptr;
            nb::gil_scoped_release release;
            self.set_matrix(slot, layer, ggml_type, n, k, data.data(), data.size(), order, packing_threads);
          },
          "slot"_a, "layer"_a, "ggml_type"_a, "n"_a, "k"_a, "data"_a.noconvert(), "row_order"_a.noconvert().none() = nb::none())
      .def(
          "set_vector", [](Model& self, const std::string& slot, int layer, F32 values) { self.set_vector(slot, layer, values.data(), values.size()); },
          "slot"_a, "layer"_a, "values"_a.noconvert())
      .def(
          "dequantize",
          [](const Model& self, const std::string& slot, int layer) {
            const Matrix& w = self.matrix(slot, layer);
            auto out = new_array<float>({size_t(w.n), size_t(w.k)});
            for (int i = 0; i < w.n; i++) kernels().decode_row(w, i, out.data() + size_t(i) * w.k);
            return out;
          },
          "slot"_a, "layer"_a)
      .def("matrix_type", [](const Model& self, const std::string& slot, int layer) { return self.matrix(slot, layer).type; }, "slot"_a, "layer"_a)
      .def("check", &Model::check)
      .def_prop_ro("weight_bytes", &Model::weight_bytes);
}

void bind_cache(nb::module_& m) {
  nb::class_<Cache>(m, "Cache")
      .def(
          "__init__",
          [](Cache* self, const Model& model, int n_pages, int page_tokens, const std::string& type_k, const std::string& type_v) {
            new (self) Cache(model.shape, n_pages, page_tokens, cache_type(type_k.c_str()), cache_type(type_v.c_str()));
          },
          "model"_a, "n_pages"_a, "page_tokens"_a, "type_k"_a, "type_v"_a)
      .def_ro("n_pages", &Cache::n_pages)
      .def_ro("page_tokens", &Cache::page_tokens)
      .def_prop_ro("page_bytes", &Cache::page_bytes)
      .def_static(
          "bytes_per_page",
          [](const Model& model, int page_tokens, const std::string& type_k, const std::string& type_v) {
            return Cache::bytes_per_page(model.shape, page_tokens, cache_type(type_k.c_str()), cache_type(type_v.c_str()));
          },
          "model"_a, "page_tokens"_a, "type_k"_a, "type_v"_a)
      .def("copy_page", &Cache::copy_page, "src"_a, "dst"_a)
      .def("release", &Cache::release)
      .def(
          "export_page",
          [](Cache& self, int page) {
            if (page < 0 || page >= self.n_pages) throw nb::value_error("no such page");
            return nb::bytes((const char*)self.page(page), self.page_bytes());
          },
          "page"_a)
      .def(
          "import_page",
          [](Cache& self, int page, nb::bytes data) {
            if (page < 0 || page >= self.n_pages || data.size() != self.page_bytes()) throw nb::value_error("no such page, or bytes of another cache");
            std::memcpy(self.page(page), data.c_str(), data.size());
          },
          "page"_a, "data"_a)
      .def(
          "shift",
          [](Cache& self, const Model& model, I32 src, I32 dst, int length, int keep, int discard) {
            auto pages = [&](int tokens) { return size_t(tokens + self.page_tokens - 1) / self.page_tokens; };
            if (length < 1 || discard < 1 || keep < 0 || int64_t(keep) + discard > length) throw nb::value_error("need 0 <= keep, 1 <= discard, keep + discard <= length");
            if (src.size() < pages(length) || dst.size() < pages(length - discard)) throw nb::value_error("page tables are too short");
            nb::gil_scoped_release release;
            self.shift(model.shape, src.data(), dst.data(), length, keep, discard);
          },
          "model"_a, "src_pages"_a.noconvert(), "dst_pages"_a.noconvert(), "length"_a, "keep"_a, "discard"_a);
}

void bind_adapter(nb::module_& m) {
  nb::class_<Adapter>(m, "Adapter")
      .def(nb::init<const Model&, float>(), "model"_a, "scale"_a, nb::keep_alive<1, 2>())
      .def(
          "set",
          [](Adapter& self, const std::string& slot, int layer, F32 a, F32 b) {
            if (a.ndim() != 2 || b.ndim() != 2 || a.shape(0) != b.shape(1)) throw nb::value_error("need a (rank, k) and b (n, rank)");
            self.set(slot, layer, int(a.shape(0)), int(a.shape(1)), int(b.shape(0)), a.data(), b.data());
          },
          "slot"_a, "layer"_a, "a"_a.noconvert(), "b"_a.noconvert());
}

void bind_quantize(nb::module_& m) {
  m.def(
      "quantize",
      [](int type, F32 values) {
        const bool blocks = type == 8;
        if (type != 1 && type != 8 && type != 30) throw nb::value_error("quantize makes F16 (1), Q8_0 (8) and BF16 (30)");
        if (blocks && (values.ndim() == 0 || values.shape(values.ndim() - 1) % 32)) throw nb::value_error("rows of Q8_0 are multiples of 32 long");
        const size_t n = values.size();
        auto out = new_array<uint8_t>({blocks ? n / 32 * 34 : 2 * n});
        Unfit unfit;
        {
          nb::gil_scoped_release release;
          unfit = quantize(type, values.data(), n, out.data(), packing_threads);
        }
        if (!unfit.found) return out;
        char text[128];
        if (blocks) std::snprintf(text, sizeof text, "Q8_0 takes finite values up to 8.3e6 in size: got %g", unfit.value);
        else std::snprintf(text, sizeof text, "%g does not fit %s: write a type of larger range", unfit.value, type == 1 ? "F16" : "BF16");
        throw nb::value_error(text);
      },
      "ggml_type"_a, "values"_a.noconvert());
}

// One kernel by itself, for tests on any shape.
void bind_kernels(nb::module_& m) {
  m.def("isa", [] { return std::string(kernels().name); });
  m.def(
      "pack_dequantize",
      [](int type, U8 w, int n, int k) {
        const PackedMatrix p = pack(type, n, k, w.data(), w.size(), nullptr, packing_threads);
        auto out = new_array<float>({size_t(n), size_t(k)});
        for (int i = 0; i < n; i++) kernels().decode_row(p.matrix, i, out.data() + size_t(i) * k);
        return out;
      },
      "ggml_type"_a, "w"_a.noconvert(), "n"_a, "k"_a);
  m.def(
      "matmul",
      [](int type, U8 w, int n, int k, F32 x, int threads) {
        if (x.ndim() != 2 || int(x.shape(1)) != k) throw nb::value_error("x must be (t, k)");
        const PackedMatrix packed = pack(type, n, k, w.data(), w.size(), nullptr, 1);  // refuses a bad n before it becomes a size
        const int t = int(x.shape(0));
        auto out = new_array<float>({size_t(t), size_t(n)});
        multiply_once(packed, x.data(), t, threads, out.data());
        return out;
      },
      "ggml_type"_a, "w"_a.noconvert(), "n"_a, "k"_a, "x"_a.noconvert(), "threads"_a);
  m.def(
      "encode_i8",
      [](F32 x) {
        if (x.ndim() != 1 || x.size() % 32) throw nb::value_error("x must be one row, a multiple of 32 long");
        ActivationBuffer buffer;
        buffer.reserve(1, int(x.size()));
        kernels().encode(x.data(), int(x.size()), encode_i8, buffer.view, 0);
        auto q = new_array<int8_t>({x.size()});
        auto scale = new_array<float>({x.size() / 32});
        std::copy(buffer.view.q, buffer.view.q + x.size(), q.data());
        std::copy(buffer.view.scale, buffer.view.scale + x.size() / 32, scale.data());
        return nb::make_tuple(q, scale);
      },
      "x"_a.noconvert());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native operators and the decoder step; the contract is in _native.pyi.";
  (void)kernels();  // a wrong ETUDE_ISA is an error at import, not at the first step
  bind_kernels(m);
  bind_quantize(m);
  bind_model(m);
  bind_cache(m);
  bind_adapter(m);
  bind_sampler(m);
  bind_step(m);
  bind_learner(m);
}
