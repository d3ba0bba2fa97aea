/* NVML's ABI over one mapped file: what libnvidia-ml.so.1 answers is what the file says.
 *
 * Built by chaos/nvml/build.py together with layout.h (made from layout.py). The file's path comes from the
 * environment variable GRIDKEEPER_NVML_SIM; without it, or without the file, the library says that the driver is not
 * loaded. It never writes to the file. Numbers and structures are those of nvml.h (public, stable ABI); an entry
 * point that is not here is missing, as it is with an old driver.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18,
    MEMORY = 20,
    ARGUMENT_VERSION_MISMATCH = 25,
};

#define API __attribute__((visibility("default")))
#define EVENT_XID 0x8ull
#define FUTEX_SLICE_MS 20 /* a lost wake-up, or a writer that cannot wake, costs at most this */

typedef unsigned int ret_t;
struct handle {
    unsigned index;
};
typedef struct handle *device_t;
struct event_set {
    pthread_mutex_t lock;
    uint32_t cursor;                /* last event looked at */
    uint64_t types[SIM_MAX_DEVICES]; /* 0: not registered */
    uint32_t since[SIM_MAX_DEVICES]; /* events up to here happened before registration */
};

static struct handle handles[SIM_MAX_DEVICES];
static const struct sim_state *volatile state;
static pthread_mutex_t life = PTHREAD_MUTEX_INITIALIZER;
static unsigned references;

/* ---- waiting ---- */

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static uint32_t load32(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

static void sleep_while_equal(const uint32_t *word, uint32_t value, unsigned ms) {
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000L};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &t, NULL, 0);
}

static void wait_while_hung(const uint32_t *flag) {
    uint32_t value;
    while ((value = load32(flag)) != 0) sleep_while_equal(flag, value, FUTEX_SLICE_MS);
}

/* ---- guards: what every call asks first ---- */

static ret_t guard(void) {
    const struct sim_state *s = state;
    if (!s || !references) return UNINITIALIZED;
    wait_while_hung(&s->hang);
    return load32(&s->fail_code);
}

static ret_t guard_device(device_t handle, const struct sim_devicestate **out) {
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

#define DEVICE(handle)                          \
    const struct sim_devicestate *d;            \
    ret_t code = guard_device((handle), &d);    \
    if (code) return code
#define NEEDS(feature) \
    if (!(d->features & (feature))) return NOT_SUPPORTED
#define GETTER(symbol, type, member)                  \
    API ret_t symbol(device_t handle, type *out) {    \
        DEVICE(handle);                               \
        if (!out) return INVALID_ARGUMENT;            \
        *out = (type)d->member;                       \
        return SUCCESS;                               \
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

GETTER(nvmlDeviceGetArchitecture, unsigned, architecture)

/* ---- metrics ---- */

GETTER(nvmlDeviceGetPowerUsage, unsigned, power)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, power_limit)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned, power_limit)
GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, throttle_reasons)
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, throttle_reasons)
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, pcie_generation)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, pcie_generation_max)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, pcie_width)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, pcie_width_max)
GETTER(nvmlDeviceGetPcieReplayCounter, unsigned, pcie_replays)

API ret_t nvmlDeviceGetTemperature(device_t handle, unsigned sensor, unsigned *out) {
    DEVICE(handle);
    if (sensor != 0 || !out) return INVALID_ARGUMENT;
    *out = d->temperature;
    return SUCCESS;
}

struct temperature_v1 {
    unsigned version, sensor;
    int temperature;
};

API ret_t nvmlDeviceGetTemperatureV(device_t handle, struct temperature_v1 *out) {
    DEVICE(handle);
    if (!out || out->sensor != 0) return INVALID_ARGUMENT;
    if (out->version != 0x100000Cu) return ARGUMENT_VERSION_MISMATCH;
    out->temperature = (int)d->temperature;
    return SUCCESS;
}

API ret_t nvmlDeviceGetTemperatureThreshold(device_t handle, unsigned kind, unsigned *out) {
    DEVICE(handle);
    if (!out) return INVALID_ARGUMENT;
    switch (kind) {
        case 0: *out = d->temperature_shutdown; return SUCCESS;
        case 1: *out = d->temperature_slowdown; return SUCCESS;
        case 2: *out = d->temperature_memory_max; return SUCCESS;
        case 3: *out = d->temperature_gpu_max; return SUCCESS;
        default: return NOT_SUPPORTED;
    }
}

static ret_t clock_value(unsigned kind, unsigned sm, unsigned memory, unsigned *out) {
    if (!out || kind > 3) return INVALID_ARGUMENT;
    *out = kind == 2 ? memory : sm;
    return SUCCESS;
}

