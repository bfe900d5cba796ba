// ggml's flash attention, done by sekisho_attention.hpp. Included in ggml-cpu/ops.cpp, above the functions that it is
// asked from.

#pragma once

#include "sekisho_attention.hpp"

#include <cstdlib>

#ifdef SEKISHO_ATTENTION

namespace sekisho {

constexpr int64_t kPart = 512;  // positions; less is not worth a task of its own

static Cache cache_of(const ggml_tensor * tensor, int64_t head, int64_t stream) {
    Cache cache;
    cache.data = static_cast<const char *>(tensor->data) + head * tensor->nb[2] + stream * tensor->nb[3];
    cache.stride = tensor->nb[1];
    cache.size = static_cast<int>(tensor->ne[0]);
    cache.convert = ggml_get_type_traits(tensor->type)->to_float;
    switch (tensor->type) {
        case GGML_TYPE_F32:
            cache.kind = Kind::f32;
            break;
        case GGML_TYPE_F16:
            cache.kind = Kind::f16;
            break;
        case GGML_TYPE_Q8_0:
            cache.kind = Kind::q8_0;
            break;
        case GGML_TYPE_Q4_0:
            cache.kind = Kind::q4_0;
            break;
        default:
            cache.kind = Kind::other;
    }
    return cache;
}

// How the work is cut. Rows: positions of the prompt times heads that share keys; for one or two positions, a context
// in parts too, so that no thread is idle.
struct Plan {
    int64_t group, rows, tiles, heads, streams, parts, part;

    int64_t tasks() const { return streams * heads * tiles * parts; }
};

static Plan plan_of(const ggml_compute_params * params, const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    Plan plan;
    plan.heads = k->ne[2];
    plan.group = q->ne[2] / k->ne[2];
    plan.streams = q->ne[3];
    plan.rows = q->ne[1] * plan.group;
    plan.tiles = (plan.rows + kRows - 1) / kRows;
    plan.parts = 1;
    const int64_t each = plan.streams * plan.heads * plan.tiles, wanted = 2 * params->nth;
    if (each < wanted) {
        const int64_t sums = plan.streams * plan.heads * plan.rows * (2 + dst->ne[0]) * sizeof(float);
        const int64_t fit = static_cast<int64_t>(params->wsize) / sums;
        const int64_t worth = k->ne[1] / kPart;
        plan.parts = std::max<int64_t>(1, std::min({(wanted + each - 1) / each, fit, worth}));
    }
    plan.part = (k->ne[1] + plan.parts - 1) / plan.parts;
    plan.part = (plan.part + kBlock - 1) / kBlock * kBlock;
    return plan;
}

static bool known(const ggml_tensor * tensor) {
    const ggml_type type = tensor->type;
    const bool unpacked = type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float != nullptr;
    return unpacked && tensor->nb[0] == ggml_type_size(type) && tensor->ne[0] % 16 == 0 &&
           tensor->ne[0] % ggml_blck_size(type) == 0;
}

// Whether this is ours to do. The same in every thread.
static bool wanted(const ggml_compute_params * params, const ggml_tensor * dst) {
    static const bool off = [] {
        const char * said = getenv("SEKISHO_NATIVE_ATTENTION");
        return said != nullptr && strcmp(said, "0") == 0;
    }();
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    const ggml_tensor * mask = dst->src[3];
    float bias, softcap;
    memcpy(&bias, reinterpret_cast<const float *>(dst->op_params) + 1, sizeof(float));
    memcpy(&softcap, reinterpret_cast<const float *>(dst->op_params) + 2, sizeof(float));
    if (off || params->use_ref || bias != 0.0f || softcap != 0.0f || q->type != GGML_TYPE_F32) {
        return false;
    }
    if (mask != nullptr && (mask->type != GGML_TYPE_F16 || mask->nb[0] != sizeof(ggml_fp16_t))) {
        return false;
    }
    return known(k) && known(v) && q->nb[0] == sizeof(float) && dst->nb[0] == sizeof(float) && k->ne[2] == v->ne[2] &&
           k->ne[3] == v->ne[3] && q->ne[2] % k->ne[2] == 0 && q->ne[3] % k->ne[3] == 0;
}

// One row is done: what a sink takes (a score without a value) is counted, and it is divided by the sum.
static void finish(ggml_tensor * dst, int64_t position, int64_t head, int64_t stream, float largest, float total,
                   const float * sum) {
    float factor = 1.0f;
    const ggml_tensor * sinks = dst->src[4];
    const bool nothing = largest <= kNever / 2;
    total = nothing ? 0.0f : total;
    if (sinks != nullptr) {
        const float sink = static_cast<const float *>(sinks->data)[head];
        const float most = std::max(largest, sink);
        factor = expf(largest - most);
        total = total * factor + expf(sink - most);
    }
    factor = total == 0.0f || nothing ? 0.0f : factor / total;
    const int64_t row = (stream * dst->ne[2] + position) * dst->ne[1] + head;
    float * to = reinterpret_cast<float *>(static_cast<char *>(dst->data) + row * dst->nb[1]);
    for (int64_t d = 0; d < dst->ne[0]; ++d) {
        to[d] = sum[d] * factor;
    }
}

static void do_task(const ggml_compute_params * params, ggml_tensor * dst, const Plan & plan, int64_t number) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    const ggml_tensor * mask = dst->src[3];
    const int64_t part = number % plan.parts, tile = number / plan.parts % plan.tiles;
    const int64_t head = number / plan.parts / plan.tiles % plan.heads;
    const int64_t stream = number / plan.parts / plan.tiles / plan.heads;
    const int64_t shared = stream / (q->ne[3] / k->ne[3]);
    Task task;
    task.keys = cache_of(k, head, shared);
    task.values = cache_of(v, head, shared);
    task.rows = static_cast<int>(std::min<int64_t>(kRows, plan.rows - tile * kRows));
    memcpy(&task.scale, dst->op_params, sizeof(float));
    for (int r = 0; r < task.rows; ++r) {
        const int64_t row = tile * kRows + r, position = row / plan.group;
        const int64_t query_head = head * plan.group + row % plan.group;
        task.query[r] = reinterpret_cast<const float *>(static_cast<const char *>(q->data) + position * q->nb[1] +
                                                        query_head * q->nb[2] + stream * q->nb[3]);
        task.mask[r] = mask == nullptr
                           ? nullptr
                           : reinterpret_cast<const uint16_t *>(
                                 static_cast<const char *>(mask->data) + position * mask->nb[1] +
                                 query_head % mask->ne[2] * mask->nb[2] + stream % mask->ne[3] * mask->nb[3]);
    }
    const int value_size = task.values.size;
    const size_t needed = room(task.keys.size, value_size) + static_cast<size_t>(kRows) * value_size;
    static thread_local std::vector<float> scratch;
    if (scratch.size() < needed) {
        scratch.resize(needed);
    }
    alignas(64) Sums sums;
    sums.out = scratch.data() + room(task.keys.size, value_size);
    const int64_t first = part * plan.part, last = std::min(first + plan.part, k->ne[1]);
    attend(task, first, last, scratch.data(), sums);
    for (int r = 0; r < task.rows; ++r) {
        const int64_t row = tile * kRows + r;
        const float * out = sums.out + r * value_size;
        if (plan.parts == 1) {
            finish(dst, row / plan.group, head * plan.group + row % plan.group, stream, sums.largest[r],
                   sums.total[r], out);
            continue;
        }
        const int64_t at = ((stream * plan.heads + head) * plan.rows + row) * plan.parts + part;
        float * kept = static_cast<float *>(params->wdata) + at * (2 + value_size);
        kept[0] = sums.largest[r];
        kept[1] = sums.total[r];
        memcpy(kept + 2, out, sizeof(float) * value_size);
    }
}

