/*
 * The part of the program that runs at privilege 0: what needs it, and as few instructions as can be. A KVM without hardware help emulates each of them,
 * and runs only the rest natively.
 *
 * The rest gets here by UD2 with a number in RAX: a fault, whose instruction is executed again where a VMM stops the vCPU before the fault was
 * delivered. KVM_GET_VCPU_EVENTS leaves out software exceptions such as INT3's, which some KVMs take with RIP behind the instruction: it would
 * be skipped.
 */
#include "guest.h"

/* The image is entered at its first byte. */
__asm__(
    ".section .text.head, \"ax\"\n"
    "    jmp start\n"
    ".text\n"

    /* Halts until an interrupt, unless the byte at RSI is set. CR2 gets RDI, what it held goes to RAX. */
    "kernel_doze:\n"
    "    mov %cr2, %rax\n"
    "    mov %rdi, %cr2\n"
    "    cmpb $0, (%rsi)\n"
    "    jne 1f\n"
    /* No interrupt comes between STI and the end of HLT. */
    "    sti\n"
    "    hlt\n"
    "    cli\n"
    "1:  iretq\n"
    "kernel_read_msr:\n"
    "    rdmsr\n"
    "    iretq\n"
    "kernel_write_msr:\n"
    "    mov %edi, %eax\n"
    "    wrmsr\n"
    "    iretq\n"
    "kernel_read_debug:\n"
    "    mov %dr0, %rax\n"
    "    mov %dr3, %rdx\n"
    "    iretq\n"
    "kernel_write_debug:\n"
    "    mov %rdi, %dr0\n"
    "    mov %rsi, %dr3\n"
    "    iretq\n"
    "kernel_entry:\n"
    "    cmp $5, %rax\n"
    "    jae exception_6\n"
    "    addq $2, (%rsp)\n"
    "    jmp *kernel_table(, %rax, 8)\n"

    /* The local APIC's timer: that it came is all. */
    "kernel_timer:\n"
    "    push %rax\n"
    "    xor %eax, %eax\n"
    "    movabs %eax, 0xfee000b0\n"
    "    pop %rax\n"
    "    iretq\n"
    ".macro device vcpu\n"
    "kernel_device\\vcpu:\n"
    "    push %rax\n"
    "    incq device_interrupts + 8 * \\vcpu\n"
    "    movb $1, device_interrupted + \\vcpu\n"
    "    xor %eax, %eax\n"
    "    movabs %eax, 0xfee000b0\n"
    "    pop %rax\n"
    "    iretq\n"
    ".endm\n"
    "device 0\n"
    "device 1\n"
    /* A spurious interrupt is not ended (Intel SDM volume 3, 12.9). */
    "kernel_spurious:\n"
    "    iretq\n"

    /* Exceptions: RAX, vector and, where the processor pushes none, an error code of ones; then the frame. */
    ".macro exception vector, coded=0\n"
    "exception_\\vector:\n"
    ".if \\coded == 0\n"
    "    push $-1\n"
    ".endif\n"
    "    push $\\vector\n"
    "    jmp exception\n"
    ".endm\n"
    ".irp v, 0, 1, 2, 4, 5, 6, 7, 9, 15, 16, 18, 19\n"
    "exception \\v\n"
    ".endr\n"
    ".irp v, 8, 10, 11, 12, 13, 14, 17\n"
    "exception \\v, 1\n"
    ".endr\n"
    "exception:\n"
    "    push %rax\n"
    "    mov %rsp, %rdi\n"
    "    mov %cr2, %rsi\n"
    "    and $-16, %rsp\n"
    "    call kernel_exception\n");

extern char kernel_doze[], kernel_read_msr[], kernel_write_msr[], kernel_read_debug[], kernel_write_debug[], kernel_entry[];
extern char kernel_timer[], kernel_device0[], kernel_device1[], kernel_spurious[];
/* Those whose gate leads straight to them: UD2 is how the rest gets here, so vector 6 is looked at by kernel_entry first. */
#define EACH_EXCEPTION(f) \
    f(0) f(1) f(2) f(4) f(5) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15) f(16) f(17) f(18) f(19)
