// Attention over a key/value cache of 16, 8 or 4 bits, for llama.cpp on a CPU. `sekisho engine build-native` puts this
// file among llama.cpp's sources and has its flash attention ask here first.
//
// A block of 64 cached positions is unpacked once and used by all query heads that share it, and by up to 64 rows of a
// prompt at once; scores, the running maximum and the weighted sum (online softmax: Milakov and Gimelshein, 2018) are
// in 32 bits throughout. Needs GCC (9 or later) or Clang for their vectors; elsewhere llama.cpp's own way stays.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 9)
#define SEKISHO_ATTENTION 1
#elif defined(SEKISHO_ATTENTION_REQUIRED)
#error "this compiler has no vectors"
#endif

#ifdef SEKISHO_ATTENTION

#if defined(__F16C__) || defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace sekisho {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX__)
constexpr int kWidth = 8, kTileRows = 4, kTileVectors = 2;
#elif defined(__aarch64__)
constexpr int kWidth = 4, kTileRows = 6, kTileVectors = 4;
#else
constexpr int kWidth = 4, kTileRows = 4, kTileVectors = 2;
#endif

constexpr int kBlock = 64;   // cached positions that are unpacked at a time
constexpr int kRows = 64;    // rows (query positions times heads that share keys) of a task
constexpr int kFewRows = 8;  // up to here scores are dot products; above, a matrix product with rows in the lanes
constexpr float kNever = -1e30f;
constexpr uint16_t kMinusInfinity = 0xfc00;  // a half float

typedef float Vec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef int8_t Sixteen __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t Packed __attribute__((vector_size(16), aligned(1), may_alias));

#define SEKISHO_INLINE inline __attribute__((always_inline))

static SEKISHO_INLINE Vec load(const float * from) { return *reinterpret_cast<const Vec *>(from); }
static SEKISHO_INLINE void store(float * to, Vec value) { *reinterpret_cast<Vec *>(to) = value; }
static SEKISHO_INLINE Vec all(float value) { return Vec{} + value; }
// `most`, or what is larger; what is no number is neither larger nor smaller, and shows in the sums instead.
static SEKISHO_INLINE Vec larger(Vec most, Vec other) { return other > most ? other : most; }

// Each lane: the sum of two neighbours; the lower half from a, the upper from b.
#if defined(__clang__)
#define SEKISHO_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SEKISHO_PICK(a, b, ...) __builtin_shuffle(a, b, (VecInt){__VA_ARGS__})
#endif
static SEKISHO_INLINE Vec pairs(Vec a, Vec b) {
#if defined(__AVX512F__)
    return SEKISHO_PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           SEKISHO_PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX__)
    return SEKISHO_PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + SEKISHO_PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    return SEKISHO_PICK(a, b, 0, 2, 4, 6) + SEKISHO_PICK(a, b, 1, 3, 5, 7);
#endif
}

// e^x to 2 units in the last place for x <= 0; 0 below -87; what is no number stays none.
static SEKISHO_INLINE Vec exponential(Vec x) {
    const Vec low = all(-87.0f);
    const VecInt gone = x < low;
    x = gone ? low : x;
    const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const Vec shifted = x * 1.44269504f + magic;
    const Vec whole = shifted - magic;
    Vec rest = x - whole * 0.693359375f;
    rest = rest - whole * -2.12194440e-4f;
    Vec sum = all(1.0f / 5040.0f);
    sum = sum * rest + 1.0f / 720.0f;
    sum = sum * rest + 1.0f / 120.0f;
    sum = sum * rest + 1.0f / 24.0f;
    sum = sum * rest + 1.0f / 6.0f;
    sum = sum * rest + 0.5f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    const VecInt power = __builtin_convertvector(whole, VecInt);
    const VecInt bits = reinterpret_cast<VecInt &>(sum) + (power << 23);
    const VecInt kept = bits & ~gone;
    return reinterpret_cast<const Vec &>(kept);
}

