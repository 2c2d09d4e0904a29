/* The controller: enabled as Linux does it, with an admin queue and one I/O queue pair a vCPU. Registers: NVMe Base 2.1, 3.1.4. */
#include "guest.h"

#define CAP 0x00
#define VS 0x08
#define CC 0x14
#define CSTS 0x1c
#define AQA 0x24
#define ASQ 0x28
#define ACQ 0x30
#define DOORBELLS 0x1000

#define ADMIN_TIMEOUT_US 10000000ull
static uint32_t reg_read(uint32_t offset) { return mmio_read32(BAR0_GPA + offset); }
static void reg_write(uint32_t offset, uint32_t value) { mmio_write32(BAR0_GPA + offset, value); }

static void reg_write64(uint32_t offset, uint64_t value) {
    reg_write(offset, (uint32_t)value);
    reg_write(offset + 4, (uint32_t)(value >> 32));
}

static struct queue_pair admin;
static uint64_t shadow; /* page of shadow doorbells; 0: none */
static uint16_t admin_cid;
static uint32_t max_units, blocks_per_unit;

uint32_t nvme_max_units(void) { return max_units; }
uint32_t nvme_blocks_per_unit(void) { return blocks_per_unit; }

/* The VMM may not see the value of a doorbell whose write it only counts: it is left where it can look. */
static void doorbell(uint32_t index, uint32_t value) {
    if (shadow != 0) *(volatile uint32_t *)(shadow + 4ull * index) = value;
    /* x86 keeps stores in order; the compiler has to. */
    __asm__ volatile("" : : : "memory");
    reg_write(DOORBELLS + 4 * index, value);
}

static struct queue_pair new_pair(uint32_t id) {
    return (struct queue_pair){.id = id, .sq = arena_pages(1), .cq = arena_pages(1), .phase = 1};
}

void nvme_submit(struct queue_pair *queue, const struct command_entry *command) {
    ((struct command_entry *)queue->sq)[queue->sq_tail] = *command;
    queue->sq_tail = (queue->sq_tail + 1) % QUEUE_ENTRIES;
}

void nvme_ring(const struct queue_pair *queue) { doorbell(2 * queue->id, queue->sq_tail); }

static volatile struct completion *head_of(const struct queue_pair *queue) {
    return (volatile struct completion *)queue->cq + queue->cq_head;
}

bool nvme_waiting(const struct queue_pair *queue) { return (head_of(queue)->status & 1) == queue->phase; }

bool nvme_take(struct queue_pair *queue, struct completion *completion) {
    if (!nvme_waiting(queue)) return false;
    /* The rest is read after the phase was seen: x86 keeps loads in order. */
    __asm__ volatile("" : : : "memory");
    *completion = *head_of(queue);
    queue->sq_head = completion->sq_head;
    if (++queue->cq_head == QUEUE_ENTRIES) {
        queue->cq_head = 0;
        queue->phase ^= 1;
    }
    return true;
}

void nvme_taken(const struct queue_pair *queue) { doorbell(2 * queue->id + 1, queue->cq_head); }

/* Sends an admin command and waits for its completion. */
static uint32_t admin_run(struct command_entry command) {
    command.cid = ++admin_cid;
    nvme_submit(&admin, &command);
    nvme_ring(&admin);
    const uint64_t from = rdtsc();
    struct completion completion;
    while (!nvme_take(&admin, &completion)) {
        if (rdtsc() - from > ticks_of_us(ADMIN_TIMEOUT_US)) fail(0, FAIL_ADMIN);
        canary_doze(&vcpus[0]);
    }
    nvme_taken(&admin);
    if (completion.cid != command.cid || (completion.status >> 1 & 0x7ff) != 0) fail(0, FAIL_ADMIN);
    return completion.dw0;
}

