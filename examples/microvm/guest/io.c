/* The workload on the namespace: writes, reads that are verified, flushes, at a rate. No two commands in flight touch the same unit. */
#include "guest.h"

#define OP_FLUSH 0
#define OP_WRITE 1
#define OP_READ 2
#define FLUSH_ONE_IN 64
#define LOOK_EVERY_US 25000
/* So many looks in a row that find a completion without an interrupt, two seconds of them: one was lost. A pause makes no look; a host that is busy
 * takes its time to deliver one. */
#define LOOKS_UNTIL_LOST 80
#define BATCH 16
#define TELEMETRY_EVERY_US 2000

static uint64_t random(struct vcpu *vcpu) {
    /* xorshift64* */
    uint64_t x = vcpu->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    vcpu->random = x;
    return x * 0x2545f4914f6cdd1dull;
}

void io_init(struct vcpu *vcpu) {
    const struct parameters *p = PARAMETERS;
    const uint64_t share = p->units / p->vcpus;
    vcpu->first_unit = share * vcpu->id;
    vcpu->units = vcpu->id + 1 == p->vcpus ? p->units - vcpu->first_unit : share;
    vcpu->random = (p->seed + vcpu->id) * 0x9e3779b97f4a7c15ull | 1;
}

/* The free slot that has rested longest, so that a device that executes a command twice mostly still finds its data. */
static struct slot *free_slot(struct vcpu *vcpu) {
    struct slot *best = 0;
    for (unsigned n = 0; n < SLOTS; n++) {
        struct slot *slot = &vcpu->slots[n];
        if (!slot->used && (!best || slot->rested < best->rested)) best = slot;
    }
    return best;
}

static bool touched(const struct vcpu *vcpu, uint64_t unit, uint64_t units) {
    for (unsigned n = 0; n < SLOTS; n++) {
        const struct slot *slot = &vcpu->slots[n];
        if (slot->used && slot->opcode != OP_FLUSH && slot->unit < unit + units && unit < slot->unit + slot->units)
            return true;
    }
    return false;
}

static bool cid_in_use(const struct vcpu *vcpu, uint16_t cid) {
    for (unsigned n = 0; n < SLOTS; n++)
        if (vcpu->slots[n].used && vcpu->slots[n].cid == cid) return true;
    return false;
}

static void choose(struct vcpu *vcpu, struct slot *slot) {
    const uint64_t dice = random(vcpu);
    slot->units = 0;
    slot->unit = 0;
    slot->opcode = OP_FLUSH;
    if (dice % FLUSH_ONE_IN == 0) return;
    uint64_t units = 1 + (dice >> 8) % nvme_max_units();
    if (units > vcpu->units) units = vcpu->units;
    uint64_t unit = 0;
    for (unsigned tries = 0;; tries++) {
        /* A flush where no place is found. */
        if (tries == 8) return;
        unit = vcpu->first_unit + random(vcpu) % (vcpu->units - units + 1);
        if (!touched(vcpu, unit, units)) break;
    }
    slot->opcode = random(vcpu) % 100 < CONTROL->read_percent ? OP_READ : OP_WRITE;
    slot->unit = unit;
    slot->units = (uint16_t)units;
}

static void set_prps(struct command_entry *command, uint64_t buffer, uint64_t list, uint32_t pages) {
    command->prp1 = buffer;
    if (pages == 2) command->prp2 = buffer + PAGE;
    if (pages <= 2) return;
    for (uint32_t n = 1; n < pages; n++) ((uint64_t *)list)[n - 1] = buffer + n * PAGE;
    command->prp2 = list;
}

