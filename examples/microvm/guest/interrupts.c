/* Descriptor tables, the local APIC with its timer, and the handlers, which do next to nothing. */
#include "guest.h"

/* Registers of the local APIC (Intel SDM volume 3, 12.4.1). */
#define LAPIC_ID 0x20
#define LAPIC_EOI 0xb0
#define LAPIC_SPURIOUS 0xf0
#define LAPIC_TIMER 0x320
#define LAPIC_INITIAL 0x380
#define LAPIC_DIVIDE 0x3e0

struct gate {
    uint16_t low, selector, type, middle;
    uint32_t high, zero;
};

struct frame {
    uint64_t ip, cs, flags, sp, ss;
};

struct __attribute__((packed)) table {
    uint16_t limit;
    uint64_t base;
};

/* Null, 64-bit code, data. The VMM starts the vCPU with the same selectors. */
static const uint64_t gdt[] = {0, 0x00af9b000000ffffull, 0x00cf93000000ffffull};
static struct gate idt[256];

static uint32_t apic_id(void) { return mmio_read32(LAPIC_GPA + LAPIC_ID) >> 24; }

static void end_of_interrupt(void) { mmio_write32(LAPIC_GPA + LAPIC_EOI, 0); }

static _Noreturn void exception(struct frame *frame, uint64_t vector) {
    const uint32_t id = apic_id() % MAX_VCPUS;
    STATUS(id)->exception = vector << 56 | frame->ip;
    fail(id, FAIL_EXCEPTION);
}

/* The processor pushes an error code for some; the compiler has to know which. */
#define PLAIN(n) \
    __attribute__((interrupt)) static void exception_##n(struct frame *frame) { exception(frame, n); }
#define CODED(n) \
    __attribute__((interrupt)) static void exception_##n(struct frame *frame, uint64_t code) { \
        (void)code; \
        exception(frame, n); \
    }
PLAIN(0) PLAIN(1) PLAIN(2) PLAIN(3) PLAIN(4) PLAIN(5) PLAIN(6) PLAIN(7) CODED(8)
CODED(10) CODED(11) CODED(12) CODED(13) CODED(14) PLAIN(16) CODED(17) PLAIN(18) PLAIN(19)

__attribute__((interrupt)) static void timer(struct frame *frame) {
    (void)frame;
    end_of_interrupt();
}

__attribute__((interrupt)) static void device0(struct frame *frame) {
    (void)frame;
    vcpus[0].interrupted = true;
    STATUS(0)->interrupts++;
    end_of_interrupt();
}

__attribute__((interrupt)) static void device1(struct frame *frame) {
    (void)frame;
    vcpus[1].interrupted = true;
    STATUS(1)->interrupts++;
    end_of_interrupt();
}

/* A spurious interrupt is not ended (Intel SDM volume 3, 12.9). */
__attribute__((interrupt)) static void spurious(struct frame *frame) { (void)frame; }

static void set_gate(unsigned vector, const void *handler) {
    const uint64_t address = (uint64_t)handler;
    idt[vector] = (struct gate){
        .low = (uint16_t)address,
        .selector = 8,
        .type = 0x8e00,
        .middle = (uint16_t)(address >> 16),
        .high = (uint32_t)(address >> 32),
    };
}

static void fill_idt(void) {
    static void *const handlers[] = {
        exception_0,  exception_1,  exception_2,  exception_3,  exception_4, exception_5,  exception_6,
        exception_7,  exception_8,  0,            exception_10, exception_11, exception_12, exception_13,
        exception_14, 0,            exception_16, exception_17, exception_18, exception_19,
    };
    for (unsigned n = 0; n < sizeof handlers / sizeof *handlers; n++)
        if (handlers[n]) set_gate(n, handlers[n]);
    set_gate(TIMER_VECTOR, timer);
    set_gate(DEVICE_VECTOR, device0);
    set_gate(DEVICE_VECTOR + 1, device1);
    set_gate(SPURIOUS_VECTOR, spurious);
}

void interrupts_init(void) {
    /* Each vCPU writes the same bytes: whoever is first, the other changes nothing. */
    fill_idt();
    const struct table gdtr = {sizeof gdt - 1, (uint64_t)gdt}, idtr = {sizeof idt - 1, (uint64_t)idt};
    __asm__ volatile("lgdt %0; lidt %1" : : "m"(gdtr), "m"(idtr));
    mmio_write32(LAPIC_GPA + LAPIC_SPURIOUS, 0x100 | SPURIOUS_VECTOR);
    mmio_write32(LAPIC_GPA + LAPIC_DIVIDE, 0xb); /* by 1: KVM's bus has 1 GHz, so a count is a nanosecond */
    mmio_write32(LAPIC_GPA + LAPIC_TIMER, TIMER_VECTOR); /* once */
}

void timer_start(uint32_t us) { mmio_write32(LAPIC_GPA + LAPIC_INITIAL, us < 4000000 ? us * 1000 : 4000000000u); }
