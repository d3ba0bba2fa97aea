/* NVML's ABI over one mapped file: what libnvidia-ml.so.1 answers is what the file says.
 *
 * Built by chaos/nvml/build.py together with layout.h (made from layout.py). The file's path comes from the
 * environment variable GRIDKEEPER_NVML_SIM; without it, or without the file, the library says that the driver is not
 * loaded. It never writes to the file. Numbers and structures are those of nvml.h (public, stable ABI); an entry
 * point that is not here is missing, as it is with an old driver.
 */
#include "sim.h"

struct handle sim_handles[SIM_MAX_DEVICES];
const struct sim_state *volatile sim_state_map;
unsigned sim_references;
static pthread_mutex_t life = PTHREAD_MUTEX_INITIALIZER;

/* ---- waiting ---- */

uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

uint32_t load32(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

void sleep_while_equal(const uint32_t *word, uint32_t value, unsigned ms) {
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000L};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &t, NULL, 0);
}

void wait_while_hung(const uint32_t *flag) {
    uint32_t value;
    while ((value = load32(flag)) != 0) sleep_while_equal(flag, value, FUTEX_SLICE_MS);
}

/* ---- guards: what every call asks first ---- */

ret_t guard(void) {
    const struct sim_state *s = state;
    if (!s || !references) return UNINITIALIZED;
    wait_while_hung(&s->hang);
    return load32(&s->fail_code);
}

ret_t guard_device(device_t handle, const struct sim_devicestate **out) {
    ret_t code = guard();
    if (code) return code;
    if (handle < handles || handle >= handles + SIM_MAX_DEVICES) return INVALID_ARGUMENT;
    const struct sim_devicestate *d = &state->devices[handle - handles];
    wait_while_hung(&d->hang);
    if (load32(&d->lost) || !load32(&d->present)) return GPU_IS_LOST;
    if ((code = load32(&d->fail_code))) return code;
    *out = d;
    return SUCCESS;
}

static ret_t copy_text(char *to, unsigned length, const char *from) {
    if (!to) return INVALID_ARGUMENT;
    if (strlen(from) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

/* ---- lifecycle ---- */

API ret_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&life);
    ret_t result = SUCCESS;
    if (!references) {
        const char *path = getenv("GRIDKEEPER_NVML_SIM");
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        struct stat info;
        if (fd < 0 || fstat(fd, &info) != 0) {
            result = DRIVER_NOT_LOADED;
        } else if ((size_t)info.st_size != sizeof(struct sim_state)) {
            result = LIB_RM_VERSION_MISMATCH;
        } else {
            void *map = mmap(NULL, sizeof(struct sim_state), PROT_READ, MAP_SHARED, fd, 0);
            const struct sim_state *s = map;
            if (map == MAP_FAILED) {
                result = MEMORY;
            } else if (s->magic != SIM_MAGIC || s->version != SIM_VERSION || s->size != sizeof *s ||
                       s->device_count > SIM_MAX_DEVICES) {
                munmap(map, sizeof *s);
                result = LIB_RM_VERSION_MISMATCH;
            } else {
                for (unsigned i = 0; i < SIM_MAX_DEVICES; i++) handles[i].index = i;
                state = s; /* an earlier mapping stays: another thread may still be inside a call */
            }
        }
        if (fd >= 0) close(fd);
    }
    if (result == SUCCESS) {
        wait_while_hung(&state->hang);
        result = load32(&state->fail_code);
    }
    if (result == SUCCESS) references++;
    pthread_mutex_unlock(&life);
    return result;
}

API ret_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API ret_t nvmlShutdown(void) {
    pthread_mutex_lock(&life);
    ret_t result = references ? SUCCESS : UNINITIALIZED;
    if (references) references--;
    pthread_mutex_unlock(&life);
    return result;
}

API const char *nvmlErrorString(ret_t code) {
    switch (code) {
        case SUCCESS: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case TIMEOUT: return "Timeout";
        case GPU_IS_LOST: return "GPU is lost";
        case LIB_RM_VERSION_MISMATCH: return "RM has detected an NVML/RM version mismatch.";
        default: return "Unknown Error";
    }
}

API ret_t nvmlSystemGetDriverVersion(char *out, unsigned length) {
    ret_t code = guard();
    return code ? code : copy_text(out, length, state->driver_version);
}

API ret_t nvmlSystemGetNVMLVersion(char *out, unsigned length) {
    ret_t code = guard();
    return code ? code : copy_text(out, length, state->nvml_version);
}

/* ---- inventory ---- */

API ret_t nvmlDeviceGetCount_v2(unsigned *count) {
    ret_t code = guard();
    if (code) return code;
    if (!count) return INVALID_ARGUMENT;
    *count = 0;
    for (unsigned i = 0; i < state->device_count; i++) *count += load32(&state->devices[i].present) != 0;
    return SUCCESS;
}

API ret_t nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *out) {
    ret_t code = guard();
    if (code) return code;
    if (!out) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < state->device_count; i++) {
        if (!load32(&state->devices[i].present)) continue;
        if (index-- == 0) {
            const struct sim_devicestate *d;
            if ((code = guard_device(&handles[i], &d))) return code;
            *out = &handles[i];
            return SUCCESS;
        }
    }
    return INVALID_ARGUMENT;
}

API ret_t nvmlDeviceGetHandleByUUID(const char *uuid, device_t *out) {
    ret_t code = guard();
    if (code) return code;
    if (!uuid || !out) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < state->device_count; i++) {
        if (strcmp(uuid, state->devices[i].uuid) != 0) continue;
        const struct sim_devicestate *d;
        if ((code = guard_device(&handles[i], &d))) return code;
        *out = &handles[i];
        return SUCCESS;
    }
    return NOT_FOUND;
}

API ret_t nvmlDeviceGetName(device_t handle, char *out, unsigned length) {
    DEVICE(handle);
    return copy_text(out, length, d->name);
}

API ret_t nvmlDeviceGetUUID(device_t handle, char *out, unsigned length) {
    DEVICE(handle);
    return copy_text(out, length, d->uuid);
}

API ret_t nvmlDeviceGetSerial(device_t handle, char *out, unsigned length) {
    DEVICE(handle);
    return copy_text(out, length, d->serial);
}

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

API ret_t nvmlDeviceGetPciInfo_v3(device_t handle, struct pci_info *out) {
    DEVICE(handle);
    if (!out) return INVALID_ARGUMENT;
    memset(out, 0, sizeof *out);
    out->domain = d->pci_domain;
    out->bus = d->pci_bus;
    out->device = d->pci_device;
    out->device_id = d->pci_device_id;
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%04X:%02X:%02X.0", d->pci_domain & 0xffffu,
             d->pci_bus & 0xffu, d->pci_device & 0xffu);
    snprintf(out->bus_id, sizeof out->bus_id, "%08X:%02X:%02X.0", d->pci_domain, d->pci_bus & 0xffu,
             d->pci_device & 0xffu);
    return SUCCESS;
}
