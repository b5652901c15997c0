// A stack of pre-norm transformer layers over a few new positions of several sequences, caches included, in one call.
//
// What the layers compute is written in `bltkit.model.layers`, `attention` and `cross`; the tests hold this file to it.
// Every sum has one order, whatever the number of positions, sequences and threads: a position's result has the same
// bits alone and in any batch. Numbers that are not finite stay so, and stay in their own sequence.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16, VECTORS = 4, PANEL = LANES * VECTORS;
constexpr int MOST_COLUMNS = 6;  // of a tile: with 4 vectors each they fill 24 of AVX-512's 32 registers

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

enum Form : int64_t { PLAIN, HALF, BRAIN, INT8 };

struct Matrix {
    const void* panels;   // [outputs / 64, inputs, 64], or for INT8 [outputs / 64, inputs / 2, 64, 2]; zeros fill up
    const float* scales;  // of INT8: of each output
    int64_t outputs, inputs, form;
    double limit;  // of INT8: largest step of an input with which no sum leaves 32 bits
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

// ---- Products. A panel is 64 outputs side by side, input after input: one stream, no sums across lanes.

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

// int8 weights, 16-bit inputs with one scale a position: the sums are exact, in 32 bits.
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
            int32_t pair;
            std::memcpy(&pair, x + c * stride + 2 * k, 4);
            const __m512i both = _mm512_set1_epi32(pair);
            for (int v = 0; v < VECTORS; v++)
#if defined(__AVX512VNNI__)
                sum[c][v] = _mm512_dpwssd_epi32(sum[c][v], weight[v], both);
#else
                sum[c][v] = _mm512_add_epi32(sum[c][v], _mm512_madd_epi16(weight[v], both));
#endif
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
    T* step;  // of each column
    Inputs(int64_t columns, int64_t inputs)
        : columns(columns), inputs(inputs), values(scratch.take<T>(columns * inputs)),
          steps(scratch.take<int16_t>(columns * (inputs + 1))), step(scratch.take<T>(columns)) {}
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

// y[c] = W x[c] + gain * residual[c]; all threads of the team.
template <class T>
void product(const Matrix& m, const Inputs<T>& x, T* y, const T* residual = nullptr, T gain = 0) {
    if (m.form == INT8) round_inputs(x, m.limit);
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
            } else {
                const int64_t pairs = (m.inputs + 1) / 2;
                alignas(64) int32_t exact[N * PANEL];
                tile_int8<N>(static_cast<const int8_t*>(m.panels) + 2 * p * pairs * PANEL, pairs,
                             x.steps + 2 * c * pairs, 2 * pairs, exact);
                for (int n = 0; n < N; n++)
                    for (int64_t o = 0; o < count; o++)
                        sums[n * PANEL + o] = exact[n * PANEL + o] * (x.step[c + n] * m.scales[first + o]);
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

// ---- Attention.

// softmax(q k / sqrt(d)) v over `count` columns, one after the other in memory. D: d, where it is known beforehand.
template <class T, int D>
void attend_columns(const T* q, const T* keys, const T* values, int64_t count, int64_t d, T* scores, T* mixed) {
    if (D) d = D;
    const T scale = 1 / std::sqrt(static_cast<T>(d));
    T largest = -std::numeric_limits<T>::infinity();
    for (int64_t c = 0; c < count; c++) {
        T sum = 0;
        const T* key = keys + c * d;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < d; i++) sum += q[i] * key[i];
        scores[c] = sum * scale;
    }
#pragma omp simd reduction(max : largest)
    for (int64_t c = 0; c < count; c++) largest = std::max(largest, scores[c]);
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < count; c++) total += scores[c] = exponential(scores[c] - largest);
    T sums[D ? D : 1];
    T* sum = D ? sums : mixed;
    std::fill(sum, sum + d, T(0));
    for (int64_t c = 0; c < count; c++) {
        const T weight = scores[c];
        const T* value = values + c * d;
#pragma omp simd
        for (int64_t i = 0; i < d; i++) sum[i] += weight * value[i];
    }
#pragma omp simd
    for (int64_t i = 0; i < d; i++) mixed[i] = sum[i] / total;
}

template <class T>
void attend(const Stack<T>& s, const Sequence<T>* sequences, int64_t rows, int64_t size, int64_t layer, const T* fused,
            T* mixed) {
    const int64_t d = s.head_dim, group = s.heads / s.kv_heads, stride = (s.heads + 2 * s.kv_heads) * d;
#pragma omp for collapse(2) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < s.kv_heads; g++) {
            const Sequence<T>& own = sequences[r];
            const T* keys = own.base + layer * own.layer_stride + g * own.head_stride;
            const T* values = keys + s.kv_heads * own.head_stride;
            const size_t bytes = (own.stop + size - own.start) * sizeof(T);
            if (scores_of_thread.size() < bytes) scores_of_thread.resize(2 * bytes);
            T* scores = reinterpret_cast<T*>(scores_of_thread.data());
            for (int64_t i = 0; i < size; i++) {
                const int64_t end = own.stop + i + 1;
                const int64_t first = s.window ? std::max(own.start, end - s.window) : own.start;
                for (int64_t h = g * group; h < (g + 1) * group; h++) {
                    const T* q = fused + (r * size + i) * stride + h * d;
                    T* to = mixed + (r * size + i) * s.heads * d + h * d;
                    const auto run = d == 64 ? attend_columns<T, 64> : d == 128 ? attend_columns<T, 128>
                                                                                : attend_columns<T, 0>;
                    run(q, keys + first * d, values + first * d, end - first, d, scores, to);
                }
            }
        }
}

