// ggml's flash attention by the adapter, behind a C interface, for the tests. In place of ggml stands a part of our
// own (ggml_stand_in.hpp): `sekisho engine build-native` compiles the adapter with the real one, and its check compares
// with the wheel.

#include "ggml_stand_in.hpp"
#include "sekisho_attention_op.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

// A thread that comes last: at its start or in its first conversion it waits until all others can do no more.
enum Late { nobody, at_start, in_conversion };

struct ggml_threadpool {
    std::mutex mutex;
    std::condition_variable changed;
    int threads;
    int waiting = 0, gone = 0, rounds = 0, arrivals = 0;
    std::atomic<int> chunk, conversions{0};
};

static thread_local ggml_threadpool * pool_here = nullptr;
static thread_local bool late_here = false;

// With the lock held. Who is gone is not waited for: a thread that left out a barrier is told by too few arrivals.
static void release_if_all(ggml_threadpool * pool) {
    if (pool->waiting > 0 && pool->waiting + pool->gone == pool->threads) {
        pool->waiting = 0;
        ++pool->rounds;
    }
    pool->changed.notify_all();
}

extern "C" void ggml_barrier(ggml_threadpool * pool) {
    std::unique_lock<std::mutex> lock(pool->mutex);
    const int round = pool->rounds;
    ++pool->arrivals;
    ++pool->waiting;
    release_if_all(pool);
    pool->changed.wait(lock, [&] { return pool->rounds != round; });
}

extern "C" void ggml_threadpool_chunk_set(ggml_threadpool * pool, int value) {
    pool->chunk.store(value, std::memory_order_relaxed);
}

extern "C" int ggml_threadpool_chunk_add(ggml_threadpool * pool, int value) {
    return pool->chunk.fetch_add(value, std::memory_order_relaxed);
}

static void wait_for_others(ggml_threadpool * pool) {
    std::unique_lock<std::mutex> lock(pool->mutex);
    pool->changed.wait(lock, [&] { return pool->waiting + pool->gone == pool->threads - 1; });
}

static void converting() {
    ++pool_here->conversions;
    if (late_here) {
        late_here = false;
        wait_for_others(pool_here);
    }
}

// The structures below are Python's too (attention_op_harness.py).

struct Tensor {
    int32_t type;
    int64_t ne[4], nb[4];
    void * data;  // null: there is no such tensor
};

struct Call {
    Tensor q, k, v, mask, sinks, out;
    float scale, max_bias, softcap;
    int32_t threads, use_ref, late, chunk;
    int64_t room;  // bytes
    void * work;
};

struct Outcome {
    int32_t taken;        // threads that said it is ours
    int32_t arrivals;     // at barriers, of all threads
    int32_t chunk;        // the counter at the end
    int32_t conversions;  // rows of keys and values that ggml unpacked
    int64_t parts;        // of a context
};

static ggml_tensor tensor_of(const Tensor & given) {
    ggml_tensor tensor = {};
    tensor.type = static_cast<ggml_type>(given.type);
    std::copy(given.ne, given.ne + 4, tensor.ne);
    std::copy(given.nb, given.nb + 4, tensor.nb);
    tensor.data = given.data;
    return tensor;
}

