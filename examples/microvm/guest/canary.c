/*
 * Things of the vCPU that change only when the guest changes them, or that it changes with each heartbeat: if one of them is not as it was left,
 * then vCPU state was lost on the way, or is older than memory.
 *
 * The code is compiled for general registers only, so the vector registers are the guest's own to keep things in.
 */
#include "guest.h"

#define MSR_LSTAR 0xc0000082
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_SYSENTER_EIP 0x176

struct vector {
    uint64_t low, high;
};

static uint64_t value(const struct vcpu *vcpu, unsigned n) {
    return (0xca9a0000u + 0x100 * vcpu->id + n) * 0x10001ull & 0x7fffffffffff;
}

void canary_plant(struct vcpu *vcpu) {
    const struct vector kept = {value(vcpu, 7), value(vcpu, 8)};
    __asm__ volatile("movups %0, %%xmm15" : : "m"(kept));
    canary_beat(0);
    write_msr(MSR_LSTAR, value(vcpu, 1));
    write_msr(MSR_KERNEL_GS_BASE, value(vcpu, 2));
    write_msr(MSR_SYSENTER_EIP, value(vcpu, 3));
    write_debug(value(vcpu, 4), value(vcpu, 5));
}

/* The count of heartbeats is in memory and in XMM14 (section XSAVE). */
void canary_beat(uint64_t beats) {
    const struct vector vector = {beats, ~beats};
    __asm__ volatile("movups %0, %%xmm14" : : "m"(vector));
}

static bool is_whole(const struct vcpu *vcpu) {
    uint64_t dr0, dr3;
    read_debug(&dr0, &dr3);
    return dr0 == value(vcpu, 4) && dr3 == value(vcpu, 5) && read_msr(MSR_LSTAR) == value(vcpu, 1) &&
           read_msr(MSR_KERNEL_GS_BASE) == value(vcpu, 2) && read_msr(MSR_SYSENTER_EIP) == value(vcpu, 3) &&
           msix_is_ours(vcpu->id);
}

void canary_check(struct vcpu *vcpu, bool thorough) {
    const uint64_t beats = vcpu->status->heartbeats;
    struct vector xmm14, xmm15;
    __asm__ volatile("movups %%xmm14, %0; movups %%xmm15, %1" : "=m"(xmm14), "=m"(xmm15));
    bool right = xmm14.low == beats && xmm14.high == ~beats;
    right = right && xmm15.low == value(vcpu, 7) && xmm15.high == value(vcpu, 8);
    if (thorough) right = right && is_whole(vcpu);
    if (!right) vcpu->status->state_errors++;
}

/* CR2 (section SREGS) changes with each doze. */
void canary_doze(struct vcpu *vcpu) {
    const uint64_t expected = vcpu->cr2;
    if (doze(vcpu->id, ++vcpu->cr2) != expected) vcpu->status->state_errors++;
}
