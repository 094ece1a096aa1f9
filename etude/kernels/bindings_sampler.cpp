// Python side of the sampler: settings by name, checked; everything else is a direct call.
#include "bindings_sampler.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.h"
#include "random.h"
#include "sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace etude {

namespace {

using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Row = std::tuple<int32_t, float, float, float>;

template <class T>
auto to_numpy(std::vector<T> values) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner);
}

auto columns(const std::vector<TokenLogprob>& tokens) {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  for (const TokenLogprob& t : tokens) {
    ids.push_back(t.token_id);
    logprobs.push_back(t.logprob);
  }
  return nb::make_tuple(to_numpy(std::move(ids)), to_numpy(std::move(logprobs)));
}

Row as_row(const Sampled& s) { return {s.token_id, s.logprob, s.raw_logprob, s.entropy}; }

std::vector<Step> read_steps(nb::handle names) {
  static const std::map<std::string, Step> known = {
      {"penalties", Step::penalties}, {"dry", Step::dry},     {"top_n_sigma", Step::top_n_sigma},
      {"top_k", Step::top_k},         {"typ_p", Step::typ_p}, {"top_p", Step::top_p},
      {"min_p", Step::min_p},         {"xtc", Step::xtc},     {"temperature", Step::temperature}};
  std::vector<Step> steps;
  for (const nb::handle name : names) {
    const auto found = known.find(nb::cast<std::string>(name));
    if (found == known.end()) throw nb::value_error(("unknown sampler " + nb::cast<std::string>(name)).c_str());
    steps.push_back(found->second);
  }
  return steps;
}

using Setter = std::function<void(ChainSettings&, nb::handle)>;

const std::map<std::string, Setter>& setters() {
#define ETUDE_SET(name, field, type) {name, [](ChainSettings& s, nb::handle v) { s.field = nb::cast<type>(v); }}
  static const std::map<std::string, Setter> all = {
      {"samplers", [](ChainSettings& s, nb::handle v) { s.steps = read_steps(v); }},
      {"logit_bias", [](ChainSettings& s, nb::handle v) { s.logit_bias = nb::cast<std::vector<std::pair<int32_t, float>>>(v); }},
      ETUDE_SET("temperature", temperature, float),
      ETUDE_SET("dynamic_range", dynamic_range, float),
      ETUDE_SET("dynamic_exponent", dynamic_exponent, float),
      ETUDE_SET("top_k", top_k, int),
      ETUDE_SET("top_p", top_p, float),
      ETUDE_SET("min_p", min_p, float),
      ETUDE_SET("typical_p", typical_p, float),
      ETUDE_SET("top_n_sigma", top_n_sigma, float),
      ETUDE_SET("min_keep", min_keep, int),
      ETUDE_SET("xtc_probability", xtc_probability, float),
      ETUDE_SET("xtc_threshold", xtc_threshold, float),
      ETUDE_SET("repeat_penalty", penalties.repeat, float),
      ETUDE_SET("frequency_penalty", penalties.frequency, float),
      ETUDE_SET("presence_penalty", penalties.presence, float),
      ETUDE_SET("penalty_last_n", penalties.last_n, int),
      ETUDE_SET("dry_multiplier", dry.multiplier, float),
      ETUDE_SET("dry_base", dry.base, float),
      ETUDE_SET("dry_allowed_length", dry.allowed_length, int),
      ETUDE_SET("dry_last_n", dry.last_n, int),
      ETUDE_SET("dry_breakers", dry.breakers, std::shared_ptr<Breakers>),
      ETUDE_SET("mirostat", mirostat.version, int),
      ETUDE_SET("mirostat_tau", mirostat.tau, float),
      ETUDE_SET("mirostat_eta", mirostat.eta, float),
  };
#undef ETUDE_SET
  return all;
}

ChainSettings read_settings(const nb::kwargs& chain) {
  ChainSettings settings;
  for (const auto& [name, value] : chain) {
    const auto found = setters().find(nb::cast<std::string>(name));
    if (found == setters().end()) throw nb::type_error(("Sampler: unknown setting " + nb::cast<std::string>(name)).c_str());
    found->second(settings, value);
  }
  return settings;
}

void check_id(const Sampler& sampler, int64_t id) {
  if (id < 0 || id >= sampler.n_vocab())
    throw nb::value_error(("token id " + std::to_string(id) + " is outside 0 to " + std::to_string(sampler.n_vocab() - 1)).c_str());
}

void make_sampler(Sampler* place, int n_vocab, uint64_t seed, uint64_t index, const nb::kwargs& chain) {
  if (n_vocab < 1) throw nb::value_error("n_vocab must be at least 1");
  ChainSettings settings = read_settings(chain);
  new (place) Sampler(n_vocab, seed, index, std::move(settings));
}

