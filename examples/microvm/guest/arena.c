/* Guest memory behind the program: what the driver uses, and the working set. */
#include "guest.h"

static uint64_t next = ARENA_GPA;
static uint64_t table, buffers[MAX_VCPUS], lists[MAX_VCPUS];
static uint64_t working_set_pages;

/* Pages one after the other, zeroed. RAM begins with one range that is large enough, or there is no guest. */
uint64_t arena_pages(uint64_t pages) {
    const uint64_t page = next;
    const struct parameters *p = PARAMETERS;
    if (p->range[0].gpa != 0 || pages > (p->range[0].len - page) / PAGE) fail(0, FAIL_MEMORY);
    next += pages * PAGE;
    for (uint64_t n = 0; n < pages; n++) zero_page(page + n * PAGE);
    return page;
}

void arena_init(void) {
    const struct parameters *p = PARAMETERS;
    if (p->range[0].len < ARENA_GPA) fail(0, FAIL_MEMORY);
    table = arena_pages((p->units * sizeof(struct expected) + PAGE - 1) / PAGE);
    for (uint32_t n = 0; n < p->vcpus; n++) {
        buffers[n] = arena_pages(SLOTS * MAX_UNITS_PER_COMMAND);
        lists[n] = arena_pages(SLOTS);
    }
    /* Room for queues and what else the driver takes: they come after, so the working set begins behind that. */
    const uint64_t reserve = 64 * PAGE;
    if (p->range[0].len < next + reserve + PAGE) fail(0, FAIL_MEMORY);
    working_set_pages = (p->range[0].len - next - reserve) / PAGE;
    for (uint32_t n = 1; n < p->ranges; n++) working_set_pages += p->range[n].len / PAGE;
    STATUS(0)->working_set_limit = working_set_pages;
}

/* From the end of the first range down, then the other ranges up: nothing has to be known of where the driver's part ends. */
uint64_t working_set_page(uint64_t index) {
    const struct parameters *p = PARAMETERS;
    uint64_t first = working_set_pages;
    for (uint32_t n = 1; n < p->ranges; n++) first -= p->range[n].len / PAGE;
    if (index < first) return p->range[0].len - (index + 1) * PAGE;
    index -= first;
    for (uint32_t n = 1; n < p->ranges; n++) {
        const uint64_t pages = p->range[n].len / PAGE;
        if (index < pages) return p->range[n].gpa + index * PAGE;
        index -= pages;
    }
    fail(0, FAIL_MEMORY);
}

struct expected *expected_of(uint64_t unit) { return (struct expected *)table + unit; }

uint64_t slot_buffer(const struct vcpu *vcpu, uint32_t slot) {
    return buffers[vcpu->id] + slot * MAX_UNITS_PER_COMMAND * PAGE;
}

uint64_t slot_list(const struct vcpu *vcpu, uint32_t slot) { return lists[vcpu->id] + slot * PAGE; }

/* The memory of a machine in use is neither untouched nor zero. Each vCPU takes its share. */
void warm(const struct vcpu *vcpu) {
    for (uint64_t n = vcpu->id; n < working_set_pages; n += PARAMETERS->vcpus) {
        const uint64_t page = working_set_page(n);
        *(volatile uint64_t *)(page + PAGE - 8) = page ^ PARAMETERS->seed;
    }
}