API ret_t nvmlDeviceGetClockInfo(device_t handle, unsigned kind, unsigned *out) {
    DEVICE(handle);
    return clock_value(kind, d->clock_sm, d->clock_memory, out);
}

API ret_t nvmlDeviceGetMaxClockInfo(device_t handle, unsigned kind, unsigned *out) {
    DEVICE(handle);
    return clock_value(kind, d->clock_sm_max, d->clock_memory_max, out);
}

API ret_t nvmlDeviceGetUtilizationRates(device_t handle, unsigned out[2]) {
    DEVICE(handle);
    if (!out) return INVALID_ARGUMENT;
    out[0] = d->utilisation;
    out[1] = d->utilisation_memory;
    return SUCCESS;
}

API ret_t nvmlDeviceGetMemoryInfo(device_t handle, unsigned long long out[3]) {
    DEVICE(handle);
    if (!out) return INVALID_ARGUMENT;
    out[0] = d->memory_total;
    out[1] = d->memory_total - d->memory_used;
    out[2] = d->memory_used;
    return SUCCESS;
}

struct memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

API ret_t nvmlDeviceGetMemoryInfo_v2(device_t handle, struct memory_v2 *out) {
    DEVICE(handle);
    if (!out) return INVALID_ARGUMENT;
    if (out->version != 0x02000028u) return ARGUMENT_VERSION_MISMATCH;
    out->total = d->memory_total;
    out->reserved = 0;
    out->free = d->memory_total - d->memory_used;
    out->used = d->memory_used;
    return SUCCESS;
}

API ret_t nvmlDeviceGetTotalEccErrors(device_t handle, unsigned kind, unsigned counter, unsigned long long *out) {
    DEVICE(handle);
    NEEDS(SIM_FEATURE_ECC);
    if (!out || kind > 1 || counter > 1) return INVALID_ARGUMENT;
    if (counter == 0)
        *out = kind == 0 ? d->ecc_corrected : d->ecc_uncorrected;
    else
        *out = kind == 0 ? d->ecc_corrected_aggregate : d->ecc_uncorrected_aggregate;
    return SUCCESS;
}

API ret_t nvmlDeviceGetRetiredPages(device_t handle, unsigned cause, unsigned *count, unsigned long long *pages) {
    DEVICE(handle);
    NEEDS(SIM_FEATURE_RETIRED_PAGES);
    if (!count || cause > 1) return INVALID_ARGUMENT;
    unsigned have = cause == 0 ? d->retired_pages_sbe : d->retired_pages_dbe, room = *count;
    *count = have;
    if (room < have || (have && !pages)) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < have; i++) pages[i] = 0x100000ull + 0x1000ull * i;
    return SUCCESS;
}

API ret_t nvmlDeviceGetRetiredPagesPendingStatus(device_t handle, unsigned *out) {
    DEVICE(handle);
    NEEDS(SIM_FEATURE_RETIRED_PAGES);
    if (!out) return INVALID_ARGUMENT;
    *out = d->retired_pending;
    return SUCCESS;
}

API ret_t nvmlDeviceGetRemappedRows(device_t handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                                    unsigned *failure) {
    DEVICE(handle);
    NEEDS(SIM_FEATURE_REMAPPED_ROWS);
    if (!corrected || !uncorrected || !pending || !failure) return INVALID_ARGUMENT;
    *corrected = d->remapped_corrected;
    *uncorrected = d->remapped_uncorrected;
    *pending = d->remap_pending;
    *failure = d->remap_failed;
    return SUCCESS;
}

struct field_value {
    uint32_t field, scope;
    int64_t timestamp, latency;
    uint32_t type, result;
    union {
        double d;
        uint32_t u;
        uint64_t ull;
    } value;
};

API ret_t nvmlDeviceGetFieldValues(device_t handle, int count, struct field_value *values) {
    DEVICE(handle);
    if (count < 0 || (count && !values)) return INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) {
        struct field_value *v = &values[i];
        v->timestamp = (int64_t)now_ms() * 1000;
        v->latency = 0;
        v->type = 1; /* unsigned int */
        v->value.ull = 0;
        v->result = NOT_SUPPORTED;
        if (v->field == 82 && (d->features & SIM_FEATURE_MEMORY_TEMPERATURE)) {
            v->value.u = d->temperature_memory;
            v->result = SUCCESS;
        } else if (v->field == 230 && (d->features & SIM_FEATURE_RECOVERY_ACTION)) {
            v->value.u = d->recovery_action;
            v->result = SUCCESS;
        }
    }
    return SUCCESS;
}

