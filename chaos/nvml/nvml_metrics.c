/* What NVML measures: one call per metric, answered from the state. */
#include "sim.h"

GETTER(nvmlDeviceGetArchitecture, unsigned, architecture)

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
        } else if ((v->field == 138 || v->field == 139) && (d->features & SIM_FEATURE_NVLINK)) {
            v->type = 3; /* unsigned long long */
            v->value.ull = v->field == 138 ? d->nvlink_tx : d->nvlink_rx;
            v->result = SUCCESS;
        } else if ((v->field == 38 || v->field == 59) && (d->features & SIM_FEATURE_NVLINK)) {
            v->type = 3; /* all of either kind in one of its two counters */
            v->value.ull = v->field == 38 ? d->nvlink_crc_errors : d->nvlink_recoveries;
            v->result = SUCCESS;
        } else if (v->field == 197 || v->field == 198) {
            v->type = 3;
            v->value.ull = v->field == 197 ? d->pcie_tx : d->pcie_rx;
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
