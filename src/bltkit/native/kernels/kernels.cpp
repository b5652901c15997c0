// A stack of pre-norm transformer layers over a few new positions of several sequences, caches included, in one call.
//
// What the layers compute is written in `bltkit.model.layers`, `attention` and `cross`; the tests hold this file to it.
// Every sum has one order, whatever the number of positions, sequences and threads: a position's result has the same
// bits alone and in any batch. Numbers that are not finite stay so, and stay in their own sequence.

#include "attention.hpp"

namespace {

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