static void submit(struct vcpu *vcpu, struct slot *slot) {
    const uint32_t index = (uint32_t)(slot - vcpu->slots);
    choose(vcpu, slot);
    do vcpu->next_cid++;
    while (cid_in_use(vcpu, vcpu->next_cid));
    slot->cid = vcpu->next_cid;
    slot->epoch = CONTROL->epoch;
    slot->seq = __atomic_fetch_add(&STATUS(0)->next_seq, 1, __ATOMIC_SEQ_CST);
    slot->used = true;
    vcpu->status->in_flight = ++vcpu->in_flight;

    const uint64_t buffer = slot_buffer(vcpu, index);
    for (uint32_t n = 0; n < slot->units; n++) {
        uint64_t *block = (uint64_t *)(buffer + n * PAGE);
        if (slot->opcode == OP_WRITE)
            block_fill(block, slot->unit + n, slot->seq, slot->epoch);
        else
            block[0] = ~0ull; /* What was there before must not pass for what was read. */
    }
    struct command_entry command = {.opcode = slot->opcode, .cid = slot->cid, .nsid = PARAMETERS->nsid};
    if (slot->opcode != OP_FLUSH) {
        const uint64_t lba = slot->unit * nvme_blocks_per_unit();
        set_prps(&command, buffer, slot_list(vcpu, index), slot->units);
        command.dw10 = (uint32_t)lba;
        command.dw11 = (uint32_t)(lba >> 32);
        command.dw12 = slot->units * nvme_blocks_per_unit() - 1;
    }
    nvme_submit(&vcpu->queue, &command);
}

/*
 * A page that only the device writes, as it does with logs that a host has asked for: whoever forgets the device's writes loses it. The data is the unit
 * that was written last, so that it is never the same for long.
 */
static void telemetry(struct vcpu *vcpu) {
    struct slot *slot = free_slot(vcpu);
    do vcpu->next_cid++;
    while (cid_in_use(vcpu, vcpu->next_cid));
    *slot = (struct slot){.used = true, .telemetry = true, .opcode = OP_READ, .cid = vcpu->next_cid};
    vcpu->status->in_flight = ++vcpu->in_flight;
    const uint64_t lba = vcpu->last_written * nvme_blocks_per_unit();
    const struct command_entry command = {
        .opcode = OP_READ,
        .cid = slot->cid,
        .nsid = PARAMETERS->nsid,
        .prp1 = TELEMETRY_GPA,
        .dw10 = (uint32_t)lba,
        .dw11 = (uint32_t)(lba >> 32),
        .dw12 = nvme_blocks_per_unit() - 1,
    };
    nvme_submit(&vcpu->queue, &command);
}

static void wrote(struct vcpu *vcpu, const struct slot *slot) {
    struct record *record = record_new(vcpu, RECORD_WRITE);
    record->seq = record->found_seq = slot->seq;
    record->found_epoch = slot->epoch;
    record->units = (uint8_t)slot->units;
    record->unit = slot->unit;
    record->cid = slot->cid;
    for (uint32_t n = 0; n < slot->units; n++)
        *expected_of(slot->unit + n) = (struct expected){.seq = slot->seq, .epoch = slot->epoch};
    vcpu->last_written = slot->unit;
    vcpu->status->writes++;
}

static void read(struct vcpu *vcpu, const struct slot *slot) {
    const uint64_t buffer = slot_buffer(vcpu, (uint32_t)(slot - vcpu->slots));
    for (uint32_t n = 0; n < slot->units; n++) {
        const uint64_t unit = slot->unit + n;
        const struct expected *expected = expected_of(unit);
        uint64_t seq;
        uint32_t epoch;
        const enum found found = block_inspect((const uint64_t *)(buffer + n * PAGE), unit, &seq, &epoch);
        const bool right = found != FOUND_INVALID && seq == expected->seq && epoch == expected->epoch;
        struct record *record = record_new(vcpu, RECORD_READ);
        record->seq = slot->seq;
        record->unit = unit;
        record->units = 1;
        record->found_seq = found == FOUND_INVALID ? ~0ull : seq;
        record->found_epoch = epoch;
        record->cid = slot->cid;
        if (!right) {
            record->flags = RECORD_UNEXPECTED;
            vcpu->status->mismatches++;
        }
    }
    vcpu->status->reads++;
}

