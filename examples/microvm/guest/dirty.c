/* The workload on memory: pages of the working set one after the other, each found as the pass before left it. */
#include "guest.h"

#define BATCH 64
/* How late a doze, of a heartbeat's length, may end without anything being missed. */
#define LATE_US 1000
#define MARK 0x5745545f4547415dull

static bool write_page(struct vcpu *vcpu, uint64_t index) {
    volatile uint64_t *page = (volatile uint64_t *)working_set_page(index);
    const uint64_t mark = MARK ^ index * 0x9e3779b97f4a7c15ull;
    bool right = true;
    if (vcpu->verified_pass) right = page[0] == mark && page[1] == vcpu->pass - 1 && page[256] == mark + vcpu->pass - 1;
    page[0] = mark;
    page[1] = vcpu->pass;
    page[256] = mark + vcpu->pass;
    return right;
}

bool dirty_run(struct vcpu *vcpu, uint64_t elapsed) {
    const uint32_t parts = PARAMETERS->vcpus;
    uint64_t limit = STATUS(0)->working_set_limit;
    uint64_t pages = CONTROL->working_set_pages;
    if (pages > limit) pages = limit;
    pages = (pages + parts - 1 - vcpu->id) / parts;
    if (pages != vcpu->pages) {
        /* Another working set: what its pages hold is learnt in one pass. */
        vcpu->pages = pages;
        vcpu->page = 0;
        vcpu->pass++;
        vcpu->verified_pass = false;
    }
    if (pages == 0) return false;
    const uint64_t second = PARAMETERS->tsc_khz * 1000ull;
    const uint64_t rate = CONTROL->dirty_pages_per_s / parts;
    vcpu->dirty_budget += elapsed * rate;
    /* As a program that writes what it has worked out: what it got no processor for, it does not make up for. Else a throttled vCPU could write
     * as much as before, and how much of it would be up to how fast the machine is. */
    uint64_t most = ticks_of_us(CONTROL->heartbeat_us + LATE_US) * rate;
    if (most < second) most = second;
    if (vcpu->dirty_budget > most) vcpu->dirty_budget = most;
    for (unsigned n = 0; n < BATCH; n++) {
        if (vcpu->dirty_budget < second) return false;
        vcpu->dirty_budget -= second;
        if (!write_page(vcpu, vcpu->page * parts + vcpu->id)) vcpu->status->memory_errors++;
        vcpu->status->pages_written++;
        if (++vcpu->page < pages) continue;
        vcpu->page = 0;
        vcpu->pass++;
        vcpu->verified_pass = true;
    }
    return vcpu->dirty_budget >= second;
}
