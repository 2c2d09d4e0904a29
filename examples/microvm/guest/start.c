/* Where each vCPU starts, in long mode and unprivileged already, and the loop that it stays in. Interrupts are on throughout. */
#include "guest.h"

#define THOROUGH_EVERY_US 250000
#define BOOT_TIMER_US 500

struct vcpu vcpus[MAX_VCPUS];
static volatile bool booted;

uint64_t ticks_of_us(uint64_t us) { return us * PARAMETERS->tsc_khz / 1000; }

_Noreturn void fail(uint32_t vcpu, enum failure why) {
    STATUS(vcpu)->failure = why;
    STATUS(vcpu)->phase = PHASE_FAILED;
    mmio_write32(PORT_FAILED_GPA, why);
    for (;;) canary_doze(&vcpus[vcpu]);
}

static void boot(void) {
    const struct parameters *p = PARAMETERS;
    if (p->magic != PARAMETERS_MAGIC || p->vcpus < 1 || p->vcpus > MAX_VCPUS || p->queue_depth < 1 ||
        p->queue_depth > MAX_QUEUE_DEPTH || p->units < p->vcpus || p->max_units < 1 ||
        p->max_units > MAX_UNITS_PER_COMMAND || p->ranges < 1 || p->ranges > MAX_RANGES || p->tsc_khz == 0)
        fail(0, FAIL_PARAMETERS);
    STATUS(0)->next_seq = 1;
    arena_init();
    pci_init();
    msix_init();
    nvme_init();
}

static void heartbeat(struct vcpu *vcpu, uint64_t now) {
    volatile struct status *status = vcpu->status;
    if (now < vcpu->last_tsc) status->tsc_errors++;
    const uint64_t gap = now - vcpu->last_tsc;
    const uint64_t generation = CONTROL->gap_generation;
    if (generation != status->gap_generation) {
        status->largest_gap = 0;
        status->gap_generation = generation;
    } else if (now > vcpu->last_tsc && gap > status->largest_gap) {
        status->largest_gap = gap;
    }
    const bool thorough = now - vcpu->last_check > ticks_of_us(THOROUGH_EVERY_US);
    if (thorough) vcpu->last_check = now;
    canary_check(vcpu, thorough);
    vcpu->last_tsc = status->last_tsc = now;
    canary_beat(++status->heartbeats);
}

static _Noreturn void run(struct vcpu *vcpu) {
    vcpu->last_tsc = vcpu->last_check = rdtsc();
    vcpu->status->phase = PHASE_RUNNING;
    for (;;) {
        const uint64_t now = rdtsc();
        /* What was missed while the machine stood still is not caught up on. */
        uint64_t elapsed = now - vcpu->last_tsc;
        if (elapsed > ticks_of_us(100000)) elapsed = ticks_of_us(100000);
        heartbeat(vcpu, now);
        const uint32_t request = CONTROL->drain;
        const bool draining = request != 0;
        bool busy = io_run(vcpu, now, elapsed, draining);
        records_flush(vcpu);
        if (!draining) {
            if (dirty_run(vcpu, elapsed)) busy = true;
            vcpu->status->phase = PHASE_RUNNING;
        } else if (vcpu->in_flight == 0) {
            vcpu->status->drained = request;
            vcpu->status->phase = PHASE_DRAINED;
        }
        const uint32_t us = CONTROL->heartbeat_us;
        timer_period(vcpu, us);
        if (!busy && us != 0) canary_doze(vcpu);
    }
}

__attribute__((used)) _Noreturn void start(uint64_t id) {
    struct vcpu *vcpu = &vcpus[id];
    vcpu->id = (uint32_t)id;
    vcpu->status = STATUS(id);
    vcpu->status->phase = PHASE_BOOTING;
    vcpu->status->records_gpa = (uint64_t)vcpu->records;
    kernel_init();
    lapic_init();
    timer_period(vcpu, BOOT_TIMER_US);
    canary_plant(vcpu);
    if (id == 0) {
        boot();
        booted = true;
    } else {
        while (!booted) canary_doze(vcpu);
    }
    io_init(vcpu);
    if (PARAMETERS->warm) warm(vcpu);
    run(vcpu);
}
