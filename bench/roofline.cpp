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
constexpr int kChains = 12;  // latency 4 to 5, two a cycle; and AVX2 has 16 registers

#if defined(__AVX512VNNI__)
const char* const kInstruction = "vpdpbusd zmm";
constexpr int kBytes = 64;
using Lane = __m512i;
inline Lane dot(Lane acc, Lane a, Lane b) { return _mm512_dpbusd_epi32(acc, a, b); }
inline Lane add(Lane a, Lane b) { return _mm512_add_epi32(a, b); }
#elif defined(__AVXVNNI__)
const char* const kInstruction = "vpdpbusd ymm";
constexpr int kBytes = 32;
using Lane = __m256i;
inline Lane dot(Lane acc, Lane a, Lane b) { return _mm256_dpbusd_avx_epi32(acc, a, b); }
inline Lane add(Lane a, Lane b) { return _mm256_add_epi32(a, b); }
#elif defined(__AVX2__)
const char* const kInstruction = "vpmaddwd ymm";  // what replaces it without VNNI: 16 products an instruction
constexpr int kBytes = 16;
using Lane = __m256i;
inline Lane dot(Lane acc, Lane a, Lane b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
inline Lane add(Lane a, Lane b) { return _mm256_add_epi32(a, b); }
#elif defined(__ARM_FEATURE_DOTPROD)
const char* const kInstruction = "sdot";
constexpr int kBytes = 16;
using Lane = int8x16_t;
inline Lane dot(Lane acc, Lane a, Lane b) {
    return vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(acc), a, b));
}
inline Lane add(Lane a, Lane b) { return vaddq_s8(a, b); }
#else
const char* const kInstruction = "int multiply-add";
constexpr int kBytes = 1;
using Lane = int32_t;
inline Lane dot(Lane acc, Lane a, Lane b) { return acc + a * b; }
inline Lane add(Lane a, Lane b) { return a + b; }
#endif

// One round: kBytes products, that is 2 * kBytes operations, for each chain and repetition. Nothing may take a
// chain's address, or the compiler keeps the chains in memory.
void dot_round(int64_t repetitions) {
    Lane a, b;
    std::memset(&a, 1, sizeof a);
    std::memset(&b, 1, sizeof b);
    Lane c0 = a, c1 = a, c2 = a, c3 = a, c4 = a, c5 = a, c6 = a, c7 = a, c8 = a, c9 = a, c10 = a, c11 = a;
    for (int64_t i = 0; i < repetitions; ++i) {
        c0 = dot(c0, a, b), c1 = dot(c1, a, b), c2 = dot(c2, a, b), c3 = dot(c3, a, b);
        c4 = dot(c4, a, b), c5 = dot(c5, a, b), c6 = dot(c6, a, b), c7 = dot(c7, a, b);
        c8 = dot(c8, a, b), c9 = dot(c9, a, b), c10 = dot(c10, a, b), c11 = dot(c11, a, b);
#if defined(__AVX512VNNI__)
        asm volatile("" : "+v"(a), "+v"(b));  // keeps the compiler from folding the loop
#elif defined(__x86_64__)
        asm volatile("" : "+x"(a), "+x"(b));
#elif defined(__aarch64__)
        asm volatile("" : "+w"(a), "+w"(b));
#endif
    }
    c0 = add(add(add(c0, c1), add(c2, c3)), add(add(c4, c5), add(c6, c7)));
    c0 = add(c0, add(add(c8, c9), add(c10, c11)));
    char bytes[sizeof c0];
    std::memcpy(bytes, &c0, sizeof c0);
    volatile char sink = bytes[0];
    (void)sink;
}

double int8_gops(int threads) {
    const int64_t repetitions = 8'000'000 * 16 / kBytes;
    double best = 0;
    for (int round = 0; round < 9; ++round) {
        const double seconds = timed(threads, [&](int) { dot_round(repetitions); });
        best = std::max(best, 2.0 * kBytes * kChains * double(repetitions) * threads / seconds / 1e9);
    }
    return best;
}

// ---- memory ----
typedef uint64_t Words __attribute__((vector_size(64)));  // GCC's and Clang's, on any processor

uint64_t sum_of(const uint64_t* data, size_t n) {
    Words s0 = {}, s1 = {}, s2 = {}, s3 = {}, w0, w1, w2, w3;
    for (size_t i = 0; i + 32 <= n; i += 32) {
        std::memcpy(&w0, data + i, sizeof w0);
        std::memcpy(&w1, data + i + 8, sizeof w1);
        std::memcpy(&w2, data + i + 16, sizeof w2);
        std::memcpy(&w3, data + i + 24, sizeof w3);
        s0 += w0, s1 += w1, s2 += w2, s3 += w3;
    }
    s0 += s1 + s2 + s3;
    uint64_t total = 0;
    for (int k = 0; k < 8; ++k) total += s0[k];
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