// The parts of a row become one, in the first part's place.
static void join(const ggml_compute_params * params, ggml_tensor * dst, const Plan & plan) {
    const int64_t value_size = dst->ne[0], size = 2 + value_size;
    const int64_t all_rows = plan.streams * plan.heads * plan.rows;
    for (int64_t at = params->ith; at < all_rows; at += params->nth) {
        float * sum = static_cast<float *>(params->wdata) + at * plan.parts * size;
        float largest = sum[0];
        for (int64_t part = 1; part < plan.parts; ++part) {
            largest = std::max(largest, sum[part * size]);
        }
        float total = 0;
        for (int64_t part = 0; part < plan.parts; ++part) {
            const float * other = sum + part * size;
            const float factor = expf(other[0] - largest);
            total += other[1] * factor;
            for (int64_t d = 2; d < size; ++d) {
                sum[d] = (part == 0 ? 0.0f : sum[d]) + other[d] * factor;
            }
        }
        const int64_t row = at % plan.rows, head = at / plan.rows % plan.heads;
        const int64_t stream = at / plan.rows / plan.heads;
        finish(dst, row / plan.group, head * plan.group + row % plan.group, stream, largest, total, sum + 2);
    }
}

// False, and nothing done, where it is not ours.
static bool flash_attention(const ggml_compute_params * params, ggml_tensor * dst) {
    if (!wanted(params, dst)) {
        return false;
    }
    const Plan plan = plan_of(params, dst);
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t number = params->ith; number < plan.tasks();
         number = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        do_task(params, dst, plan, number);
    }
    if (plan.parts > 1) {
        ggml_barrier(params->threadpool);
        join(params, dst, plan);
    }
    return true;
}

}  // namespace sekisho

#endif  // SEKISHO_ATTENTION