// Turns queries and keys, and puts keys and values behind the caches.
template <class T>
void turn_and_store(const Stack<T>& s, const Sequence<T>* sequences, int64_t rows, int64_t size, int64_t layer,
                    const T* turns, T* fused) {
    const int64_t d = s.head_dim, heads = s.heads + 2 * s.kv_heads;
#pragma omp for schedule(static)
    for (int64_t c = 0; c < rows * size; c++) {
        const Sequence<T>& own = sequences[c / size];
        const T *cosine = turns + c * d, *sine = cosine + d / 2;
        for (int64_t h = 0; h < heads; h++) {
            T* x = fused + (c * heads + h) * d;
            if (h < s.heads + s.kv_heads)
#pragma omp simd
                for (int64_t i = 0; i < d / 2; i++) {
                    const T even = x[2 * i], odd = x[2 * i + 1];
                    x[2 * i] = even * cosine[i] - odd * sine[i];
                    x[2 * i + 1] = odd * cosine[i] + even * sine[i];
                }
            if (h >= s.heads) {
                const int64_t place = layer * own.layer_stride + (h - s.heads) * own.head_stride;
                std::memcpy(own.base + place + (own.stop + c % size) * d, x, d * sizeof(T));
            }
        }
    }
}

// x <- gain x + out(attention of q(norm(x)) over the k vectors of a patch).
template <class T>
void read_patch(const Reader<T>& reader, const PatchVectors<T>& patch, int64_t size, const Inputs<T>& normal, T* q,
                const Inputs<T>& mixed, T* x) {
    const int64_t d = reader.head_dim, width = reader.heads * d;
    normed(x, reader.norm, reader.eps, normal);
    product(reader.q, normal, q);
#pragma omp for schedule(static)
    for (int64_t c = 0; c < normal.columns; c++) {
        const int64_t at = patch.positions == 1 ? c / size : c;
        const T scale = 1 / std::sqrt(static_cast<T>(d));
        std::vector<T> weights(patch.k);
        for (int64_t h = 0; h < reader.heads; h++) {
            const T* asks = q + c * width + h * d;
            const T* keys = patch.keys + at * patch.k * width + h * d;
            const T* values = patch.values + at * patch.k * width + h * d;
            T* to = mixed.values + c * width + h * d;
            T largest = -std::numeric_limits<T>::infinity(), total = 0;
            for (int64_t j = 0; j < patch.k; j++) {
                T sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < d; i++) sum += asks[i] * keys[j * width + i];
                weights[j] = sum * scale;
                largest = std::max(largest, weights[j]);
            }
            for (int64_t j = 0; j < patch.k; j++) total += weights[j] = exponential(weights[j] - largest);
            std::fill(to, to + d, T(0));
            for (int64_t j = 0; j < patch.k; j++) {
                const T weight = weights[j] / total;
#pragma omp simd
                for (int64_t i = 0; i < d; i++) to[i] += weight * values[j * width + i];
            }
        }
    }
    product(reader.out, mixed, x, x, static_cast<T>(reader.gain));
}

// ---- Entry points.

template <class T>
void run_stack(const Stack<T>& s, const Sequence<T>* sequences, int64_t rows, int64_t size, const T* input, T* outputs,
               const PatchVectors<T>* patches, int64_t threads) {
    const int64_t columns = rows * size, width = s.width, d = s.head_dim;
    scratch.used = 0;
    const Inputs<T> normal(columns, width), mixed(columns, s.heads * d), active(columns, s.ffn);
    T* x = scratch.take<T>(columns * width);
    T* fused = scratch.take<T>(columns * (s.heads + 2 * s.kv_heads) * d);
    T* gate_up = scratch.take<T>(columns * 2 * s.ffn);
    T* turns = scratch.take<T>(columns * d);
    std::memcpy(x, input, columns * width * sizeof(T));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t c = 0; c < columns; c++)
            for (int64_t i = 0; i < d / 2; i++) {
                const T angle = static_cast<T>(sequences[c / size].position + c % size) * s.frequencies[i];
                turns[c * d + i] = std::cos(angle);
                turns[c * d + d / 2 + i] = std::sin(angle);
            }
        for (int64_t l = 0; l < s.layers; l++) {
            const Layer<T>& layer = s.layer[l];
            if (l < s.readers) read_patch(s.reader[l], patches[l], size, normal, fused, mixed, x);
            normed(x, layer.attention_norm, s.eps, normal);
            product(layer.qkv, normal, fused);
            turn_and_store(s, sequences, rows, size, l, turns, fused);
            attend(s, sequences, rows, size, l, fused, mixed.values);
            product(layer.out, mixed, x, x, T(1));
            normed(x, layer.ffn_norm, s.eps, normal);
            product(layer.gate_up, normal, gate_up);
#pragma omp for schedule(static)
            for (int64_t c = 0; c < columns; c++) {
                const T *gate = gate_up + c * 2 * s.ffn, *up = gate + s.ffn;
                T* to = active.values + c * s.ffn;
#pragma omp simd
                for (int64_t i = 0; i < s.ffn; i++) to[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
            }
            product(layer.down, active, x, x, T(1));
#pragma omp single
            std::memcpy(outputs + l * columns * width, x, columns * width * sizeof(T));
        }
    }
}

