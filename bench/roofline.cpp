// What this machine can do at most: int8 multiply-adds per second in registers, bytes per second read from memory.
// Usage: roofline THREADS. Prints one JSON object. Best of several short rounds, because neighbours only slow it.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

double now_s() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// Seconds until all threads have done work(thread).
double timed(int threads, const std::function<void(int)>& work) {
    std::vector<std::thread> pool;
    const double start = now_s();
    for (int i = 1; i < threads; ++i) pool.emplace_back(work, i);
    work(0);
    for (auto& thread : pool) thread.join();
    return now_s() - start;
}

// ---- int8 dot products: kChains independent accumulators, so that latency does not limit ----
constexpr int kChains = 24;

#if defined(__AVX512VNNI__)
const char* const kInstruction = "vpdpbusd zmm";
constexpr int kBytes = 64;
using Lane = __m512i;
inline Lane dot(Lane acc, Lane a, Lane b) { return _mm512_dpbusd_epi32(acc, a, b); }
#elif defined(__AVXVNNI__)
const char* const kInstruction = "vpdpbusd ymm";
constexpr int kBytes = 32;
using Lane = __m256i;
inline Lane dot(Lane acc, Lane a, Lane b) { return _mm256_dpbusd_avx_epi32(acc, a, b); }
#elif defined(__AVX2__)
const char* const kInstruction = "vpmaddwd ymm";  // what replaces it without VNNI: 16 products an instruction
constexpr int kBytes = 16;
using Lane = __m256i;
inline Lane dot(Lane acc, Lane a, Lane b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
#elif defined(__ARM_FEATURE_DOTPROD)
const char* const kInstruction = "sdot";
constexpr int kBytes = 16;
using Lane = int8x16_t;
inline Lane dot(Lane acc, Lane a, Lane b) {
    return vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(acc), a, b));
}
#else
const char* const kInstruction = "int multiply-add";
constexpr int kBytes = 1;
using Lane = int32_t;
inline Lane dot(Lane acc, Lane a, Lane b) { return acc + a * b; }
#endif

// One round: kBytes products, that is 2 * kBytes operations, for each chain and repetition.
void dot_round(int64_t repetitions) {
    Lane chains[kChains], a, b;
    std::memset(chains, 0, sizeof chains);
    std::memset(&a, 1, sizeof a);
    std::memset(&b, 1, sizeof b);
    for (int64_t i = 0; i < repetitions; ++i) {
#pragma GCC unroll 24
        for (int c = 0; c < kChains; ++c) chains[c] = dot(chains[c], a, b);
#if defined(__x86_64__)
        asm volatile("" : "+x"(a), "+x"(b));  // keeps the compiler from folding the loop
#elif defined(__aarch64__)
        asm volatile("" : "+w"(a), "+w"(b));
#endif
    }
    volatile char sink = 0;
    for (auto& chain : chains) sink = sink + *reinterpret_cast<char*>(&chain);
}

double int8_gops(int threads) {
    const int64_t repetitions = 4'000'000 * 16 / kBytes;
    double best = 0;
    for (int round = 0; round < 9; ++round) {
        const double seconds = timed(threads, [&](int) { dot_round(repetitions); });
        best = std::max(best, 2.0 * kBytes * kChains * double(repetitions) * threads / seconds / 1e9);
    }
    return best;
}

// ---- memory ----
uint64_t sum_of(const uint64_t* data, size_t n) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i + 8 <= n; i += 8) {
        for (int k = 0; k < 8; ++k) sums[k] += data[i + k];
    }
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total;
}

double read_gb_per_s(int threads, size_t megabytes) {
    const size_t n = megabytes * (size_t{1} << 20) / sizeof(uint64_t);
    std::vector<uint64_t> data(n, 1);
    double best = 0;
    volatile uint64_t sink = 0;
    for (int round = 0; round < 12; ++round) {
        std::vector<uint64_t> sums(threads);
        const double seconds = timed(threads, [&](int i) {
            const size_t part = n / threads;
            sums[i] = sum_of(data.data() + part * i, part);
        });
        for (uint64_t sum : sums) sink = sink + sum;
        best = std::max(best, double(n) * sizeof(uint64_t) / seconds / 1e9);
    }
    return best;
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
    const size_t megabytes = 1024;  // far beyond any cache
    std::printf("{\"threads\": %d, \"instruction\": \"%s\", \"int8_gops\": %.1f, \"read_gb_per_s\": %.2f}\n", threads,
                kInstruction, int8_gops(threads), read_gb_per_s(threads, megabytes));
}
