// Products of a weight with a few positions. A panel is 64 outputs side by side, input after input: one stream of memory,
// and no sums across lanes.

#pragma once

#include "common.hpp"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int MOST_COLUMNS = 6;  // of a tile: with 4 vectors each they fill 24 of AVX-512's 32 registers

template <class T>
struct Plain {
    using element = T;
    static Vector<T> read(const T* w) { return load<Vector<T>>(w); }
};
template <class T>
struct Brain {
    using element = uint16_t;
    static Vector<T> read(const uint16_t* w) {
        auto bits = __builtin_convertvector(load<Vector<uint16_t>>(w), Vector<uint32_t>) << 16;
        return __builtin_convertvector(load<Vector<float>>(&bits), Vector<T>);
    }
};
template <class T>
struct Half {
    using element = uint16_t;
    static Vector<T> read(const uint16_t* w) {
#if defined(__AVX512F__)
        __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
        return __builtin_convertvector(load<Vector<float>>(&wide), Vector<T>);
#else
        return __builtin_convertvector(load<Vector<_Float16>>(w), Vector<T>);
#endif
    }
};

template <class T, class W, int N>
void tile(const typename W::element* w, int64_t inputs, const T* x, int64_t stride, T* sums) {
    Vector<T> sum[N][VECTORS] = {};
    for (int64_t k = 0; k < inputs; k++, w += PANEL) {
        Vector<T> weight[VECTORS];
        for (int v = 0; v < VECTORS; v++) weight[v] = W::read(w + v * LANES);
        for (int c = 0; c < N; c++)
            for (int v = 0; v < VECTORS; v++) sum[c][v] += weight[v] * x[c * stride + k];
    }
    std::memcpy(sums, sum, sizeof sum);
}

#if defined(__AVX512BW__)
// Adds the products of pairs of 16-bit weights, two of each output, with the two inputs at `x`.
inline void add_pair(__m512i (&sum)[VECTORS], const __m512i (&weight)[VECTORS], const int16_t* x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    const __m512i both = _mm512_set1_epi32(pair);
    for (int v = 0; v < VECTORS; v++)
#if defined(__AVX512VNNI__)
        sum[v] = _mm512_dpwssd_epi32(sum[v], weight[v], both);
#else
        sum[v] = _mm512_add_epi32(sum[v], _mm512_madd_epi16(weight[v], both));
#endif
}
#endif

// int8 weights, 16-bit inputs with one scale per position: the sums are exact, in 32 bits.
template <int N>
void tile_int8(const int8_t* w, int64_t pairs, const int16_t* x, int64_t stride, int32_t* sums) {
#if defined(__AVX512BW__)
    __m512i sum[N][VECTORS];
    for (int c = 0; c < N; c++)
        for (int v = 0; v < VECTORS; v++) sum[c][v] = _mm512_setzero_si512();
    for (int64_t k = 0; k < pairs; k++, w += 2 * PANEL) {
        __m512i weight[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            weight[v] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 2 * LANES * v)));
        for (int c = 0; c < N; c++) {
            add_pair(sum[c], weight, x + c * stride + 2 * k);
        }
    }
    std::memcpy(sums, sum, sizeof sum);
#else
    std::fill(sums, sums + N * PANEL, 0);
    for (int64_t k = 0; k < pairs; k++, w += 2 * PANEL)
        for (int c = 0; c < N; c++) {
            const int32_t even = x[c * stride + 2 * k], odd = x[c * stride + 2 * k + 1];
            for (int o = 0; o < PANEL; o++) sums[c * PANEL + o] += w[2 * o] * even + w[2 * o + 1] * odd;
        }
#endif
}

constexpr int64_t GROUP = 32;  // inputs that share a scale and a zero of INT4

