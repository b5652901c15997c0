// Attention of new positions over their caches, and of bytes over the vectors of a patch.

#pragma once

#include "products.hpp"

namespace {

// Sums of the lanes of 16 vectors, side by side. Neighbours are added first.
template <class T>
Vector<T> sums_of_lanes(Vector<T>* parts) {
    typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
    typedef Index Lanes __attribute__((vector_size(LANES * sizeof(Index))));
    const Lanes even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    for (int count = LANES; count > 1; count /= 2)
        for (int i = 0; i < count / 2; i++)
            parts[i] = __builtin_shuffle(parts[2 * i], parts[2 * i + 1], even) +
                       __builtin_shuffle(parts[2 * i], parts[2 * i + 1], even + 1);
    return parts[0];
}

// scores[c] = q key[c] * scale. D: d, where it is known beforehand and a multiple of 16; else 0. Writes whole vectors.
template <class T, int D>
void score_columns(const T* q, const T* keys, int64_t count, int64_t d, T scale, T* scores) {
    if constexpr (D == 0) {
        for (int64_t c = 0; c < count; c++, keys += d) {
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < d; i++) sum += q[i] * keys[i];
            scores[c] = sum * scale;
        }
    } else {
        Vector<T> asks[D / LANES];
        for (int i = 0; i < D / LANES; i++) asks[i] = load<Vector<T>>(q + i * LANES) * scale;
        const auto products = [&](const T* key) {
            Vector<T> sum = asks[0] * load<Vector<T>>(key);
            for (int i = 1; i < D / LANES; i++) sum += asks[i] * load<Vector<T>>(key + i * LANES);
            return sum;
        };
        Vector<T> parts[LANES];
        int64_t c = 0;
        for (; c + LANES <= count; c += LANES, keys += LANES * D) {
            for (int j = 0; j < LANES; j++) parts[j] = products(keys + j * D);
            const Vector<T> sums = sums_of_lanes<T>(parts);
            std::memcpy(scores + c, &sums, sizeof sums);
        }
        for (int j = 0; j < LANES; j++) parts[j] = c + j < count ? products(keys + j * D) : Vector<T>{};
        const Vector<T> sums = sums_of_lanes<T>(parts);
        std::memcpy(scores + c, &sums, sizeof sums);
    }
}

// softmax(q k / sqrt(d)) v over `count` columns, one after the other in memory. scores: room for 15 more than those.
template <class T, int D>
void attend_columns(const T* q, const T* keys, const T* values, int64_t count, int64_t d, T* scores, T* mixed) {
    score_columns<T, D>(q, keys, count, d, 1 / std::sqrt(static_cast<T>(d)), scores);
    T largest = -std::numeric_limits<T>::infinity(), total = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t c = 0; c < count; c++) largest = std::max(largest, scores[c]);
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < count; c++) total += scores[c] = exponential(scores[c] - largest);
    if constexpr (D == 0) {
        std::fill(mixed, mixed + d, T(0));
        for (int64_t c = 0; c < count; c++, values += d)
#pragma omp simd
            for (int64_t i = 0; i < d; i++) mixed[i] += scores[c] * values[i];
#pragma omp simd
        for (int64_t i = 0; i < d; i++) mixed[i] /= total;
    } else {
        Vector<T> sums[D / LANES] = {};
        for (int64_t c = 0; c < count; c++, values += D)
            for (int i = 0; i < D / LANES; i++) sums[i] += scores[c] * load<Vector<T>>(values + i * LANES);
        for (int i = 0; i < D / LANES; i++) sums[i] /= total;
        std::memcpy(mixed, sums, sizeof sums);
    }
}

template <class T>
void attend(const Stack<T>& s, const Sequence<T>* sequences, int64_t rows, int64_t size, int64_t layer, const T* fused,
            T* mixed) {
    const int64_t d = s.head_dim, group = s.heads / s.kv_heads, stride = (s.heads + 2 * s.kv_heads) * d;
    auto attention = attend_columns<T, 0>;
    if (d == 32) attention = attend_columns<T, 32>;
    if (d == 64) attention = attend_columns<T, 64>;
    if (d == 128) attention = attend_columns<T, 128>;
#pragma omp for collapse(2) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < s.kv_heads; g++) {
            const Sequence<T>& own = sequences[r];
            const T* keys = own.base + layer * own.layer_stride + g * own.head_stride;
            const T* values = keys + s.kv_heads * own.head_stride;
            const size_t bytes = (own.stop + size - own.start + LANES) * sizeof(T);
            if (scores_of_thread.size() < bytes) scores_of_thread.resize(2 * bytes);
            T* scores = reinterpret_cast<T*>(scores_of_thread.data());
            for (int64_t i = 0; i < size; i++) {
                const int64_t end = own.stop + i + 1;
                const int64_t first = s.window ? std::max(own.start, end - s.window) : own.start;
                for (int64_t h = g * group; h < (g + 1) * group; h++) {
                    const T* q = fused + (r * size + i) * stride + h * d;
                    T* to = mixed + (r * size + i) * s.heads * d + h * d;
                    attention(q, keys + first * d, values + first * d, end - first, d, scores, to);
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

}  // namespace
