/* A stand-in for NVIDIA's driver library, libcuda.so.1, over host memory, so that the real pycuda runs without a GPU.
 *
 * Written from the public signatures of the driver API; it needs no CUDA header. Only what pycuda needs for the device, the
 * primary context, streams, memory, asynchronous copies and kernels works; whoever builds it adds a stub that answers 801 (not
 * supported) for every other symbol of pycuda's (tests/standin_driver.py). A cubin is a library of the host here, made by
 * tests/host_nvcc.py. It is stricter than a driver where that finds bugs:
 *   - a call with no live context current in the calling thread answers 201;
 *   - copies and frees are checked against the live allocations: outside one, or twice, answers 1;
 *   - new memory holds rubbish, and freed memory is taken away: touching it, or a page beyond an end, ends the process;
 *   - nothing happens before the stream is synchronised or destroyed, and freeing memory waits for nothing: a copy that is
 *     still queued then finds its memory taken away;
 *   - what is not freed before the context goes counts as a leak, where a driver would sweep it up.
 * The functions named standin_ are for the tests: set the device, break a call, count what lives, give a stream work.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int Result;
typedef unsigned long long Address; /* CUdeviceptr */
typedef void (*Work)(int perform); /* called once: to be done, or with 0 to be forgotten */

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALISED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, NO_BINARY = 209, INVALID_HANDLE = 400, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

static const struct { Result code; const char *text; } TEXTS[] = {
    {OK, "no error"}, {INVALID_VALUE, "invalid argument"}, {OUT_OF_MEMORY, "out of memory"},
    {NOT_INITIALISED, "initialization error"}, {NO_DEVICE, "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "invalid device ordinal"}, {INVALID_CONTEXT, "invalid device context"},
    {NO_BINARY, "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "invalid resource handle"}, {NOT_FOUND, "named symbol not found"}, {LAUNCH_FAILED, "unspecified launch failure"},
    {801, "operation not supported"}};

/* --- what tests turn */

static struct { char name[128]; int major, minor, sm_count, driver_version, integrated; size_t memory; } card;
static struct { char call[64]; Result code; int before, times; } faults[32];
static long n_copies_up, n_copies_down;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* never held while foreign code runs: that may want Python's own */

void standin_configure(const char *name, int major, int minor, int sm_count, size_t memory, int driver_version, int integrated)
{
    snprintf(card.name, sizeof card.name, "%s", name);
    card.major = major, card.minor = minor, card.sm_count = sm_count;
    card.memory = memory, card.driver_version = driver_version, card.integrated = integrated;
}

/* The nth call of this name from now on answers code, and as many as `times` in a row. */
int standin_fail(const char *call, Result code, int nth, int times)
{
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (!faults[i].call[0] || !strcmp(faults[i].call, call)) {
            snprintf(faults[i].call, sizeof faults[i].call, "%s", call);
            faults[i].code = code, faults[i].before = nth - 1, faults[i].times = times;
            return 0;
        }
    return -1;
}

void standin_no_faults(void) { memset(faults, 0, sizeof faults); }

static Result fault(const char *call)
{
    Result found = OK;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (!strcmp(faults[i].call, call) && faults[i].times > 0 && faults[i].before-- <= 0) {
            found = faults[i].code;
            faults[i].times--;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

#define TRY(expression) do { Result result_ = (expression); if (result_ != OK) return result_; } while (0)

/* --- device */

static int initialised;

Result cuInit(unsigned flags)
{
    TRY(fault("cuInit"));
    initialised = 1;
    return OK;
}

Result cuDriverGetVersion(int *version) { *version = card.driver_version; return OK; }

Result cuDeviceGetCount(int *count) { *count = 1; return initialised ? OK : NOT_INITIALISED; }

Result cuDeviceGet(int *device, int ordinal)
{
    TRY(fault("cuDeviceGet"));
    *device = ordinal;
    return !initialised ? NOT_INITIALISED : ordinal == 0 ? OK : INVALID_DEVICE;
}

Result cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "%s", card.name); return OK; }

Result cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = card.memory; return OK; }

Result cuDeviceComputeCapability(int *major, int *minor, int device)
{
    *major = card.major, *minor = card.minor;
    return OK;
}

Result cuDeviceGetAttribute(int *value, int attribute, int device)
{
    switch (attribute) { /* CUdevice_attribute */
    case 16: *value = card.sm_count; return OK;
    case 18: *value = card.integrated; return OK;
    case 75: *value = card.major; return OK;
    case 76: *value = card.minor; return OK;
    default: return INVALID_VALUE;
    }
}

Result cuGetErrorString(Result code, const char **text)
{
    *text = "unrecognized error code";
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++)
        if (TEXTS[i].code == code)
            *text = TEXTS[i].text;
    return OK;
}