enum class Kind { f32, f16, q8_0, q4_0, other };
typedef void (*Convert)(const void * from, float * to, int64_t count);

// The rows of one head: `size` numbers each, `stride` bytes apart.
struct Cache {
    const char * data;
    size_t stride;
    int size;
    Kind kind;
    Convert convert;  // for the kinds that are not unpacked here
};

static SEKISHO_INLINE float half(const char * from) {
    uint16_t bits;
    memcpy(&bits, from, 2);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#elif defined(__ARM_FP16_FORMAT_IEEE)
    __fp16 value;
    memcpy(&value, &bits, 2);
    return value;
#else
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, rest = bits & 0x7fff;
    uint32_t whole;
    float value;
    if (rest >= 0x7c00) {
        whole = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        whole = sign | ((rest << 13) + 0x38000000);
    } else {
        value = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -value : value;
    }
    memcpy(&value, &whole, 4);
    return value;
#endif
}

// 16 numbers of 8 bits. Compilers make single steps of __builtin_convertvector from 8 bits, hence the intrinsics.
static SEKISHO_INLINE void widen(Sixteen from, float scale, float * to) {
#if defined(__AVX512F__)
    const __m512i whole = _mm512_cvtepi8_epi32((__m128i)from);
    _mm512_storeu_ps(to, _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(scale)));
#elif defined(__AVX2__)
    const __m128i bytes = (__m128i)from;
    const __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    const __m256 second = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
    _mm256_storeu_ps(to, _mm256_mul_ps(first, _mm256_set1_ps(scale)));
    _mm256_storeu_ps(to + 8, _mm256_mul_ps(second, _mm256_set1_ps(scale)));
#else
    for (int at = 0; at < 16; ++at) {
        to[at] = static_cast<float>(from[at]) * scale;
    }
#endif
}

// `count` rows from position `first`, one after another, as 32-bit numbers.
static void unpack(const Cache & cache, int64_t first, int count, float * to) {
    const int size = cache.size;
    const char * row = cache.data + first * cache.stride;
    for (int at = 0; at < count; ++at, row += cache.stride, to += size) {
        switch (cache.kind) {
            case Kind::f32:
                memcpy(to, row, size * sizeof(float));
                break;
#if defined(__AVX512F__)
            case Kind::f16:
                for (int d = 0; d < size; d += 16) {
                    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + 2 * d));
                    _mm512_storeu_ps(to + d, _mm512_cvtph_ps(bits));
                }
                break;
#elif defined(__F16C__)
            case Kind::f16:
                for (int d = 0; d < size; d += 8) {
                    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 2 * d));
                    _mm256_storeu_ps(to + d, _mm256_cvtph_ps(bits));
                }
                break;
#else
            case Kind::f16:
                for (int d = 0; d < size; ++d) {
                    to[d] = half(row + 2 * d);
                }
                break;
#endif
            case Kind::q8_0: {
                const char * block = row;  // 2 bytes of scale, 32 numbers of 8 bits
                for (int d = 0; d < size; d += 32, block += 34) {
                    const Sixteen * numbers = reinterpret_cast<const Sixteen *>(block + 2);
                    const float scale = half(block);
                    widen(numbers[0], scale, to + d);
                    widen(numbers[1], scale, to + d + 16);
                }
                break;
            }
            case Kind::q4_0: {
                const char * block = row;  // 2 bytes of scale, 16 bytes: the low halves are the first 16 numbers
                for (int d = 0; d < size; d += 32, block += 18) {
                    const Packed packed = *reinterpret_cast<const Packed *>(block + 2);
                    const float scale = half(block);
                    widen((Sixteen)((packed & 15) - 8), scale, to + d);
                    widen((Sixteen)((packed >> 4) - 8), scale, to + d + 16);
                }
                break;
            }
            default:
                cache.convert(row, to, size);
        }
    }
}

