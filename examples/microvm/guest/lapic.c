/* The local APIC and its timer. Registers: Intel SDM volume 3, 12.4.1. */
#include "guest.h"

#define SPURIOUS 0xf0
#define TIMER 0x320
#define INITIAL 0x380
#define DIVIDE 0x3e0
#define PERIODIC (1 << 17)

void lapic_init(void) {
    mmio_write32(LAPIC_GPA + SPURIOUS, 0x100 | SPURIOUS_VECTOR);
    mmio_write32(LAPIC_GPA + DIVIDE, 0xb); /* by 1: KVM's bus has 1 GHz, so a count is a nanosecond */
    mmio_write32(LAPIC_GPA + TIMER, PERIODIC | TIMER_VECTOR);
}

/* Each write exits: only what changes is written. */
void timer_period(struct vcpu *vcpu, uint32_t us) {
    if (us == vcpu->timer_us) return;
    vcpu->timer_us = us;
    mmio_write32(LAPIC_GPA + INITIAL, us * 1000);
}