/* --- the primary context, and each thread's stack of what is current in it */

#define DEEPEST 64
static char primary; /* its address is the handle */
static long n_retained;
static __thread void *stack[DEEPEST];
static __thread int depth;

static Result need_context(void)
{
    if (!initialised)
        return NOT_INITIALISED;
    return depth > 0 && stack[depth - 1] && n_retained > 0 ? OK : INVALID_CONTEXT;
}

Result standin_require_context(void) { return need_context(); }

int standin_depth(void) { return depth; }

Result cuDevicePrimaryCtxRetain(void **context, int device)
{
    TRY(fault("cuDevicePrimaryCtxRetain"));
    __sync_fetch_and_add(&n_retained, 1);
    *context = &primary;
    return OK;
}

Result cuDevicePrimaryCtxRelease_v2(int device)
{
    if (n_retained < 1)
        return INVALID_CONTEXT;
    __sync_fetch_and_sub(&n_retained, 1); /* and no stack changes: a released context can stay current */
    return OK;
}

Result cuCtxPushCurrent_v2(void *context)
{
    TRY(fault("cuCtxPushCurrent"));
    if (context != &primary || n_retained < 1 || depth == DEEPEST)
        return INVALID_CONTEXT;
    stack[depth++] = context;
    return OK;
}

Result cuCtxPopCurrent_v2(void **context)
{
    if (depth < 1)
        return INVALID_CONTEXT;
    *context = stack[--depth];
    return OK;
}

Result cuCtxGetDevice(int *device) { *device = 0; return need_context(); }

/* --- streams: lists of what is to be done */

typedef int (*Launch)(const unsigned dims[6], const char *arguments, size_t size, int perform);
typedef struct Item { struct Item *next; Work work; Launch launch; unsigned dims[6]; void *to; const void *from; size_t size; } Item;
typedef struct Stream { struct Stream *next; Item *first, **last; } Stream;
static Stream *streams;
static long n_streams;

static int is_stream(const Stream *stream)
{
    for (const Stream *each = streams; each; each = each->next)
        if (each == stream)
            return 1;
    return 0;
}

static Result put(Stream *stream, Item item)
{
    Item *copy = malloc(sizeof *copy);
    *copy = item, copy->next = NULL;
    pthread_mutex_lock(&lock);
    int known = is_stream(stream);
    if (known)
        *stream->last = copy, stream->last = &copy->next;
    pthread_mutex_unlock(&lock);
    if (!known)
        free(copy);
    return known ? OK : INVALID_HANDLE;
}

/* One item at a time, the lock let go meanwhile. */
static void drain(Stream *stream, int perform)
{
    for (;;) {
        pthread_mutex_lock(&lock);
        Item *item = is_stream(stream) ? stream->first : NULL;
        if (item && !(stream->first = item->next))
            stream->last = &stream->first;
        pthread_mutex_unlock(&lock);
        if (!item)
            return;
        if (item->work)
            item->work(perform);
        else if (item->launch)
            item->launch(item->dims, item->from, item->size, perform), free((void *)item->from);
        else if (perform)
            memcpy(item->to, item->from, item->size);
        free(item);
    }
}

Result standin_enqueue(Stream *stream, Work work)
{
    TRY(need_context());
    return put(stream, (Item){.work = work});
}

/* How much work all streams together still have. */
long standin_waiting(void)
{
    long count = 0;
    pthread_mutex_lock(&lock);
    for (const Stream *stream = streams; stream; stream = stream->next)
        for (const Item *item = stream->first; item; item = item->next)
            count++;
    pthread_mutex_unlock(&lock);
    return count;
}