// c (M x N) = or += a (M x K) * b (K x N). Element (m, k) of a lies at m * a_row + k * a_step.
template <int M, int V, bool Add>
static SEKISHO_INLINE void product(float * c, int c_row, const float * a, int a_row, int a_step, const float * b,
                                   int b_row, int inner) {
    Vec sums[M][V];
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) {
            sums[m][v] = Add ? load(c + m * c_row + v * kWidth) : Vec{};
        }
    }
    for (int k = 0; k < inner; ++k) {
        Vec right[V];
        for (int v = 0; v < V; ++v) {
            right[v] = load(b + k * b_row + v * kWidth);
        }
        for (int m = 0; m < M; ++m) {
            const float left = a[m * a_row + k * a_step];
            for (int v = 0; v < V; ++v) {
                sums[m][v] += left * right[v];
            }
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) {
            store(c + m * c_row + v * kWidth, sums[m][v]);
        }
    }
}

template <int V, bool Add>
static void columns(float * c, int c_row, int rows, const float * a, int a_row, int a_step, const float * b, int b_row,
                    int inner) {
    int m = 0;
    for (; m + kTileRows <= rows; m += kTileRows) {
        product<kTileRows, V, Add>(c + m * c_row, c_row, a + m * a_row, a_row, a_step, b, b_row, inner);
    }
    for (; m + 4 <= rows; m += 4) {
        product<4, V, Add>(c + m * c_row, c_row, a + m * a_row, a_row, a_step, b, b_row, inner);
    }
    for (; m < rows; ++m) {
        product<1, V, Add>(c + m * c_row, c_row, a + m * a_row, a_row, a_step, b, b_row, inner);
    }
}

template <bool Add>
static void multiply(float * c, int c_row, int rows, int wide, const float * a, int a_row, int a_step, const float * b,
                     int b_row, int inner) {
    int n = 0;
    for (; n + kTileVectors * kWidth <= wide; n += kTileVectors * kWidth) {
        columns<kTileVectors, Add>(c + n, c_row, rows, a, a_row, a_step, b + n, b_row, inner);
    }
    for (; n < wide; n += kWidth) {
        columns<1, Add>(c + n, c_row, rows, a, a_row, a_step, b + n, b_row, inner);
    }
}

// The scores of one row with `Count` positions (a power of two), a lane each; below kWidth, the lanes repeat.
template <int Count>
static SEKISHO_INLINE Vec dots(const float * query, const float * keys, int size) {
    if constexpr (Count == 1) {
        Vec sum = load(query) * load(keys);
        for (int d = kWidth; d < size; d += kWidth) {
            sum += load(query + d) * load(keys + d);
        }
        return sum;
    } else {
        const Vec first = dots<Count / 2>(query, keys, size);
        const Vec second = dots<Count / 2>(query, keys + Count / 2 * size, size);
        return pairs(first, second);
    }
}

// What a mask says of a block of positions to a row.
enum class Seen { all, none, some };

static SEKISHO_INLINE Seen seen(const uint16_t * mask, int count) {
    uint16_t any = 0, never = 0;
    for (int p = 0; p < count; ++p) {
        any |= mask[p];
        never |= static_cast<uint16_t>(mask[p] ^ kMinusInfinity);
    }
    return any == 0 ? Seen::all : never == 0 ? Seen::none : Seen::some;
}

// A score with what the mask says: where that is minus infinity, whatever lies in the cache does not matter.
static SEKISHO_INLINE float masked(float score, uint16_t mask) {
    return mask == kMinusInfinity ? kNever : std::max(score + half(reinterpret_cast<const char *>(&mask)), kNever);
}

// Rows that share a key/value head, and what they have come to.
struct Task {
    Cache keys, values;
    int rows;                   // at most kRows
    float scale;                // of the scores
    const float * query[kRows];
    const uint16_t * mask[kRows];  // half floats, one a position; null: everything is seen
};

struct Sums {
    float largest[kRows];
    float total[kRows];
    float * out;  // rows x values.size
};