// Sums of one group of 4-bit steps from 0 to 15 with 16-bit inputs, exact. A word has the steps of 8 inputs of one
// output: those of inputs 2 j and 2 j + 1 are its bits from 4 j and from 16 + 4 j on.
template <int N>
void group_int4(const uint32_t* w, const int16_t* x, int64_t stride, int32_t* sums) {
#if defined(__AVX512BW__)
    const __m512i nibbles = _mm512_set1_epi32(0x000f000f);
    __m512i sum[N][VECTORS];
    for (int c = 0; c < N; c++)
        for (int v = 0; v < VECTORS; v++) sum[c][v] = _mm512_setzero_si512();
    for (int64_t k = 0; k < GROUP; k += 8, w += PANEL) {
        __m512i words[VECTORS];
        for (int v = 0; v < VECTORS; v++) words[v] = _mm512_loadu_si512(w + v * LANES);
        for (int j = 0; j < 4; j++) {
            __m512i weight[VECTORS];
            for (int v = 0; v < VECTORS; v++)
                weight[v] = _mm512_and_si512(_mm512_srli_epi32(words[v], 4 * j), nibbles);
            for (int c = 0; c < N; c++) {
                add_pair(sum[c], weight, x + c * stride + k + 2 * j);
            }
        }
    }
    std::memcpy(sums, sum, sizeof sum);
#else
    std::fill(sums, sums + N * PANEL, 0);
    for (int64_t k = 0; k < GROUP; k += 8, w += PANEL)
        for (int c = 0; c < N; c++)
            for (int j = 0; j < 4; j++) {
                const int32_t even = x[c * stride + k + 2 * j], odd = x[c * stride + k + 2 * j + 1];
                for (int o = 0; o < PANEL; o++)
                    sums[c * PANEL + o] += (w[o] >> 4 * j & 15) * even + (w[o] >> (16 + 4 * j) & 15) * odd;
            }
#endif
}

// A weight is (step - 8) * scale + zero; scales and zeros are of a group. totals: of each column's inputs, by group.
template <class T, int N>
void tile_int4(const uint32_t* w, const uint16_t* factors, int64_t groups, const int16_t* x, const int32_t* totals,
               T* sums) {
    Vector<T> sum[N][VECTORS] = {};
    for (int64_t g = 0; g < groups; g++, w += GROUP / 8 * PANEL, factors += 2 * PANEL) {
        alignas(64) int32_t exact[N * PANEL];
        group_int4<N>(w, x + g * GROUP, groups * GROUP, exact);
        for (int v = 0; v < VECTORS; v++) {
            const Vector<T> scale = Brain<T>::read(factors + v * LANES);
            const Vector<T> zero = Brain<T>::read(factors + PANEL + v * LANES);
            for (int c = 0; c < N; c++) {
                const int32_t total = totals[c * groups + g];
                const auto steps = load<Vector<int32_t>>(exact + c * PANEL + v * LANES) - 8 * total;
                sum[c][v] += __builtin_convertvector(steps, Vector<T>) * scale + zero * static_cast<T>(total);
            }
        }
    }
    std::memcpy(sums, sum, sizeof sum);
}

// Calls run<N> for the columns that are left, as many at a time as a tile takes.
template <class F>
void in_tiles(int64_t columns, F run) {
    int64_t c = 0;
    for (; columns - c >= MOST_COLUMNS; c += MOST_COLUMNS) run.template operator()<MOST_COLUMNS>(c);
    switch (columns - c) {
        case 5: run.template operator()<5>(c); break;
        case 4: run.template operator()<4>(c); break;
        case 3: run.template operator()<3>(c); break;
        case 2: run.template operator()<2>(c); break;
        case 1: run.template operator()<1>(c); break;
    }
}

// Memory of one call, kept by the calling thread from call to call.
struct Scratch {
    std::vector<std::vector<char>> blocks;
    size_t used = 0;
    template <class T>
    T* take(int64_t count) {
        if (used == blocks.size()) blocks.emplace_back();
        auto& block = blocks[used++];
        const size_t bytes = count * sizeof(T) + 64;
        if (block.size() < bytes) block.resize(bytes + bytes / 2);
        return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(block.data()) + 63) / 64 * 64);
    }
};
thread_local Scratch scratch;
thread_local std::vector<char> scores_of_thread;

template <class T>
struct Inputs {  // of a product: columns x inputs, and room for them in 16 bits
    int64_t columns, inputs;
    T* values;
    int16_t* steps;
    T* step;         // of each column
    int32_t* totals;  // sums of `steps`, by column and group of INT4
    Inputs(int64_t columns, int64_t inputs)
        : columns(columns), inputs(inputs), values(scratch.take<T>(columns * inputs)),
          steps(scratch.take<int16_t>(columns * (inputs + 1))), step(scratch.take<T>(columns)),
          totals(scratch.take<int32_t>(columns * (inputs / GROUP + 1))) {}
};

