// Two frames' area means -> one normalised frame of the grid: the GPU's edge.clip.GridResampler and Normaliser, equal to them
// but for the last bits of a logarithm. Two launches in a row on one stream: the flow at a cell looks at its neighbours' light.
//
// The running mean stays on the GPU. When it starts, and how fast it follows, the CPU says: both read edge.clip.Gains.
//
// Arrays: before, means, mean float32 (size, size, 3); grey float32 (2, size, size), the change and the running mean of all
// three channels together; out float32 (5, size, size). What is not a number stays none: fminf and fmaxf would hide it.
//
// Launch: grid ((size + 31) / 32, (size + 7) / 8), block (32, 8), no shared memory.

namespace {

__device__ int at_column() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

__device__ int at_row() { return static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y); }

__device__ float clipped(float value, float most) { return value < -most ? -most : value > most ? most : value; }

// OpenCV's BORDER_REFLECT_101, one step beyond the edge: the edge itself is not repeated.
__device__ int mirrored(int i, int size)
{
    if (i < 0)
        return size > 1 ? 1 : 0;
    return i < size ? i : size > 1 ? size - 2 : 0;
}

} // namespace

// Between two frames, weight 0 is the earlier one. gain 0: the mean starts here, and there is nothing to compare with yet.
extern "C" __global__ void __launch_bounds__(256)
    normalise_light(const float *__restrict__ before, const float *__restrict__ means, float weight, float gain, float offset,
                    float scale, float most, int size, float *__restrict__ mean, float *__restrict__ grey,
                    float *__restrict__ out)
{
    const int column = at_column(), row = at_row(), cells = size * size;
    if (column >= size || row >= size)
        return;
    const int cell = row * size + column;
    float change = 0.0f, level = 0.0f;
    for (int channel = 0; channel < 3; ++channel) {
        const int i = cell * 3 + channel;
        const float light = logf(before[i] + weight * (means[i] - before[i]) + offset);
        if (gain == 0.0f) {
            mean[i] = light;
            continue;
        }
        const float delta = light - mean[i], now = mean[i] + gain * delta;
        mean[i] = now;
        out[channel * cells + cell] = clipped(delta * scale, most);
        change += delta;
        level += now;
    }
    if (gain != 0.0f) {
        grey[cell] = change / 3.0f;
        grey[cells + cell] = level / 3.0f;
    }
}

// The shift of the picture that explains the change: per axis, least squares over 3x3 cells. floor: of the gradient's square.
extern "C" __global__ void __launch_bounds__(256)
    normalise_flow(const float *__restrict__ grey, float floor, float scale, float most, int size, float *__restrict__ out)
{
    const int column = at_column(), row = at_row(), cells = size * size;
    if (column >= size || row >= size)
        return;
    const float *const change = grey, *const level = grey + cells;
    float across = 0.0f, across_energy = 0.0f, down = 0.0f, down_energy = 0.0f;
    for (int dy = -1; dy <= 1; ++dy)
        for (int dx = -1; dx <= 1; ++dx) {
            const int y = mirrored(row + dy, size), x = mirrored(column + dx, size);
            const float delta = change[y * size + x];
            const float gx = 0.5f * (level[y * size + mirrored(x + 1, size)] - level[y * size + mirrored(x - 1, size)]);
            const float gy = 0.5f * (level[mirrored(y + 1, size) * size + x] - level[mirrored(y - 1, size) * size + x]);
            across -= delta * gx;
            across_energy += gx * gx;
            down -= delta * gy;
            down_energy += gy * gy;
        }
    const int cell = row * size + column;
    out[3 * cells + cell] = clipped(across / 9.0f / (across_energy / 9.0f + floor) * scale, most);
    out[4 * cells + cell] = clipped(down / 9.0f / (down_energy / 9.0f + floor) * scale, most);
}