// Numbers that a task needs beside its sums.
static inline size_t room(int key_size, int value_size) {
    return static_cast<size_t>(kRows) * key_size + kBlock * key_size + kBlock * value_size + kBlock * kRows + 64;
}

// A new maximum: what was summed up under the old one weighs less.
static SEKISHO_INLINE void weaken(const Task & task, Sums & sums, const float * factor) {
    const int size = task.values.size;
    for (int r = 0; r < task.rows; ++r) {
        if (factor[r] != 1.0f) {
            sums.total[r] *= factor[r];
            for (int d = 0; d < size; d += kWidth) {
                store(sums.out + r * size + d, load(sums.out + r * size + d) * factor[r]);
            }
        }
    }
}

static void few_rows(const Task & task, const float * queries, const float * keys, int count, const Seen * saw,
                     int64_t first, float * weights, Sums & sums) {
    float factor[kRows];
    for (int r = 0; r < task.rows; ++r) {
        float * row = weights + r * kBlock;
        Vec most = all(kNever);
        for (int p = 0; p < count; p += kWidth) {
            Vec scores = dots<kWidth>(queries + r * task.keys.size, keys + p * task.keys.size, task.keys.size);
            store(row + p, scores);
        }
        if (saw[r] != Seen::all) {
            for (int p = 0; p < count; ++p) {
                row[p] = masked(row[p], task.mask[r][first + p]);
            }
        }
        for (int p = count; p % kWidth != 0; ++p) {
            row[p] = kNever;
        }
        for (int p = 0; p < count; p += kWidth) {
            most = larger(most, load(row + p));
        }
        float largest = sums.largest[r];
        for (int lane = 0; lane < kWidth; ++lane) {
            largest = std::max(largest, most[lane]);
        }
        factor[r] = largest > sums.largest[r] ? expf(sums.largest[r] - largest) : 1.0f;
        sums.largest[r] = largest;
        Vec total = {};
        for (int p = 0; p < count; p += kWidth) {
            const Vec weight = exponential(load(row + p) - largest);
            store(row + p, weight);
            total += weight;
        }
        float added = 0;
        for (int lane = 0; lane < kWidth; ++lane) {
            added += total[lane];
        }
        weights[kRows * kBlock + r] = added;
    }
    weaken(task, sums, factor);
    for (int r = 0; r < task.rows; ++r) {
        sums.total[r] += weights[kRows * kBlock + r];
    }
}

static void many_rows(const Task & task, const float * queries, const float * keys, int count, int lanes,
                      const Seen * saw, int64_t first, float * weights, Sums & sums) {
    multiply<false>(weights, kRows, count, lanes, keys, task.keys.size, 1, queries, kRows, task.keys.size);
    for (int r = 0; r < task.rows; ++r) {
        if (saw[r] == Seen::all) {
            continue;
        }
        for (int p = 0; p < count; ++p) {
            float & score = weights[p * kRows + r];
            score = masked(score, task.mask[r][first + p]);
        }
    }
    alignas(64) float factor[kRows];
    for (int r = 0; r < lanes; r += kWidth) {
        const Vec old = load(sums.largest + r);
        Vec most = old;
        for (int p = 0; p < count; ++p) {
            most = larger(most, load(weights + p * kRows + r));
        }
        store(factor + r, exponential(old - most));
        store(sums.largest + r, most);
    }
    weaken(task, sums, factor);
    for (int r = 0; r < lanes; r += kWidth) {
        const Vec most = load(sums.largest + r);
        Vec total = load(sums.total + r);
        for (int p = 0; p < count; ++p) {
            const Vec weight = exponential(load(weights + p * kRows + r) - most);
            store(weights + p * kRows + r, weight);
            total += weight;
        }
        store(sums.total + r, total);
    }
}

