/* NVML's event sets: a wait that blocks on the head of the event ring. */
#include "sim.h"

#define EVENT_XID 0x8ull

struct event_set {
    pthread_mutex_t lock;
    uint32_t cursor;                /* last event looked at */
    uint64_t types[SIM_MAX_DEVICES]; /* 0: not registered */
    uint32_t since[SIM_MAX_DEVICES]; /* events up to here happened before registration */
};

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
