/* edge/kernels/area_means.cu as a function of the host; see cuda_on_host.h. */
#include "cuda_on_host.h"

#include "../../edge/kernels/area_means.cu"

extern "C" void run_area_means(int bytes_per_pixel, const unsigned char *frame, std::size_t pitch, int x, int y, int w, int h,
                               int size, float *means)
{
    const dim3 grid = {(size + 7u) / 8u, static_cast<unsigned>(size)}, block = {32, 8};
    on_host::launch(grid, block, [=] {
        (bytes_per_pixel == 4 ? area_means_bgrx : area_means_bgr)(frame, pitch, x, y, w, h, size, means);
    });
}