extern "C" void flash_attention(const Call * call, Outcome * outcome) {
    const Tensor * given[] = {&call->q, &call->k, &call->v, &call->mask, &call->sinks};
    ggml_tensor tensors[5], out = tensor_of(call->out);
    for (int at = 0; at < 5; ++at) {
        tensors[at] = tensor_of(*given[at]);
        out.src[at] = given[at]->data == nullptr ? nullptr : &tensors[at];
    }
    const float numbers[] = {call->scale, call->max_bias, call->softcap};
    memcpy(out.op_params, numbers, sizeof(numbers));
    ggml_threadpool pool;
    pool.threads = call->threads;
    pool.chunk = call->chunk;
    std::atomic<int> taken{0};
    const auto params_of = [&](int number) {
        return ggml_compute_params{number,     call->threads, static_cast<size_t>(call->room),
                                   call->work, &pool,         call->use_ref != 0};
    };
    const auto work = [&](int number) {
        const ggml_compute_params params = params_of(number);
        if (number == 0 && call->late == at_start) {
            wait_for_others(&pool);
        }
        pool_here = &pool;
        late_here = number == 0 && call->late == in_conversion;
        taken += sekisho::flash_attention(&params, &out);
        const std::lock_guard<std::mutex> lock(pool.mutex);
        ++pool.gone;
        release_if_all(&pool);
    };
    std::vector<std::thread> threads;
    for (int number = 0; number < call->threads; ++number) {
        threads.emplace_back(work, number);
    }
    for (std::thread & each : threads) {
        each.join();
    }
    const ggml_compute_params params = params_of(0);
    const int64_t parts = taken == 0 ? 0 : sekisho::plan_of(&params, &out).parts;
    *outcome = {taken, pool.arrivals, pool.chunk, pool.conversions, parts};
}

#ifdef SEKISHO_ALONE

#include <cstdio>
#include <cstdlib>

// A program for the compiler's sanitizers: memory of exactly the size that is needed. All values are 1, so is what
// comes out.
static bool ones(int group, int heads, int streams, int positions, int context, int size, int threads) {
    const int64_t n = size, all = n * heads;
    std::vector<float> queries(n * heads * group * positions * streams, 0.25f), out(queries.size(), NAN), sinks;
    std::vector<uint16_t> keys(all * context * streams), values(keys.size(), 0x3c00);
    std::vector<uint16_t> mask(static_cast<size_t>(context) * positions, 0);
    for (size_t at = 0; at < keys.size(); ++at) {
        keys[at] = at * 2654435761u >> 7 & 0x3fff;  // 0 to 2
    }
    for (size_t at = 0; at < mask.size(); ++at) {
        mask[at] = at % context != 0 && at % 3 == 0 ? 0xfc00 : 0;
    }
    const int64_t room = 4 * (2 + n) * heads * group * streams * positions * 3;
    std::vector<char> work(room);
    const auto seen = [&](void * data, int type, int64_t bytes, int64_t rows, int64_t of) {
        const int64_t row = bytes * n;
        return Tensor{type, {n, rows, of, streams}, {bytes, row * of, row, row * of * rows}, data};
    };
    Call call = {};
    call.q = seen(queries.data(), GGML_TYPE_F32, 4, positions, heads * group);
    call.k = seen(keys.data(), GGML_TYPE_F16, 2, context, heads);
    call.v = seen(values.data(), GGML_TYPE_F16, 2, context, heads);
    call.mask = {GGML_TYPE_F16, {context, positions, 1, 1}, {2, 2 * context, 0, 0}, mask.data()};
    const int64_t row = 4 * n, wide = row * heads * group;
    call.out = {GGML_TYPE_F32, {n, heads * group, positions, streams}, {4, row, wide, wide * positions}, out.data()};
    call.scale = 0.1f;
    call.threads = threads;
    call.room = room;
    call.work = work.data();
    Outcome outcome;
    flash_attention(&call, &outcome);
    const bool fine = std::all_of(out.begin(), out.end(), [](float each) { return fabsf(each - 1) < 1e-5f; });
    if (outcome.taken != threads || !fine) {
        printf("wrong: %d %d %d %d %d %d %d\n", group, heads, streams, positions, context, size, threads);
        return false;
    }
    return true;
}

int main() {
    bool fine = true;
    for (int context : {1, 15, 64, 65, 200, 1030, 1500, 1700}) {
        for (int positions : {1, 2, 3, 9, 40}) {
            for (int group : {1, 2, 7}) {
                for (int threads : {1, 2, 5}) {
                    fine = ones(group, 1 + context % 2, 1 + threads % 2, positions, context, 32, threads) && fine;
                }
            }
        }
    }
    return fine ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif  // SEKISHO_ALONE