template <class T>
void run_linear(const Matrix& m, const T* input, int64_t columns, T* output, int64_t threads) {
    scratch.used = 0;
    Inputs<T> x(columns, m.inputs);
    std::memcpy(x.values, input, columns * m.inputs * sizeof(T));
#pragma omp parallel num_threads(threads) if (threads > 1)
    product(m, x, output);
}

// Entropies in nats of softmax(logits).
template <class T>
void run_entropy(const T* logits, int64_t columns, int64_t ids, T* entropies) {
    for (int64_t c = 0; c < columns; c++, logits += ids) {
        T largest = -std::numeric_limits<T>::infinity(), total = 0, weighted = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < ids; i++) largest = std::max(largest, logits[i]);
#pragma omp simd reduction(+ : total, weighted)
        for (int64_t i = 0; i < ids; i++) {
            const T below = logits[i] - largest, weight = exponential(below);
            total += weight;
            weighted += weight * below;
        }
        entropies[c] = std::log(total) - weighted / total;
    }
}

// Of each window's last `size` ids: the byte's vector and those of the n-grams that end there.
template <class T>
void run_embed(const Ngrams& n, const int64_t* window, int64_t rows, int64_t size, T* x) {
    const T *bytes = static_cast<const T*>(n.bytes), *tables = static_cast<const T*>(n.tables);
    for (int64_t c = 0; c < rows * size; c++, x += n.width) {
        const int64_t* ids = window + c / size * (size + n.longest - 1) + c % size;
        std::fill(x, x + n.width, T(0));
        for (int64_t t = 0; t < n.number; t++) {
            uint64_t hash = 0;
            for (int64_t i = 0; i < n.longest; i++)
                hash += static_cast<uint64_t>(n.factors[t * n.longest + i]) * static_cast<uint64_t>(ids[i]);
            int64_t bucket = static_cast<int64_t>(hash) % n.buckets;
            bucket += bucket < 0 ? n.buckets : 0;
            const T* row = tables + (n.first[t] + bucket) * n.width;
#pragma omp simd
            for (int64_t i = 0; i < n.width; i++) x[i] += row[i];
        }
        const T* own = bytes + ids[n.longest - 1] * n.width;
#pragma omp simd
        for (int64_t i = 0; i < n.width; i++) x[i] = (x[i] + own[i]) * static_cast<T>(n.scale);
    }
}

}  // namespace

#define ENTRY_POINTS(T, NAME)                                                                                        \
    void stack_##NAME(const Stack<T>* stack, const Sequence<T>* sequences, int64_t rows, int64_t size, const T* x,   \
                      T* outputs, const PatchVectors<T>* patches, int64_t threads) {                                 \
        run_stack(*stack, sequences, rows, size, x, outputs, patches, threads);                                      \
    }                                                                                                                \
    void linear_##NAME(const Matrix* matrix, const T* x, int64_t columns, T* y, int64_t threads) {                   \
        run_linear(*matrix, x, columns, y, threads);                                                                 \
    }                                                                                                                \
    void norm_##NAME(const T* x, const T* gain, int64_t columns, int64_t width, double eps, T* y) {                  \
        for (int64_t c = 0; c < columns; c++) norm(x + c * width, gain, width, static_cast<T>(eps), y + c * width);  \
    }                                                                                                                \
    void entropy_##NAME(const T* logits, int64_t columns, int64_t ids, T* entropies) {                               \
        run_entropy(logits, columns, ids, entropies);                                                                \
    }                                                                                                                \
    void embed_##NAME(const Ngrams* ngrams, const int64_t* window, int64_t rows, int64_t size, T* x) {               \
        run_embed(*ngrams, window, rows, size, x);                                                                   \
    }

extern "C" {
ENTRY_POINTS(float, f32)
ENTRY_POINTS(double, f64)
}