template <class T>
void round_inputs(const Inputs<T>& x, double limit) {
    const int64_t width = x.inputs, stride = width + width % 2;
#pragma omp for schedule(static)
    for (int64_t c = 0; c < x.columns; c++) {
        const T* from = x.values + c * width;
        int16_t* to = x.steps + c * stride;
        T largest = 0, broken = 0;
#pragma omp simd reduction(max : largest) reduction(+ : broken)
        for (int64_t i = 0; i < width; i++) {
            largest = std::max(largest, std::abs(from[i]));
            broken += from[i] * 0;
        }
        const T inverse = largest > 0 && broken == 0 ? static_cast<T>(limit) / largest : 0;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) to[i] = static_cast<int16_t>(std::rint(from[i] * inverse));
        if (stride > width) to[width] = 0;
        x.step[c] = largest / static_cast<T>(limit) + broken;
    }
}

template <class T>
void sum_groups(const Inputs<T>& x) {
    const int64_t groups = x.inputs / GROUP;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < x.columns * groups; i++) {
        int32_t total = 0;
        for (int64_t k = 0; k < GROUP; k++) total += x.steps[i * GROUP + k];
        x.totals[i] = total;
    }
}

// y[c] = W x[c] + gain * residual[c]; all threads of the team.
template <class T>
void product(const Matrix& m, const Inputs<T>& x, T* y, const T* residual = nullptr, T gain = 0) {
    if (m.form == INT8 || m.form == INT4) round_inputs(x, m.limit);
    if (m.form == INT4) sum_groups(x);
    const int64_t panels = (m.outputs + PANEL - 1) / PANEL;
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        const int64_t first = p * PANEL, count = std::min<int64_t>(PANEL, m.outputs - first);
        in_tiles(x.columns, [&]<int N>(int64_t c) {
            alignas(64) T sums[N * PANEL];
            const T* values = x.values + c * m.inputs;
            const int64_t begin = p * m.inputs * PANEL;
            if (m.form == PLAIN) {
                tile<T, Plain<T>, N>(static_cast<const T*>(m.panels) + begin, m.inputs, values, m.inputs, sums);
            } else if (m.form == HALF) {
                tile<T, Half<T>, N>(static_cast<const uint16_t*>(m.panels) + begin, m.inputs, values, m.inputs, sums);
            } else if (m.form == BRAIN) {
                tile<T, Brain<T>, N>(static_cast<const uint16_t*>(m.panels) + begin, m.inputs, values, m.inputs, sums);
            } else if (m.form == INT4) {
                const int64_t groups = m.inputs / GROUP;
                tile_int4<T, N>(static_cast<const uint32_t*>(m.panels) + p * m.inputs / 8 * PANEL,
                                static_cast<const uint16_t*>(m.scales) + p * groups * 2 * PANEL, groups,
                                x.steps + c * m.inputs, x.totals + c * groups, sums);
                for (int n = 0; n < N; n++)
                    for (int64_t o = 0; o < count; o++) sums[n * PANEL + o] *= x.step[c + n];
            } else {
                const float* scales = static_cast<const float*>(m.scales);
                const int64_t pairs = (m.inputs + 1) / 2;
                alignas(64) int32_t exact[N * PANEL];
                tile_int8<N>(static_cast<const int8_t*>(m.panels) + 2 * p * pairs * PANEL, pairs,
                             x.steps + 2 * c * pairs, 2 * pairs, exact);
                for (int n = 0; n < N; n++)
                    for (int64_t o = 0; o < count; o++)
                        sums[n * PANEL + o] = exact[n * PANEL + o] * (x.step[c + n] * scales[first + o]);
            }
            for (int n = 0; n < N; n++) {
                const int64_t at = (c + n) * m.outputs + first;
                for (int64_t o = 0; o < count; o++)
                    y[at + o] = residual ? sums[n * PANEL + o] + gain * residual[at + o] : sums[n * PANEL + o];
            }
        });
    }
}

template <class T>
void normed(const T* x, const T* gain, double eps, const Inputs<T>& y) {
#pragma omp for schedule(static)
    for (int64_t c = 0; c < y.columns; c++)
        norm(x + c * y.inputs, gain, y.inputs, static_cast<T>(eps), y.values + c * y.inputs);
}

}  // namespace
