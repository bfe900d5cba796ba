// The attention kernel behind a C interface, for the tests: one task, its sums as they are.

#include "sekisho_attention.hpp"

static_assert(sekisho::kBlock == 64 && sekisho::kRows == 64, "the tests choose sizes around these");

extern "C" int width() { return sekisho::kWidth; }

// Any other kind: numbers of 32 bits, by a function of the caller's.
static void copied(const void * from, float * to, int64_t count) { memcpy(to, from, count * sizeof(float)); }

// `sharing` rows after one another have a mask in common, as heads of one position do.
extern "C" void attend(const char * keys, int64_t key_stride, int key_size, int key_kind, const char * values,
                       int64_t value_stride, int value_size, int value_kind, int rows, float scale,
                       const float * queries, const uint16_t * mask, int sharing, int64_t positions, int64_t first,
                       int64_t last, float * out, float * largest, float * total) {
    using namespace sekisho;
    Task task;
    task.keys = {keys, static_cast<size_t>(key_stride), key_size, static_cast<Kind>(key_kind), copied};
    task.values = {values, static_cast<size_t>(value_stride), value_size, static_cast<Kind>(value_kind), copied};
    task.rows = rows;
    task.scale = scale;
    for (int r = 0; r < rows; ++r) {
        task.query[r] = queries + r * key_size;
        task.mask[r] = mask == nullptr ? nullptr : mask + r / sharing * positions;
    }
    std::vector<float> scratch(room(key_size, value_size));
    Sums sums;
    sums.out = out;
    attend(task, first, last, scratch.data(), sums);
    memcpy(largest, sums.largest, rows * sizeof(float));
    memcpy(total, sums.total, rows * sizeof(float));
}

#ifdef SEKISHO_ALONE

#include <cstdio>
#include <cstdlib>

// A program for the compiler's sanitizers: memory of exactly the size that is needed. All values are 1, so is the
// weighted sum of them, divided by the sum of the weights.

constexpr int kSize = 32;  // numbers of a head: one block of the packed kinds
constexpr int kBytes[] = {128, 64, 34, 18};

static std::vector<char> cached(int kind, int positions, bool ones) {
    std::vector<char> bytes(static_cast<size_t>(positions) * kBytes[kind]);
    const uint16_t half_scale = ones ? 0x3c00 : 0x2000;  // 1, 2^-7
    for (int position = 0; position < positions; ++position) {
        char * row = bytes.data() + position * kBytes[kind];
        for (int d = 0; d < kSize; ++d) {
            const unsigned some = (position * kSize + d) * 2654435761u >> 9;
            const float number = ones ? 1.0f : static_cast<float>(some % 1000) / 500 - 1;
            const uint16_t bits = ones ? 0x3c00 : some & 0x3fff;
            if (kind == 0) {
                memcpy(row + 4 * d, &number, 4);
            } else if (kind == 1) {
                memcpy(row + 2 * d, &bits, 2);
            } else if (kind == 2) {
                row[2 + d] = static_cast<char>(ones ? 1 : some);
            } else if (d < kSize / 2) {
                row[2 + d] = static_cast<char>(ones ? 0x99 : some);
            }
        }
        if (kind > 1) {
            memcpy(row, &half_scale, 2);
        }
    }
    return bytes;
}

static bool ones(int rows, int positions, int kind) {
    const int other = (kind + rows) % 4;
    const std::vector<char> keys = cached(kind, positions, false), values = cached(other, positions, true);
    const std::vector<float> queries(rows * kSize, 0.5f);
    std::vector<float> out(rows * kSize), largest(rows), total(rows);
    std::vector<uint16_t> mask(static_cast<size_t>(rows) * positions);
    for (size_t at = 0; at < mask.size(); ++at) {
        mask[at] = at % positions != 0 && at % 3 == 0 ? 0xfc00 : 0;
    }
    for (const uint16_t * seen : {static_cast<const uint16_t *>(nullptr), static_cast<const uint16_t *>(mask.data())}) {
        attend(keys.data(), kBytes[kind], kSize, kind, values.data(), kBytes[other], kSize, other, rows, 0.2f,
               queries.data(), seen, 1, positions, 0, positions, out.data(), largest.data(), total.data());
        for (int at = 0; at < rows * kSize; ++at) {
            if (!(fabsf(out[at] / total[at / kSize] - 1) < 1e-5f)) {
                printf("wrong: rows %d, positions %d, kinds %d %d\n", rows, positions, kind, other);
                return false;
            }
        }
    }
    return true;
}

int main() {
    bool fine = true;
    for (int rows = 1; rows <= 64; ++rows) {
        for (int positions = 1 + rows % 3; positions <= 200; positions += 3) {  // each of them at every third number
            fine = ones(rows, positions, positions % 4) && fine;
        }
    }
    return fine ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif  // SEKISHO_ALONE