#define DECLARE(n) extern char exception_##n[];
EACH_EXCEPTION(DECLARE)

__attribute__((used)) char *const kernel_table[] = {
    kernel_doze, kernel_read_msr, kernel_write_msr, kernel_read_debug, kernel_write_debug,
};

volatile uint64_t device_interrupts[MAX_VCPUS];
volatile bool device_interrupted[MAX_VCPUS];

struct frame {
    uint64_t rax, vector, code, rip, cs, flags, rsp, ss;
};

/* Which vCPU it is tells the stack. */
__attribute__((used)) _Noreturn void kernel_exception(const struct frame *frame, uint64_t cr2) {
    const uint32_t id = (uint64_t)frame > KERNEL_STACK_TOP_GPA(0);
    volatile struct status *status = STATUS(id);
    status->exception = frame->vector;
    status->exception_code = frame->code;
    status->exception_rip = frame->rip;
    status->exception_rsp = frame->rsp;
    status->exception_flags = frame->flags;
    status->exception_rax = frame->rax;
    status->exception_cr2 = cr2;
    status->failure = FAIL_EXCEPTION;
    status->phase = PHASE_FAILED;
    mmio_write32(PORT_FAILED_GPA, FAIL_EXCEPTION);
    for (;;) __asm__ volatile("cli; hlt");
}

uint64_t doze(uint32_t vcpu, uint64_t cr2) {
    uint64_t old = 0;
    /* A register that has to come back as it went, and as memory has it: a VMM that stops a vCPU mostly finds it here. */
    static volatile uint64_t kept[MAX_VCPUS];
    uint64_t kept_in_register = rdtsc();
    kept[vcpu] = kept_in_register;
    __asm__ volatile("ud2"
                     : "+a"(old), "+b"(kept_in_register)
                     : "D"(cr2), "S"(&device_interrupted[vcpu])
                     : "memory");
    if (kept_in_register != kept[vcpu]) STATUS(vcpu)->state_errors++;
    return old;
}

uint64_t read_msr(uint32_t msr) {
    uint64_t low = 1, high;
    __asm__ volatile("ud2" : "+a"(low), "=d"(high) : "c"(msr) : "memory");
    return high << 32 | (uint32_t)low;
}

void write_msr(uint32_t msr, uint64_t value) {
    uint64_t function = 2;
    __asm__ volatile("ud2" : "+a"(function) : "c"(msr), "D"(value), "d"(value >> 32) : "memory");
}

void read_debug(uint64_t *dr0, uint64_t *dr3) {
    uint64_t first = 3, second;
    __asm__ volatile("ud2" : "+a"(first), "=d"(second) : : "memory");
    *dr0 = first;
    *dr3 = second;
}

void write_debug(uint64_t dr0, uint64_t dr3) {
    uint64_t function = 4;
    __asm__ volatile("ud2" : "+a"(function) : "D"(dr0), "S"(dr3) : "memory");
}

static void set_gate(unsigned vector, const char *handler, uint16_t type) {
    struct gate {
        uint16_t low, selector, type, middle;
        uint32_t high, zero;
    };
    const uint64_t address = (uint64_t)handler;
    ((volatile struct gate *)IDT_GPA)[vector] = (struct gate){
        .low = (uint16_t)address,
        .selector = 8,
        .type = type,
        .middle = (uint16_t)(address >> 16),
        .high = (uint32_t)(address >> 32),
    };
}

#define INTERRUPT_GATE 0x8e00

/* Each vCPU writes the same, each gate once: whoever is first may be in need of it, and the other changes nothing. */
void kernel_init(void) {
#define SET(n) set_gate(n, exception_##n, INTERRUPT_GATE);
    EACH_EXCEPTION(SET)
    set_gate(6, kernel_entry, INTERRUPT_GATE);
    set_gate(TIMER_VECTOR, kernel_timer, INTERRUPT_GATE);
    set_gate(DEVICE_VECTOR, kernel_device0, INTERRUPT_GATE);
    set_gate(DEVICE_VECTOR + 1, kernel_device1, INTERRUPT_GATE);
    set_gate(SPURIOUS_VECTOR, kernel_spurious, INTERRUPT_GATE);
}