void accept_prompt(Sampler& sampler, const Ids& ids) {
  for (size_t i = 0; i < ids.shape(0); i++) check_id(sampler, ids.data()[i]);
  for (size_t i = 0; i < ids.shape(0); i++) sampler.accept(ids.data()[i]);
}

const uint32_t* check_row(const Sampler& sampler, const Logits& logits, const std::optional<Mask>& allowed) {
  const size_t n = size_t(sampler.n_vocab());
  if (logits.shape(0) != n) throw nb::value_error("logits must have n_vocab elements");
  if (allowed && allowed->shape(0) < (n + 31) / 32) throw nb::value_error("the mask needs a bit for every token");
  return allowed ? allowed->data() : nullptr;
}

Row sample_row(Sampler& sampler, const Logits& logits, const std::optional<Mask>& allowed, int64_t position) {
  return as_row(sampler.sample(logits.data(), check_row(sampler, logits, allowed), position));
}

nb::tuple distribution(Sampler& sampler, const Logits& logits, const std::optional<Mask>& allowed, int64_t position) {
  return columns(sampler.distribution(logits.data(), check_row(sampler, logits, allowed), position));
}

Row score_token(const Logits& logits, int32_t token_id) {
  if (token_id < 0 || size_t(token_id) >= logits.shape(0)) throw nb::value_error("token id outside the logits");
  return as_row(score(logits.data(), int(logits.shape(0)), token_id));
}

nb::tuple best_tokens(const Logits& logits, int n) {
  if (n < 0) throw nb::value_error("n must be at least 0");
  std::vector<TokenLogprob> best(static_cast<size_t>(n));
  top_logprobs(logits.data(), int(logits.shape(0)), n, best.data());
  return columns(best);
}

std::vector<uint32_t> philox(uint64_t seed, uint64_t index, uint64_t position) {
  const Philox random(seed, index, position);
  return std::vector<uint32_t>(random.word, random.word + 4);
}

void bind_passes(nb::module_& m) {
  m.def("vocab_max", [](const Logits& x) { return kernels().vocab_max(x.data(), int(x.shape(0))); });
  m.def("vocab_sum_exp", [](const Logits& x, float peak, float inverse_temperature) {
    double weighted = 0;
    const double sum = kernels().vocab_sum_exp(x.data(), int(x.shape(0)), peak, inverse_temperature, &weighted);
    return std::make_tuple(sum, weighted);
  });
  m.def("vocab_pick", [](const Logits& x, float peak, float inverse_temperature, double target) {
    return kernels().vocab_pick(x.data(), int(x.shape(0)), peak, inverse_temperature, target);
  });
  m.def("vocab_mask", [](const Logits& x, const Mask& allowed) {
    if (allowed.shape(0) < (x.shape(0) + 31) / 32) throw nb::value_error("the mask needs a bit for every token");
    std::vector<float> copy(x.data(), x.data() + x.shape(0));
    kernels().vocab_mask(copy.data(), int(copy.size()), allowed.data());
    return to_numpy(std::move(copy));
  });
  m.def("vocab_select", [](const Logits& x, float threshold, int capacity) {
    std::vector<int32_t> ids(size_t(std::max(capacity, 0)));
    const int found = kernels().vocab_select(x.data(), int(x.shape(0)), threshold, ids.data(), int(ids.size()));
    ids.resize(size_t(std::min(found, int(ids.size()))));
    return std::make_pair(found, ids);
  });
}

}  // namespace

void bind_sampler(nb::module_& m) {
  nb::class_<Breakers>(m, "Breakers")
      .def("__init__", [](Breakers* place, const std::vector<std::vector<int32_t>>& sequences) {
        new (place) Breakers();
        for (const std::vector<int32_t>& s : sequences) {
          if (s.empty()) throw nb::value_error("a sequence breaker needs at least one token");
          place->tails[s[0]].emplace_back(s.begin() + 1, s.end());
        }
      }, "sequences"_a);
  nb::class_<Sampler>(m, "Sampler")
      .def("__init__", &make_sampler, "n_vocab"_a, "seed"_a, "index"_a, "chain"_a)
      .def_prop_ro("reads_history", &Sampler::reads_history)
      .def_prop_ro("n_vocab", &Sampler::n_vocab)
      .def("accept", [](Sampler& s, int32_t id) { check_id(s, id); s.accept(id); }, "token_id"_a)
      .def("accept_prompt", &accept_prompt, "token_ids"_a)
      .def("sample", &sample_row, "logits"_a, "allowed"_a = nb::none(), "position"_a = 0)
      .def("distribution", &distribution, "logits"_a, "allowed"_a = nb::none(), "position"_a = 0);
  m.def("score", &score_token, "logits"_a, "token_id"_a);
  m.def("top_logprobs", &best_tokens, "logits"_a, "n"_a);
  m.def("philox", &philox, "seed"_a, "index"_a, "position"_a);
  bind_passes(m);
}

}  // namespace etude
