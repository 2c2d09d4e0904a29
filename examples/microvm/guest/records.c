/* What leaves for the witness: a buffer of records, and a word by which the VMM is told to take it. */
#include "guest.h"

struct record *record_new(struct vcpu *vcpu, enum record_kind kind) {
    if (vcpu->record_count == RECORDS_MAX) records_flush(vcpu);
    struct record *record = &vcpu->records[vcpu->record_count++];
    *record = (struct record){
        .kind = (uint8_t)kind,
        .next_seq = STATUS(0)->next_seq,
        .in_flight = vcpu->in_flight,
    };
    return record;
}

void records_flush(struct vcpu *vcpu) {
    if (vcpu->record_count == 0) return;
    mmio_write32(PORT_RECORDS_GPA, vcpu->record_count << 8 | vcpu->id);
    vcpu->record_count = 0;
}
