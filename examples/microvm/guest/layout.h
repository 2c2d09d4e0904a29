/* Where things are in guest-physical memory, and what the pages that the VMM and the guest share look like.
 *
 * native/src/layout.rs has the same numbers; a test compares both. All fields are little-endian, naturally aligned.
 */
#ifndef MICROVM_LAYOUT_H
#define MICROVM_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define PAGE 4096ull

/* RAM */
#define PARAMETERS_GPA 0x1000ull
#define STATUS_GPA 0x2000ull /* a page a vCPU, MAX_VCPUS of them */
#define PAGE_TABLES_GPA 0x4000ull /* PML4, PDPT, then 64 page directories: identity map of 64 GiB by pages of 2 MiB */
#define GDT_GPA 0x50000ull /* descriptors, written by the VMM */
#define TSS_GPA(vcpu) (GDT_GPA + 0x100 + (vcpu)*0x80) /* task state segments, written by the VMM */
#define IDT_GPA 0x51000ull /* interrupt gates, written by this program */
#define TELEMETRY_GPA 0x52000ull /* written by the device alone, all the time, and read by nobody */
#define KERNEL_STACK_TOP_GPA(vcpu) (0x58000ull + (vcpu)*0x4000) /* 16 KiB each */
#define STACK_TOP_GPA(vcpu) (0x70000ull + (vcpu)*0x10000ull) /* 64 KiB each */
#define IMAGE_GPA 0x100000ull /* this program, ends below ARENA_GPA */
#define ARENA_GPA 0x800000ull /* queues, PRP lists, buffers, table of units; then the working set to the end of RAM */

/* The hole below 4 GiB */
#define HOLE_GPA 0xc0000000ull
#define BAR0_GPA 0xd0000000ull
#define BAR4_GPA 0xd0100000ull
#define CONFIG_GPA 0xd0110000ull
#define CONTROL_GPA 0xd0200000ull /* read-only for the guest; not RAM, does not migrate */
#define LAPIC_GPA 0xfee00000ull

#define MAX_VCPUS 2
#define MAX_RANGES 8
#define MAX_QUEUE_DEPTH 63

/* Words of 32 bits that are written to the VMM: no memory, so each one exits. (Ports would need a privilege that the program has not got.) */
#define PORT_GPA 0xd0210000ull
#define PORT_RECORDS_GPA (PORT_GPA + 0) /* (number of records << 8) | vCPU: the VMM takes that many from the start of its record buffer */
#define PORT_FAILED_GPA (PORT_GPA + 4) /* a FAIL_ code: the guest can't go on, and halts */

#define PARAMETERS_MAGIC 0x31304d56574f5454ull /* "TTOWVM01" */

/* Written by the VMM before the guest starts. */
struct parameters {
    uint64_t magic;
    uint64_t seed;
    uint64_t units;
    uint32_t queue_depth;
    uint32_t max_units;
    uint32_t nsid;
    uint32_t vcpus;
    uint32_t warm;
    uint32_t shadow_doorbells; /* 1: tails and heads go to the shadow page before the doorbell is rung */
    uint32_t tsc_khz;
    uint32_t ranges;
    struct {
        uint64_t gpa;
        uint64_t len;
    } range[MAX_RANGES];
};

/* Written by the VMM at any time, each field by one store. */
struct control {
    uint32_t drain; /* 0: run. Else the number of a request to submit no more */
    uint32_t epoch; /* incarnation: goes into blocks and records */
    uint32_t iops;
    uint32_t read_percent;
    uint32_t dirty_pages_per_s;
    uint32_t heartbeat_us;
    uint64_t working_set_pages;
    uint64_t gap_generation; /* changes when the largest gap is to be forgotten */
};

enum phase { PHASE_OFF = 0, PHASE_BOOTING = 1, PHASE_RUNNING = 2, PHASE_DRAINED = 3, PHASE_FAILED = 5 };

enum failure {
    FAIL_PARAMETERS = 1, /* the parameters are none, or impossible */
    FAIL_NO_DEVICE = 2,  /* config space or registers read as ones */
    FAIL_NO_MSIX = 3,    /* no MSI-X capability, or too few vectors */
    FAIL_CAP = 4,        /* queues too short, another doorbell stride, or pages of another size */
    FAIL_READY = 5,      /* CSTS.RDY did not come in time, or CSTS.CFS did */
    FAIL_ADMIN = 6,      /* an admin command failed or was not answered */
    FAIL_QUEUES = 7,     /* fewer I/O queue pairs granted than vCPUs */
    FAIL_NAMESPACE = 8,  /* the namespace has too few units, or blocks larger than one */
    FAIL_MEMORY = 9,     /* RAM has no room for a working set */
    FAIL_EXCEPTION = 10, /* a processor exception */
};

/* A page a vCPU; written by that vCPU alone, but for next_seq. The VMM only reads. */
struct status {
    uint32_t phase;
    uint32_t failure;
    uint64_t heartbeats;
    uint64_t last_tsc;
    uint64_t largest_gap; /* ticks of the TSC between two heartbeats */
    uint64_t gap_generation;
    uint64_t writes;
    uint64_t reads;
    uint64_t flushes;
    uint64_t in_flight;
    uint64_t duplicates;
    uint64_t errors;
    uint64_t mismatches;
    uint64_t memory_errors;
    uint64_t state_errors;
    uint64_t tsc_errors;
    uint64_t interrupts;
    uint64_t lost_interrupts;
    uint64_t pages_written;
    uint64_t doorbells;
    uint64_t drained; /* the last request of control.drain that was met: nothing is in flight, all records are out */
    /* vCPU 0 only */
    uint64_t next_seq; /* of the next command of any vCPU */
    uint64_t working_set_limit; /* pages */
    uint64_t shadow_gpa; /* the page of shadow doorbells: u32 at the doorbell's offset - 0x1000 */
    /* of each vCPU */
    uint64_t records_gpa; /* where its records are when it writes PORT_RECORDS_GPA */
    /* of FAIL_EXCEPTION: which, and where; ~0 as its error code where it has none */
    uint64_t exception, exception_code, exception_rip, exception_rsp, exception_flags, exception_rax, exception_cr2;
};

/* 64 bytes; crates/tenant/src/record.rs documents them. The VMM fills in host_tag, epoch and t_ns: they are about who logs, and when, which a
 * guest that moves does not know. */
struct record {
    uint8_t kind;
    uint8_t host_tag;
    uint8_t units;
    uint8_t flags;
    uint32_t epoch;
    uint64_t seq;
    uint64_t unit;
    uint64_t found_seq;
    uint32_t found_epoch;
    uint16_t status;
    uint16_t cid;
    uint64_t t_ns;
    uint64_t next_seq;
    uint64_t in_flight;
};

enum record_kind {
    RECORD_WRITE = 1,
    RECORD_READ = 2,
    RECORD_FLUSH = 3,
    RECORD_DUPLICATE = 4,
    RECORD_STARTED = 5, /* by the VMM */
    RECORD_STOPPED = 6, /* by the VMM */
    RECORD_DRAINED = 7, /* by the VMM, once both vCPUs say so */
    RECORD_ERROR = 8,
};
#define RECORD_UNEXPECTED 1 /* flag: the guest itself expected something else */
#define RECORDS_MAX 512 /* of one write to PORT_RECORDS_GPA */

_Static_assert(sizeof(struct record) == 64, "the witness reads 64 bytes");
_Static_assert(sizeof(struct status) <= PAGE && sizeof(struct parameters) <= PAGE && sizeof(struct control) <= PAGE, "a page each");

#endif