static void failed(struct vcpu *vcpu, const struct slot *slot, uint16_t status) {
    struct record *record = record_new(vcpu, RECORD_ERROR);
    record->seq = slot->seq;
    record->unit = slot->unit;
    record->units = (uint8_t)slot->units;
    record->status = status;
    record->cid = slot->cid;
    record->flags = (uint8_t)(slot->opcode << 4);
    vcpu->status->errors++;
}

static void completed(struct vcpu *vcpu, const struct completion *completion) {
    struct slot *slot = 0;
    for (unsigned n = 0; n < SLOTS; n++)
        if (vcpu->slots[n].used && vcpu->slots[n].cid == completion->cid) slot = &vcpu->slots[n];
    const uint16_t status = completion->status >> 1;
    if (!slot) {
        struct record *record = record_new(vcpu, RECORD_DUPLICATE);
        record->cid = completion->cid;
        record->status = status;
        vcpu->status->duplicates++;
        return;
    }
    vcpu->status->in_flight = --vcpu->in_flight;
    if (slot->telemetry) {
        if (status & 0x7ff) vcpu->status->errors++;
    } else if (status & 0x7ff) {
        failed(vcpu, slot, status);
    } else if (slot->opcode == OP_WRITE) {
        wrote(vcpu, slot);
    } else if (slot->opcode == OP_READ) {
        read(vcpu, slot);
    } else {
        struct record *record = record_new(vcpu, RECORD_FLUSH);
        record->seq = slot->seq;
        record->cid = slot->cid;
        vcpu->status->flushes++;
    }
    slot->used = slot->telemetry = false;
    slot->rested = STATUS(0)->next_seq;
}

/* A completion comes with an interrupt. One that lies there without is only found by looking, as Linux does on a timeout. */
static bool lost_interrupt(struct vcpu *vcpu, uint64_t now) {
    if (now - vcpu->last_look < ticks_of_us(LOOK_EVERY_US)) return false;
    vcpu->last_look = now;
    vcpu->looks = nvme_waiting(&vcpu->queue) ? vcpu->looks + 1 : 0;
    if (vcpu->looks < LOOKS_UNTIL_LOST) return false;
    vcpu->status->lost_interrupts++;
    return true;
}

static void complete(struct vcpu *vcpu) {
    struct completion completion;
    unsigned taken = 0;
    while (taken < QUEUE_ENTRIES && nvme_take(&vcpu->queue, &completion)) {
        completed(vcpu, &completion);
        taken++;
    }
    vcpu->looks = 0;
    if (taken == 0) return;
    nvme_taken(&vcpu->queue);
    vcpu->status->doorbells++;
}

bool io_run(struct vcpu *vcpu, uint64_t now, uint64_t elapsed, bool draining) {
    vcpu->status->interrupts = device_interrupts[vcpu->id];
    if (device_interrupted[vcpu->id] || lost_interrupt(vcpu, now)) {
        /* First: an interrupt from now on is about what comes from now on. */
        device_interrupted[vcpu->id] = false;
        complete(vcpu);
    }
    const uint64_t second = PARAMETERS->tsc_khz * 1000ull;
    const uint32_t share = CONTROL->iops / PARAMETERS->vcpus;
    vcpu->io_budget += elapsed * share;
    /* At most a queue's worth is caught up on. */
    const uint64_t most = second * PARAMETERS->queue_depth;
    if (vcpu->io_budget > most) vcpu->io_budget = most;
    if (draining) return false;
    unsigned submitted = 0;
    while (vcpu->io_budget >= second && vcpu->in_flight < PARAMETERS->queue_depth && submitted < BATCH) {
        submit(vcpu, free_slot(vcpu));
        vcpu->io_budget -= second;
        submitted++;
    }
    const bool is_due = vcpu->id == 0 && now - vcpu->last_telemetry >= ticks_of_us(TELEMETRY_EVERY_US);
    if (is_due && vcpu->in_flight < PARAMETERS->queue_depth) {
        vcpu->last_telemetry = now;
        telemetry(vcpu);
    } else if (submitted == 0) {
        return false;
    }
    nvme_ring(&vcpu->queue);
    vcpu->status->doorbells++;
    return submitted == BATCH;
}
