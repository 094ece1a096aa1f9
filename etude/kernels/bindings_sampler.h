// Python classes Sampler and Breakers, and the vocabulary passes for tests.
#pragma once
#include <nanobind/nanobind.h>

namespace etude {
void bind_sampler(nanobind::module_& m);
}
