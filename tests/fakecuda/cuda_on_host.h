/* Enough of CUDA for a host compiler to run a kernel without a GPU: blocks and warps one after the other, and the 32 lanes of
 * a warp as coroutines that wait for each other at every instruction that crosses lanes. Include it before the kernel, and call
 * `launch`. It proves the arithmetic, not the speed; barriers and shared memory are not there, as no kernel of ours uses any.
 */
#pragma once
#include <cmath>
#include <cstddef>
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

struct Lane { ucontext_t context; std::vector<char> stack; bool ended; unsigned given[2], n_given; };
inline Lane lanes[LANES];
inline ucontext_t scheduler;
inline unsigned current;
inline void (*kernel)(void *);
inline void *arguments;

inline void run_lane()
{
    kernel(arguments);
    lanes[current].ended = true;
}

/* Each lane in turn goes on to its next crossing or its end, until all have ended. */
inline void run_warp()
{
    for (Lane &lane : lanes) {
        getcontext(&lane.context);
        lane.stack.resize(STACK_BYTES);
        lane.context.uc_stack.ss_sp = lane.stack.data();
        lane.context.uc_stack.ss_size = lane.stack.size();
        lane.context.uc_link = &scheduler;
        lane.ended = false;
        lane.n_given = 0;
        makecontext(&lane.context, run_lane, 0);
    }
    for (bool going = true; going;) {
        going = false;
        for (current = 0; current < LANES; ++current)
            if (!lanes[current].ended) {
                threadIdx.x = current;
                swapcontext(&scheduler, &lanes[current].context);
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
    swapcontext(&lane.context, &scheduler);
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

} // namespace on_host

inline unsigned __reduce_add_sync(unsigned, unsigned value) { return on_host::sum_of_all(value); }
