/*
 * Things of the vCPU that change only when the guest changes them, or that it changes with each heartbeat: if one of them is not as it was left,
 * then vCPU state was lost on the way, or is older than memory.
 *
 * The code is compiled for general registers only, so the vector registers are the guest's own to keep things in.
 */
#include "guest.h"

#define MSR_LSTAR 0xc0000082
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_FS_BASE 0xc0000100
#define MSR_SYSENTER_EIP 0x176

static uint64_t value(const struct vcpu *vcpu, unsigned n) {
    return (0xca9a0000u + 0x100 * vcpu->id + n) * 0x10001ull & 0x7fffffffffff;
}

void canary_plant(struct vcpu *vcpu) {
    wrmsr(MSR_LSTAR, value(vcpu, 1));
    wrmsr(MSR_KERNEL_GS_BASE, value(vcpu, 2));
    wrmsr(MSR_FS_BASE, value(vcpu, 3));
    wrmsr(MSR_SYSENTER_EIP, value(vcpu, 4));
    __asm__ volatile("mov %0, %%dr0" : : "r"(value(vcpu, 5)));
    __asm__ volatile("mov %0, %%dr3" : : "r"(value(vcpu, 6)));
    __asm__ volatile("movq %0, %%xmm15" : : "r"(value(vcpu, 7)));
    canary_beat(0);
}

/* The count of heartbeats is kept in memory, in XMM14 (section XSAVE) and in CR2 (section SREGS). */
void canary_beat(uint64_t beats) {
    __asm__ volatile("movq %0, %%xmm14" : : "r"(beats));
    __asm__ volatile("mov %0, %%cr2" : : "r"(beats));
}

void canary_check(struct vcpu *vcpu, bool thorough) {
    const uint64_t beats = vcpu->status->heartbeats;
    uint64_t xmm14, xmm15, cr2, dr0, dr3;
    __asm__ volatile("movq %%xmm14, %0; movq %%xmm15, %1; mov %%cr2, %2" : "=r"(xmm14), "=r"(xmm15), "=r"(cr2));
    bool right = xmm14 == beats && cr2 == beats && xmm15 == value(vcpu, 7);
    if (thorough) {
        __asm__ volatile("mov %%dr0, %0; mov %%dr3, %1" : "=r"(dr0), "=r"(dr3));
        right = right && dr0 == value(vcpu, 5) && dr3 == value(vcpu, 6);
        right = right && rdmsr(MSR_LSTAR) == value(vcpu, 1) && rdmsr(MSR_KERNEL_GS_BASE) == value(vcpu, 2) &&
                rdmsr(MSR_FS_BASE) == value(vcpu, 3) && rdmsr(MSR_SYSENTER_EIP) == value(vcpu, 4);
        right = right && msix_is_ours(vcpu->id);
    }
    if (!right) vcpu->status->state_errors++;
}
