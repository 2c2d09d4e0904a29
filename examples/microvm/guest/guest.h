/* What the files of the guest have in common. */
#ifndef MICROVM_GUEST_H
#define MICROVM_GUEST_H

#include <stdbool.h>

#include "cpu.h"
#include "layout.h"

#define PARAMETERS ((const struct parameters *)PARAMETERS_GPA)
#define CONTROL ((const volatile struct control *)CONTROL_GPA)
#define STATUS(n) ((volatile struct status *)(STATUS_GPA + (n)*PAGE))

#define SLOTS 64
#define QUEUE_ENTRIES 64
#define UNIT_BYTES 4096
#define MAX_UNITS_PER_COMMAND 8

/* A submission and a completion queue, both of QUEUE_ENTRIES and in a page each. */
struct queue_pair {
    uint32_t id;
    uint64_t sq, cq;
    uint32_t sq_tail, sq_head;
    uint32_t cq_head, phase;
};

struct completion {
    uint32_t dw0, dw1;
    uint16_t sq_head, sq_id, cid, status;
};

/* An NVMe command: 64 bytes. */
struct command_entry {
    uint8_t opcode, flags;
    uint16_t cid;
    uint32_t nsid;
    uint64_t reserved, metadata, prp1, prp2;
    uint32_t dw10, dw11, dw12, dw13, dw14, dw15;
};
_Static_assert(sizeof(struct command_entry) == 64 && sizeof(struct completion) == 16, "NVMe Base 2.1, 3.3.3.1 and 4.2");

/* A command in flight, or room for one. */
struct slot {
    bool used;
    bool telemetry; /* a read into TELEMETRY_GPA */
    uint8_t opcode;
    uint16_t cid;
    uint16_t units;
    uint32_t epoch;
    uint64_t unit, seq;
    uint64_t rested; /* sequence that was next when it became free */
};

/* What the guest expects of a unit of the namespace. */
struct expected {
    uint64_t seq;
    uint32_t epoch, zero;
};

/* Everything that one vCPU has. No vCPU touches another's. */
struct vcpu {
    uint32_t id;
    volatile struct status *status;

    uint32_t timer_us;
    uint64_t cr2; /* what was left there */

    struct queue_pair queue;
    struct slot slots[SLOTS];
    uint32_t in_flight;
    uint16_t next_cid;
    uint64_t first_unit, units;
    uint64_t random;
    uint64_t io_budget;
    uint64_t last_look;
    uint32_t looks;
    uint64_t last_telemetry, last_written;

    uint64_t page, pages; /* position in its share of the working set, and how large that is */
    uint64_t pass;
    bool verified_pass; /* everything from here to the end was written by the pass before */
    uint64_t dirty_budget;

    uint64_t last_tsc, last_check;
    uint32_t record_count;
    struct record records[RECORDS_MAX];
};

extern struct vcpu vcpus[MAX_VCPUS];

/* start.c */
uint64_t ticks_of_us(uint64_t us);
_Noreturn void fail(uint32_t vcpu, enum failure why);

/* kernel.c */
#define TIMER_VECTOR 0x30
#define DEVICE_VECTOR 0x41 /* + vCPU */
#define SPURIOUS_VECTOR 0xff
extern volatile uint64_t device_interrupts[MAX_VCPUS];
extern volatile bool device_interrupted[MAX_VCPUS]; /* set by the device's interrupts */
void kernel_init(void);
/* Halts until the next interrupt, unless device_interrupted is set. Leaves a value in CR2 and says what was there. */
uint64_t doze(uint32_t vcpu, uint64_t cr2);
uint64_t read_msr(uint32_t msr);
void write_msr(uint32_t msr, uint64_t value);
void read_debug(uint64_t *dr0, uint64_t *dr3);
void write_debug(uint64_t dr0, uint64_t dr3);

/* lapic.c */
void lapic_init(void);
void timer_period(struct vcpu *vcpu, uint32_t us);

/* pci.c */
void pci_init(void);
/* Programs the MSI-X entry of each vCPU's queue: vector of the device is 1 + vCPU. */
void msix_init(void);
bool msix_is_ours(uint32_t vcpu);

/* nvme.c */
void nvme_init(void);
uint32_t nvme_max_units(void);
uint32_t nvme_blocks_per_unit(void);
void nvme_submit(struct queue_pair *queue, const struct command_entry *command);
void nvme_ring(const struct queue_pair *queue);
bool nvme_waiting(const struct queue_pair *queue);
bool nvme_take(struct queue_pair *queue, struct completion *completion);
void nvme_taken(const struct queue_pair *queue);

/* arena.c */
uint64_t arena_pages(uint64_t pages);
void arena_init(void);
uint64_t working_set_page(uint64_t index);
struct expected *expected_of(uint64_t unit);
uint64_t slot_buffer(const struct vcpu *vcpu, uint32_t slot);
uint64_t slot_list(const struct vcpu *vcpu, uint32_t slot);
void warm(const struct vcpu *vcpu);

/* block.c */
enum found { FOUND_BLANK, FOUND_VERSION, FOUND_INVALID };
void block_fill(uint64_t *block, uint64_t unit, uint64_t seq, uint32_t epoch);
enum found block_inspect(const uint64_t *block, uint64_t unit, uint64_t *seq, uint32_t *epoch);

/* records.c */
struct record *record_new(struct vcpu *vcpu, enum record_kind kind);
void records_flush(struct vcpu *vcpu);

/* io.c */
void io_init(struct vcpu *vcpu);
/* Does what is due; says whether more is due right away. */
bool io_run(struct vcpu *vcpu, uint64_t now, uint64_t elapsed, bool draining);

/* dirty.c */
bool dirty_run(struct vcpu *vcpu, uint64_t elapsed);

/* canary.c */
void canary_plant(struct vcpu *vcpu);
void canary_beat(uint64_t beats);
void canary_check(struct vcpu *vcpu, bool thorough);
/* Halts, with a look at what is in CR2 meanwhile. */
void canary_doze(struct vcpu *vcpu);

static inline void zero_page(uint64_t page) {
    volatile uint64_t *word = (volatile uint64_t *)page;
    for (unsigned n = 0; n < PAGE / 8; n++) word[n] = 0;
}

#endif