Result cuStreamCreate(Stream **stream, unsigned flags)
{
    TRY(need_context());
    TRY(fault("cuStreamCreate"));
    Stream *made = calloc(1, sizeof *made);
    made->last = &made->first;
    pthread_mutex_lock(&lock);
    made->next = streams, streams = made, n_streams++;
    pthread_mutex_unlock(&lock);
    *stream = made;
    return OK;
}

Result cuStreamDestroy_v2(Stream *stream)
{
    TRY(need_context());
    drain(stream, 1);
    pthread_mutex_lock(&lock);
    Stream **link = &streams;
    while (*link && *link != stream)
        link = &(*link)->next;
    int known = *link != NULL;
    if (known)
        *link = stream->next, n_streams--;
    pthread_mutex_unlock(&lock);
    if (known)
        free(stream);
    return known ? OK : INVALID_HANDLE;
}

Result cuStreamSynchronize(Stream *stream)
{
    TRY(need_context());
    Result failed = fault("cuStreamSynchronize");
    drain(stream, failed == OK); /* what failed was never done */
    return failed;
}

/* --- memory: each allocation ends at a page that nobody may touch, and its own pages are barred once it is freed */

enum { DEVICE, PINNED, MAPPED };
#define MOST 65536
static struct { char *start, *pages; size_t size, length; int kind; } blocks[MOST];
static int n_blocks; /* entries ever used; a free one has start NULL */

static int find(const char *at) /* the caller holds the lock */
{
    for (int i = 0; i < n_blocks; i++)
        if (blocks[i].start && at >= blocks[i].start && at < blocks[i].start + blocks[i].size)
            return i;
    return -1;
}

static Result allocate(void **memory, size_t size, int kind)
{
    size_t page = sysconf(_SC_PAGESIZE), length = (size + page - 1) / page * page;
    if (!size)
        return INVALID_VALUE;
    char *pages = mmap(NULL, length + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + length, page, PROT_NONE))
        return OUT_OF_MEMORY;
    char *start = pages + length - (size + 255) / 256 * 256; /* CUDA aligns to 256 bytes */
    memset(start, 0xCD, size);
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < n_blocks && blocks[i].start)
        i++;
    if (i < MOST) {
        blocks[i].start = start, blocks[i].pages = pages, blocks[i].size = size, blocks[i].length = length;
        blocks[i].kind = kind;
        n_blocks = i == n_blocks ? i + 1 : n_blocks;
    }
    pthread_mutex_unlock(&lock);
    *memory = start;
    return i < MOST ? OK : OUT_OF_MEMORY;
}

static Result release(const char *memory, int device)
{
    pthread_mutex_lock(&lock);
    int i = find(memory);
    int ours = i >= 0 && blocks[i].start == memory && (blocks[i].kind == DEVICE) == device;
    if (ours) {
        mmap(blocks[i].pages, blocks[i].length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        blocks[i].start = NULL;
    }
    pthread_mutex_unlock(&lock);
    return ours ? OK : INVALID_VALUE;
}

static Result inside(Address at, size_t size)
{
    pthread_mutex_lock(&lock);
    int i = find((const char *)(uintptr_t)at);
    int whole = i >= 0 && (const char *)(uintptr_t)at + size <= blocks[i].start + blocks[i].size;
    pthread_mutex_unlock(&lock);
    return whole ? OK : INVALID_VALUE;
}

Result cuMemAlloc_v2(Address *address, size_t size)
{
    TRY(need_context());
    TRY(fault("cuMemAlloc"));
    void *memory;
    TRY(allocate(&memory, size, DEVICE));
    *address = (uintptr_t)memory;
    return OK;
}

Result cuMemFree_v2(Address address)
{
    TRY(need_context());
    return release((const char *)(uintptr_t)address, 1);
}

Result cuMemHostAlloc(void **memory, size_t size, unsigned flags)
{
    TRY(need_context());
    TRY(fault("cuMemHostAlloc"));
    return allocate(memory, size, flags & 2 ? MAPPED : PINNED); /* CU_MEMHOSTALLOC_DEVICEMAP */
}

Result cuMemFreeHost(void *memory)
{
    TRY(need_context());
    return release(memory, 0);
}

Result cuMemHostGetDevicePointer_v2(Address *address, void *memory, unsigned flags)
{
    TRY(need_context());
    TRY(fault("cuMemHostGetDevicePointer"));
    pthread_mutex_lock(&lock);
    int i = find(memory);
    int mapped = i >= 0 && blocks[i].kind == MAPPED;
    pthread_mutex_unlock(&lock);
    *address = (uintptr_t)memory;
    return mapped ? OK : INVALID_VALUE;
}

Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, Stream *stream)
{
    TRY(need_context());
    TRY(fault("cuMemcpyHtoDAsync"));
    TRY(inside(to, size));
    __sync_fetch_and_add(&n_copies_up, 1);
    return put(stream, (Item){.to = (void *)(uintptr_t)to, .from = from, .size = size});
}

Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, Stream *stream)
{
    TRY(need_context());
    TRY(fault("cuMemcpyDtoHAsync"));
    TRY(inside(from, size));
    __sync_fetch_and_add(&n_copies_down, 1);
    return put(stream, (Item){.to = to, .from = (const void *)(uintptr_t)from, .size = size});
}

