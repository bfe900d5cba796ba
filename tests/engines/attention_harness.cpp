// The attention kernel behind a C interface, for the tests: one task, its sums as they are.

#include "sekisho_attention.hpp"

static_assert(sekisho::kBlock == 64 && sekisho::kRows == 64, "the tests choose sizes around these");

extern "C" int width() { return sekisho::kWidth; }

// Any other kind: numbers of 32 bits, by a function of the caller's.
static void copied(const void * from, float * to, int64_t count) { memcpy(to, from, count * sizeof(float)); }

extern "C" void attend(const char * keys, int64_t key_stride, int key_size, int key_kind, const char * values,
                       int64_t value_stride, int value_size, int value_kind, int rows, float scale,
                       const float * queries, const uint16_t * mask, int64_t positions, int64_t first, int64_t last,
                       float * out, float * largest, float * total) {
    using namespace sekisho;
    Task task;
    task.keys = {keys, static_cast<size_t>(key_stride), key_size, static_cast<Kind>(key_kind), copied};
    task.values = {values, static_cast<size_t>(value_stride), value_size, static_cast<Kind>(value_kind), copied};
    task.rows = rows;
    task.scale = scale;
    for (int r = 0; r < rows; ++r) {
        task.query[r] = queries + r * key_size;
        task.mask[r] = mask == nullptr ? nullptr : mask + r * positions;
    }
    std::vector<float> scratch(room(key_size, value_size));
    Sums sums;
    sums.out = out;
    attend(task, first, last, scratch.data(), sums);
    memcpy(largest, sums.largest, rows * sizeof(float));
    memcpy(total, sums.total, rows * sizeof(float));
}