// Values that no row may see count nothing, also where they are no numbers: nobody clears a cache.
static void forget_unseen(const Task & task, const Seen * saw, int64_t first, int count, float * values) {
    for (int p = 0; p < count; ++p) {
        bool any = false;
        for (int r = 0; r < task.rows && !any; ++r) {
            any = saw[r] == Seen::all || task.mask[r][first + p] != kMinusInfinity;
        }
        if (!any) {
            memset(values + p * task.values.size, 0, sizeof(float) * task.values.size);
        }
    }
}

// Whether all of them are numbers. `count`: a multiple of kWidth.
static bool numbers(const float * values, int count) {
    Vec sum = {};
    for (int at = 0; at < count; at += kWidth) {
        sum += load(values + at) * 0.0f;
    }
    bool good = true;
    for (int lane = 0; lane < kWidth; ++lane) {
        good &= sum[lane] == 0.0f;
    }
    return good;
}

// The weighted sum of one row over a block where something is no number: nothing times that is no number either, so
// what the row may not see is passed over.
static void add_seen(const Task & task, int row, int64_t first, int count, const float * values, const float * weights,
                     int step, float * out) {
    for (int p = 0; p < count; ++p) {
        if (task.mask[row] != nullptr && task.mask[row][first + p] == kMinusInfinity) {
            continue;
        }
        for (int d = 0; d < task.values.size; ++d) {
            out[d] += weights[p * step] * values[p * task.values.size + d];
        }
    }
}

// Positions `first` to `last` for all rows of a task. `scratch`: room() numbers.
static void attend(const Task & task, int64_t first, int64_t last, float * scratch, Sums & sums) {
    const int key_size = task.keys.size, value_size = task.values.size;
    const bool few = task.rows <= kFewRows;
    const int lanes = (task.rows + kWidth - 1) / kWidth * kWidth;
    float * queries = scratch;
    float * keys = queries + kRows * key_size;
    float * values = keys + kBlock * key_size;
    float * weights = values + kBlock * value_size;
    if (!few) {
        memset(queries, 0, sizeof(float) * kRows * key_size);
    }
    for (int r = 0; r < task.rows; ++r) {
        for (int d = 0; d < key_size; ++d) {
            queries[few ? r * key_size + d : d * kRows + r] = task.query[r][d] * task.scale;
        }
    }
    std::fill(sums.largest, sums.largest + kRows, kNever);
    std::fill(sums.total, sums.total + kRows, 0.0f);
    memset(sums.out, 0, sizeof(float) * task.rows * value_size);
    for (int64_t at = first; at < last; at += kBlock) {
        const int count = static_cast<int>(std::min<int64_t>(kBlock, last - at));
        Seen saw[kRows];
        bool any = false, whole = true;
        for (int r = 0; r < task.rows; ++r) {
            const uint16_t * mask = task.mask[r];
            const bool same = r > 0 && mask == task.mask[r - 1];
            saw[r] = mask == nullptr ? Seen::all : same ? saw[r - 1] : seen(mask + at, count);
            any |= saw[r] != Seen::none;
            whole &= saw[r] == Seen::all;
        }
        if (!any) {
            continue;
        }
        unpack(task.keys, at, count, keys);
        unpack(task.values, at, count, values);
        forget_unseen(task, saw, at, count, values);
        // A row's weight of position p lies at r * row_step + p * step.
        const int row_step = few ? kBlock : 1, step = few ? 1 : kRows;
        if (few) {
            for (int p = count; p % kWidth != 0; ++p) {
                memset(keys + p * key_size, 0, sizeof(float) * key_size);
            }
            few_rows(task, queries, keys, count, saw, at, weights, sums);
        } else {
            many_rows(task, queries, keys, count, lanes, saw, at, weights, sums);
        }
        if (whole || numbers(values, count * value_size)) {
            multiply<true>(sums.out, value_size, task.rows, value_size, weights, row_step, step, values, value_size,
                           count);
            continue;
        }
        for (int r = 0; r < task.rows; ++r) {
            add_seen(task, r, at, count, values, weights + r * row_step, step, sums.out + r * value_size);
        }
    }
}

}  // namespace sekisho

#endif  // SEKISHO_ATTENTION