/* --- modules: a library of the host each, a function for each kernel */

static long n_modules;

typedef struct Module { void *library; } Module;

Result cuModuleLoadDataEx(Module **module, const void *image, unsigned n_options, const int *options, void **values)
{
    TRY(need_context());
    TRY(fault("cuModuleLoadDataEx"));
    for (unsigned i = 0; i < n_options; i++)
        if (options[i] == 4 || options[i] == 6) /* CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES */
            values[i] = 0;
    const Elf64_Ehdr *head = image;
    if (memcmp(image, ELFMAG, SELFMAG))
        return NO_BINARY;
    char path[] = P_tmpdir "/standin-cubin-XXXXXX"; /* a name of its own: dlopen takes the same name for the same library */
    int file = mkstemp(path);
    size_t size = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize; /* the section headers come last */
    void *library = write(file, image, size) == (ssize_t)size ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    close(file);
    unlink(path);
    const char *architecture = library ? dlsym(library, "architecture") : NULL;
    char ours[32];
    snprintf(ours, sizeof ours, "sm_%d%d", card.major, card.minor);
    if (!architecture || strcmp(architecture, ours)) {
        if (library)
            dlclose(library);
        return NO_BINARY;
    }
    *module = malloc(sizeof **module);
    (*module)->library = library;
    __sync_fetch_and_add(&n_modules, 1);
    return OK;
}

Result cuModuleUnload(Module *module)
{
    TRY(need_context());
    dlclose(module->library);
    free(module);
    __sync_fetch_and_sub(&n_modules, 1);
    return OK;
}

Result cuModuleGetFunction(Launch *function, Module *module, const char *name)
{
    char symbol[128];
    TRY(need_context());
    TRY(fault("cuModuleGetFunction"));
    snprintf(symbol, sizeof symbol, "launch_%s", name);
    *function = (Launch)(uintptr_t)dlsym(module->library, symbol);
    return *function ? OK : NOT_FOUND;
}

Result cuFuncSetBlockShape(Launch function, int x, int y, int z) { return need_context(); }

Result cuLaunchKernel(Launch function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, Stream *stream, void **each, void **extra)
{
    TRY(need_context());
    TRY(fault("cuLaunchKernel"));
    Item item = {.launch = function, .dims = {gx, gy, gz, bx, by, bz}};
    const void *given = NULL;
    for (; *extra; extra += 2)
        if ((uintptr_t)*extra == 1) /* CU_LAUNCH_PARAM_BUFFER_POINTER */
            given = extra[1];
        else
            item.size = *(size_t *)extra[1];
    if (shared || !gx || !gy || !function(item.dims, given, item.size, 0))
        return INVALID_VALUE;
    void *kept = malloc(item.size);
    item.from = memcpy(kept, given, item.size);
    Result queued = put(stream, item);
    if (queued != OK)
        free(kept);
    return queued;
}

/* device and host allocations, streams, retains of the context, copies up and down, modules */
void standin_count(long counts[7])
{
    pthread_mutex_lock(&lock);
    memset(counts, 0, 7 * sizeof *counts);
    for (int i = 0; i < n_blocks; i++)
        if (blocks[i].start)
            counts[blocks[i].kind == DEVICE ? 0 : 1]++;
    counts[2] = n_streams, counts[3] = n_retained, counts[4] = n_copies_up, counts[5] = n_copies_down;
    counts[6] = n_modules;
    pthread_mutex_unlock(&lock);
}
