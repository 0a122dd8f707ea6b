// Crop and area means in one launch: the GPU's edge.clip.area_means, equal to it bit for bit.
//
// Borders and divisions are reckoned in double exactly as numpy does it there, and sums are whole numbers, so neither the
// order of the threads nor the card can change a bit. Only regions of at least `size` pixels a side: numpy's way for smaller
// ones is interpolation, and a cell without a pixel comes out as NaN here, never as a number.
//
// One warp per cell, 8 neighbouring cells a block, so that a block reads whole stretches of the frame's rows and each pixel
// is read once: what limits it is memory. A full 1920x1080 frame is 6.2 MB. Written for Orin (sm_87) and Thor (sm_110); the
// warp's sum in one instruction needs sm_80.
//
// Launch: grid ((size + 7) / 8, size), block (32, 8), no shared memory. pitch: bytes from a row to the next. BGRx needs frame
// and pitch at multiples of 4. means: float32 (size, size, 3) in 8-bit counts.

namespace {

constexpr unsigned WHOLE_WARP = 0xffffffffu;

struct Sums {
    unsigned blue, green, red; // a cell of 16 million pixels would fill them; the whole of 4K has 8.3
};

// Border i of `size` cells over `length` pixels: numpy's linspace(0, length, size + 1).round(), whose rint is CUDA's too.
__device__ int border(int i, int length, int size)
{
    return i == size ? length : static_cast<int>(rint(i * (static_cast<double>(length) / size)));
}

template <int STEP> __device__ void add(Sums &sums, const unsigned char *__restrict__ pixel);

template <> __device__ void add<3>(Sums &sums, const unsigned char *__restrict__ pixel)
{
    sums.blue += pixel[0];
    sums.green += pixel[1];
    sums.red += pixel[2];
}

template <> __device__ void add<4>(Sums &sums, const unsigned char *__restrict__ pixel)
{
    const uchar4 all = *reinterpret_cast<const uchar4 *>(pixel);
    sums.blue += all.x;
    sums.green += all.y;
    sums.red += all.z;
}

template <int STEP>
__device__ void area_means(const unsigned char *__restrict__ frame, size_t pitch, int x, int y, int w, int h, int size,
                           float *__restrict__ means)
{
    const int column = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y), row = static_cast<int>(blockIdx.y);
    if (column >= size) // the whole warp together
        return;
    const int left = border(column, w, size), width = border(column + 1, w, size) - left;
    const int top = border(row, h, size), height = border(row + 1, h, size) - top;
    const int count = width * height;
    const unsigned char *const first = frame + (y + top) * pitch + static_cast<size_t>(x + left) * STEP;

    Sums sums = {0, 0, 0};
    int across = static_cast<int>(threadIdx.x), down = 0;
    for (int i = across; i < count; i += 32, across += 32) {
        for (; across >= width; across -= width) // cells are often narrower than a warp; a division would cost more
            ++down;
        add<STEP>(sums, first + down * pitch + static_cast<size_t>(across) * STEP);
    }
    sums.blue = __reduce_add_sync(WHOLE_WARP, sums.blue);
    sums.green = __reduce_add_sync(WHOLE_WARP, sums.green);
    sums.red = __reduce_add_sync(WHOLE_WARP, sums.red);
    if (threadIdx.x < 3) { // 0 / 0 is NaN
        const unsigned sum = threadIdx.x == 0 ? sums.blue : threadIdx.x == 1 ? sums.green : sums.red;
        means[(static_cast<size_t>(row) * size + column) * 3 + threadIdx.x] = static_cast<float>(static_cast<double>(sum) / count);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(256) area_means_bgr(const unsigned char *__restrict__ frame, size_t pitch, int x,
                                                                 int y, int w, int h, int size, float *__restrict__ means)
{
    area_means<3>(frame, pitch, x, y, w, h, size, means);
}

extern "C" __global__ void __launch_bounds__(256) area_means_bgrx(const unsigned char *__restrict__ frame, size_t pitch, int x,
                                                                  int y, int w, int h, int size, float *__restrict__ means)
{
    area_means<4>(frame, pitch, x, y, w, h, size, means);
}
