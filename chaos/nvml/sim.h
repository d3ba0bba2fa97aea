/* What the parts of the simulated NVML share: the mapped state, and the guards that every call asks first. */
#ifndef SIM_H
#define SIM_H
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
#define FUTEX_SLICE_MS 20 /* a lost wake-up, or a writer that cannot wake, costs at most this */

typedef unsigned int ret_t;
struct handle {
    unsigned index;
};
typedef struct handle *device_t;


extern struct handle sim_handles[SIM_MAX_DEVICES];
extern const struct sim_state *volatile sim_state_map;
extern unsigned sim_references; /* of nvmlInit, less nvmlShutdown */
#define state sim_state_map
#define handles sim_handles
#define references sim_references

uint64_t now_ms(void);
uint32_t load32(const uint32_t *word);
/* Sleep until *word is no longer `value`, somebody wakes us, or `ms` have passed. */
void sleep_while_equal(const uint32_t *word, uint32_t value, unsigned ms);
void wait_while_hung(const uint32_t *flag);
/* 0, or what a call on no device in particular must answer. Blocks while the driver hangs. */
ret_t guard(void);
/* The same for a call on a device; `*out` is its state. */
ret_t guard_device(device_t handle, const struct sim_devicestate **out);

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

#endif
