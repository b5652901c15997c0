// Types that Python hands over, vectors, and elementwise functions.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

constexpr int LANES = 16, VECTORS = 4, PANEL = LANES * VECTORS;

template <class T>
struct Wide {
    typedef T vector __attribute__((vector_size(LANES * sizeof(T))));
};
template <class T>
using Vector = typename Wide<T>::vector;
template <class V>
inline V load(const void* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// ---- What Python hands over: `bltkit/native/library.py` declares the same structures.

enum Form : int64_t { PLAIN, HALF, BRAIN, INT8, INT4 };

struct Matrix {
    const void* panels;  // [outputs / 64, inputs, 64], or for INT8 [outputs / 64, inputs / 2, 64, 2]; zeros fill up.
                         // INT4: 32-bit words [outputs / 64, inputs / 8, 64], see `tile_int4`
    const void* scales;  // INT8: float of each output. INT4: bf16 [outputs / 64, inputs / 32, 2, 64], scales and zeros
    int64_t outputs, inputs, form;
    double limit;  // INT8, INT4: largest step of an input with which no sum leaves 32 bits
};
template <class T>
struct Layer {
    const T* attention_norm;
    Matrix qkv, out;
    const T* ffn_norm;
    Matrix gate_up, down;
};
template <class T>
struct Reader {  // cross-attention in front of a layer
    const T* norm;
    Matrix q, out;
    int64_t heads, head_dim;
    double eps, gain;
};
template <class T>
struct Stack {
    int64_t layers, width, heads, kv_heads, head_dim, ffn, window;  // window 0: none
    double eps;
    const T* frequencies;  // [head_dim / 2]
    const Layer<T>* layer;
    int64_t readers;
    const Reader<T>* reader;
};
template <class T>
struct Sequence {  // where a sequence's keys and values lie: [layers][2 kv_heads][columns, head_dim]
    T* base;
    int64_t layer_stride, head_stride, start, stop, position;
};
struct Ngrams {
    const void *bytes, *tables;      // [260, width], [rows of all tables, width]
    const int64_t *factors, *first;  // [tables, longest], [tables]: what ids are multiplied with, a table's first row
    int64_t number, longest, buckets, width;
    double scale;
};
template <class T>
struct PatchVectors {  // keys and values [R, 1 or S, k, heads, head_dim] that a reader attends to
    const T *keys, *values;
    int64_t positions, k;
};

// ---- Elementwise functions.

inline double exponential(double x) { return std::exp(x); }

inline float exponential(float x) {  // 1.5 units in the last place; branch-free, so that loops become vector code
    x = x < -87.0f ? -87.0f : x;     // keeps a NaN
    x = x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000 + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

template <class T>
void norm(const T* x, const T* gain, int64_t width, T eps, T* y) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += x[i] * x[i];
    const T scale = 1 / std::sqrt(sum / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * scale * gain[i];
}

}  // namespace
