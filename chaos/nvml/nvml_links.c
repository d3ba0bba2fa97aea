/* NVLink, NVSwitch fabric and MIG of the simulated NVML. */
#include "sim.h"

API ret_t nvmlDeviceGetNvLinkState(device_t handle, unsigned link, unsigned *active) {
    DEVICE(handle);
    NEEDS(SIM_FEATURE_NVLINK);
    if (!active || link >= d->nvlink_count) return INVALID_ARGUMENT;
    *active = (d->nvlink_up >> link) & 1u;
    return SUCCESS;
}

struct fabric_info { /* nvmlGpuFabricInfo_v2_t */
    uint32_t version;
    uint8_t cluster[16];
    uint32_t status, clique;
    uint8_t state;
    uint32_t health;
};

API ret_t nvmlDeviceGetGpuFabricInfoV(device_t handle, struct fabric_info *info) {
    DEVICE(handle);
    NEEDS(SIM_FEATURE_NVLINK);
    if (!info) return INVALID_ARGUMENT;
    if (info->version != (2u << 24 | sizeof *info)) return ARGUMENT_VERSION_MISMATCH;
    memset(info->cluster, 0, sizeof info->cluster);
    info->status = SUCCESS;
    info->clique = 0;
    info->state = (uint8_t)d->fabric_state;
    info->health = 0;
    return SUCCESS;
}

API ret_t nvmlDeviceGetMigMode(device_t handle, unsigned *current, unsigned *pending) {
    DEVICE(handle);
    NEEDS(SIM_FEATURE_REMAPPED_ROWS); /* Ampere and newer, as MIG */
    if (!current || !pending) return INVALID_ARGUMENT;
    *current = *pending = d->mig_enabled;
    return SUCCESS;
}
