// What the adapter of Sekisho's attention uses of ggml, for tests that have no sources of llama.cpp. The real one is
// compiled by `sekisho engine build-native`, whose check compares what that build answers with the wheel.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

enum ggml_type {
    GGML_TYPE_F32 = 0,
    GGML_TYPE_F16 = 1,
    GGML_TYPE_Q4_0 = 2,
    GGML_TYPE_Q8_0 = 8,
    GGML_TYPE_I32 = 26,
    GGML_TYPE_BF16 = 30,
};

typedef uint16_t ggml_fp16_t;

// Numbers and bytes from one to the next, the innermost dimension first; for packed types bytes from block to block.
struct ggml_tensor {
    ggml_type type;
    int64_t ne[4];
    size_t nb[4];
    int32_t op_params[16];
    ggml_tensor * src[10];
    void * data;
};

struct ggml_threadpool;

struct ggml_compute_params {
    int ith, nth;
    size_t wsize;
    void * wdata;
    ggml_threadpool * threadpool;
    bool use_ref;
};

extern "C" void ggml_barrier(ggml_threadpool * pool);
extern "C" void ggml_threadpool_chunk_set(ggml_threadpool * pool, int value);
extern "C" int ggml_threadpool_chunk_add(ggml_threadpool * pool, int value);  // what it was before

struct ggml_type_traits {
    int64_t blck_size;
    size_t type_size;
    void (*to_float)(const void * from, float * to, int64_t count);
};

static void converting();  // the harness may keep a thread here

static void from_bf16(const void * from, float * to, int64_t count) {
    converting();
    for (int64_t at = 0; at < count; ++at) {
        uint16_t upper;
        memcpy(&upper, static_cast<const char *>(from) + 2 * at, 2);
        const uint32_t bits = static_cast<uint32_t>(upper) << 16;
        memcpy(to + at, &bits, 4);
    }
}

// Of types that the kernel unpacks itself: nothing that a test would take for right.
static void not_asked(const void *, float * to, int64_t count) {
    for (int64_t at = 0; at < count; ++at) {
        to[at] = NAN;
    }
}

static const ggml_type_traits * ggml_get_type_traits(ggml_type type) {
    static const ggml_type_traits f32 = {1, 4, nullptr}, f16 = {1, 2, not_asked}, bf16 = {1, 2, from_bf16};
    static const ggml_type_traits q4_0 = {32, 18, not_asked}, q8_0 = {32, 34, not_asked}, i32 = {1, 4, nullptr};
    switch (type) {
        case GGML_TYPE_F32:
            return &f32;
        case GGML_TYPE_F16:
            return &f16;
        case GGML_TYPE_Q4_0:
            return &q4_0;
        case GGML_TYPE_Q8_0:
            return &q8_0;
        case GGML_TYPE_BF16:
            return &bf16;
        default:
            return &i32;
    }
}

static size_t ggml_type_size(ggml_type type) { return ggml_get_type_traits(type)->type_size; }
static int64_t ggml_blck_size(ggml_type type) { return ggml_get_type_traits(type)->blck_size; }
