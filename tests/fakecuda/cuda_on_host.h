/* Enough of CUDA for a host compiler to run a kernel without a GPU: blocks and warps one after the other, and the 32 lanes of
 * a warp as coroutines that wait for each other at every instruction that crosses lanes. Include it before the kernel, and name
 * each kernel in LAUNCHABLE. It proves the arithmetic, not the speed; barriers and shared memory are not there, as no kernel of
 * ours uses any. tests/host_nvcc.py makes a library of it, which the stand-in drivers load as if it were a cubin.
 */
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstring>
#include <tuple>
#include <utility>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(n)
#define __restrict__

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct uchar4 { unsigned char x, y, z, w; };

static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_host {

constexpr unsigned LANES = 32;
constexpr std::size_t STACK_BYTES = 64 * 1024;

struct Lane { jmp_buf at; std::vector<char> stack; bool begun, ended; unsigned given[2], n_given; };
inline Lane lanes[LANES];
inline jmp_buf scheduler;
inline unsigned current;
inline void (*kernel)(void *);
inline void *arguments;

/* To the scheduler, until it comes back to this lane. Jumps, and contexts for the first of them alone: those are system calls. */
__attribute__((noinline)) inline void yield()
{
    if (!_setjmp(lanes[current].at))
        _longjmp(scheduler, 1);
}

inline void lane_for_ever()
{
    for (;;) {
        kernel(arguments);
        lanes[current].ended = true;
        yield();
    }
}

/* The current lane goes on to its next crossing or its end. */
__attribute__((noinline)) inline void resume()
{
    Lane &lane = lanes[current];
    if (_setjmp(scheduler))
        return;
    if (lane.begun)
        _longjmp(lane.at, 1);
    lane.begun = true;
    ucontext_t fresh;
    getcontext(&fresh);
    lane.stack.resize(STACK_BYTES);
    fresh.uc_stack.ss_sp = lane.stack.data();
    fresh.uc_stack.ss_size = lane.stack.size();
    makecontext(&fresh, lane_for_ever, 0);
    setcontext(&fresh);
}

/* Each lane in turn, until all have ended. */
inline void run_warp()
{
    for (Lane &lane : lanes)
        lane.ended = false, lane.n_given = 0;
    for (bool going = true; going;) {
        going = false;
        for (current = 0; current < LANES; ++current)
            if (!lanes[current].ended) {
                threadIdx.x = current;
                resume();
                going = going || !lanes[current].ended;
            }
    }
}

/* Every lane's value of this crossing. Two slots in turn: a lane may be at the next crossing before the last has read this. */
inline unsigned sum_of_all(unsigned value)
{
    Lane &lane = lanes[current];
    const unsigned slot = lane.n_given++ % 2;
    lane.given[slot] = value;
    yield();
    unsigned sum = 0;
    for (const Lane &each : lanes)
        sum += each.given[slot];
    return sum;
}

/* blockDim.x has to be 32. */
template <class Work> void launch(dim3 grid, dim3 block, Work work)
{
    gridDim = grid, blockDim = block;
    kernel = [](void *given) { (*static_cast<Work *>(given))(); };
    arguments = &work;
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
            for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
                run_warp();
    arguments = nullptr;
}

/* The next argument of a parameter buffer, which holds each at its natural alignment. */
template <class T> T next_argument(const char *buffer, std::size_t &at)
{
    T value;
    at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
    std::memcpy(&value, buffer + at, sizeof value);
    at += sizeof value;
    return value;
}

/* What cuLaunchKernel does. False where block or arguments are not what the kernel takes; nothing is run then.
 * perform: with 0 it is only looked at. */
template <class... Arguments>
bool launch_packed(void (*function)(Arguments...), const unsigned dims[6], const char *buffer, std::size_t size, int perform)
{
    std::size_t at = 0;
    ((at = (at + alignof(Arguments) - 1) / alignof(Arguments) * alignof(Arguments) + sizeof(Arguments)), ...);
    if (at != size || dims[3] != LANES || dims[2] != 1 || dims[5] != 1)
        return false;
    at = 0;
    std::tuple<Arguments...> given{next_argument<Arguments>(buffer, at)...}; // braces: in this order
    if (perform)
        launch({dims[0], dims[1], 1}, {dims[3], dims[4], 1}, [&] { std::apply(function, given); });
    return true;
}

} // namespace on_host

#define LAUNCHABLE(name)                                                                                                           \
    extern "C" int launch_##name(const unsigned dims[6], const char *buffer, std::size_t size, int perform)                        \
    {                                                                                                                              \
        return on_host::launch_packed(name, dims, buffer, size, perform);                                                          \
    }

inline unsigned __reduce_add_sync(unsigned, unsigned value) { return on_host::sum_of_all(value); }