static void wait_ready(uint32_t ready, uint64_t limit_us) {
    const uint64_t from = rdtsc();
    for (;;) {
        const uint32_t csts = reg_read(CSTS);
        if (csts == 0xffffffff) fail(0, FAIL_NO_DEVICE);
        if (ready && (csts & 2)) fail(0, FAIL_READY);
        if ((csts & 1) == ready) return;
        if (rdtsc() - from > ticks_of_us(limit_us)) fail(0, FAIL_READY);
        canary_doze(&vcpus[0]);
    }
}

static uint64_t enable(void) {
    const uint32_t cap = reg_read(CAP), cap_high = reg_read(CAP + 4);
    if (reg_read(VS) == 0xffffffff) fail(0, FAIL_NO_DEVICE);
    const uint64_t limit_us = 500000ull * ((cap >> 24) + 1);
    /* MQES, DSTRD, MPSMIN */
    if ((cap & 0xffff) + 1 < QUEUE_ENTRIES || (cap_high & 0xf) != 0 || (cap_high >> 16 & 0xf) != 0) fail(0, FAIL_CAP);
    reg_write(CC, reg_read(CC) & ~1u);
    wait_ready(0, limit_us);
    admin = new_pair(0);
    reg_write(AQA, (QUEUE_ENTRIES - 1) << 16 | (QUEUE_ENTRIES - 1));
    reg_write64(ASQ, admin.sq);
    reg_write64(ACQ, admin.cq);
    /* Entries of 64 and 16 bytes; EN last, as Linux. */
    const uint32_t cc = 4 << 20 | 6 << 16;
    reg_write(CC, cc);
    reg_write(CC, cc | 1);
    wait_ready(1, limit_us);
    return cap;
}

static void identify(void) {
    const struct parameters *p = PARAMETERS;
    const uint64_t page = arena_pages(1);
    admin_run((struct command_entry){.opcode = 0x06, .prp1 = page, .dw10 = 1});
    const uint8_t mdts = ((const volatile uint8_t *)page)[77];
    max_units = p->max_units;
    if (mdts != 0 && mdts < 4 && max_units > 1u << mdts) max_units = 1u << mdts;

    admin_run((struct command_entry){.opcode = 0x06, .nsid = p->nsid, .prp1 = page});
    const volatile uint8_t *ns = (const volatile uint8_t *)page;
    const uint64_t blocks = *(const volatile uint64_t *)page;
    const uint8_t format = ns[26] & 0xf, shift = ns[128 + 4 * format + 2];
    if (shift < 9 || shift > 12) fail(0, FAIL_NAMESPACE);
    blocks_per_unit = UNIT_BYTES >> shift;
    if (blocks / blocks_per_unit < p->units) fail(0, FAIL_NAMESPACE);
}

static void create_queues(void) {
    const uint32_t pairs = PARAMETERS->vcpus;
    const uint32_t granted =
        admin_run((struct command_entry){.opcode = 0x09, .dw10 = 7, .dw11 = (pairs - 1) << 16 | (pairs - 1)});
    if ((granted & 0xffff) + 1 < pairs || (granted >> 16) + 1 < pairs) fail(0, FAIL_QUEUES);
    for (uint32_t n = 0; n < pairs; n++) {
        const uint32_t id = n + 1;
        vcpus[n].queue = new_pair(id);
        const struct queue_pair *queue = &vcpus[n].queue;
        const uint32_t size = (QUEUE_ENTRIES - 1) << 16 | id;
        /* Contiguous, with interrupts; the vector has the number of the queue. */
        admin_run((struct command_entry){.opcode = 0x05, .prp1 = queue->cq, .dw10 = size, .dw11 = id << 16 | 3});
        admin_run((struct command_entry){.opcode = 0x01, .prp1 = queue->sq, .dw10 = size, .dw11 = id << 16 | 1});
    }
}

void nvme_init(void) {
    if (PARAMETERS->shadow_doorbells) {
        shadow = arena_pages(1);
        STATUS(0)->shadow_gpa = shadow;
    }
    enable();
    identify();
    create_queues();
}