struct process_info {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
};

API ret_t nvmlDeviceGetComputeRunningProcesses_v3(device_t handle, unsigned *count, struct process_info *out) {
    DEVICE(handle);
    if (!count) return INVALID_ARGUMENT;
    unsigned room = *count, have = 0;
    for (unsigned i = 0; i < SIM_MAX_PROCESSES; i++) {
        unsigned pid = load32(&d->processes[i].pid);
        if (!pid) continue;
        if (out && have < room) out[have] = (struct process_info){pid, d->processes[i].memory, ~0u, ~0u};
        have++;
    }
    *count = have;
    return have > room ? INSUFFICIENT_SIZE : SUCCESS;
}

/* ---- events ---- */

struct event_data {
    device_t device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

API ret_t nvmlDeviceGetSupportedEventTypes(device_t handle, unsigned long long *out) {
    DEVICE(handle);
    if (!out) return INVALID_ARGUMENT;
    *out = EVENT_XID;
    return SUCCESS;
}

API ret_t nvmlEventSetCreate(struct event_set **out) {
    ret_t code = guard();
    if (code) return code;
    if (!out) return INVALID_ARGUMENT;
    struct event_set *set = calloc(1, sizeof *set);
    if (!set) return MEMORY;
    pthread_mutex_init(&set->lock, NULL);
    set->cursor = load32(&state->head);
    *out = set;
    return SUCCESS;
}

API ret_t nvmlDeviceRegisterEvents(device_t handle, unsigned long long types, struct event_set *set) {
    DEVICE(handle);
    if (!set) return INVALID_ARGUMENT;
    if (types & ~EVENT_XID) return NOT_SUPPORTED;
    pthread_mutex_lock(&set->lock);
    if (!set->types[handle->index]) set->since[handle->index] = load32(&state->head);
    set->types[handle->index] |= types;
    pthread_mutex_unlock(&set->lock);
    return SUCCESS;
}

/* The next event for this set, or 0. A word whose sequence is not the expected one is not stored yet: come back. */
static int take_event(struct event_set *set, struct event_data *out) {
    uint32_t head = load32(&state->head);
    if (head - set->cursor > SIM_RING_SIZE) set->cursor = head - SIM_RING_SIZE;
    while (set->cursor != head) {
        uint32_t next = set->cursor + 1;
        uint64_t word = __atomic_load_n(&state->ring[next % SIM_RING_SIZE], __ATOMIC_ACQUIRE);
        if ((uint32_t)word != next) {
            if ((int32_t)((uint32_t)word - next) > 0) { /* overwritten by a newer one: this event is lost */
                set->cursor = next;
                continue;
            }
            return 0;
        }
        set->cursor = next;
        unsigned device = (word >> 48) & 0xffu;
        uint64_t type = 1ull << ((word >> 56) & 0x3fu);
        if (device >= SIM_MAX_DEVICES || !(set->types[device] & type)) continue;
        if ((int32_t)(next - set->since[device]) <= 0) continue;
        *out = (struct event_data){&handles[device], type, (word >> 32) & 0xffffu, ~0u, ~0u};
        return 1;
    }
    return 0;
}

API ret_t nvmlEventSetWait_v2(struct event_set *set, struct event_data *out, unsigned timeout_ms) {
    ret_t code = guard();
    if (code) return code;
    if (!set || !out) return INVALID_ARGUMENT;
    uint64_t deadline = now_ms() + timeout_ms;
    for (;;) {
        uint32_t head = load32(&state->head);
        int lost = 0;
        pthread_mutex_lock(&set->lock);
        int found = take_event(set, out);
        for (unsigned i = 0; i < SIM_MAX_DEVICES; i++)
            lost |= set->types[i] && (load32(&state->devices[i].lost) || !load32(&state->devices[i].present));
        pthread_mutex_unlock(&set->lock);
        if (found) return SUCCESS;
        if (lost) return GPU_IS_LOST; /* as the real library does, once what was pending is delivered */
        if ((code = guard())) return code;
        uint64_t now = now_ms();
        if (now >= deadline) return TIMEOUT;
        uint64_t left = deadline - now;
        sleep_while_equal(&state->head, head, left < FUTEX_SLICE_MS ? (unsigned)left : FUTEX_SLICE_MS);
    }
}

API ret_t nvmlEventSetFree(struct event_set *set) {
    if (!set) return INVALID_ARGUMENT;
    pthread_mutex_destroy(&set->lock);
    free(set);
    return SUCCESS;
}
