/* The device's config space and its MSI-X table. */
#include "guest.h"

#define COMMAND_MEMORY_AND_MASTER 6u
#define CAPABILITY_MSIX 0x11
#define MSIX_ENABLE 0x8000u

static uint64_t table; /* address of the MSI-X table */

static uint32_t config_read(uint32_t offset) { return mmio_read32(CONFIG_GPA + offset); }
static void config_write(uint32_t offset, uint32_t value) { mmio_write32(CONFIG_GPA + offset, value); }

static uint64_t entry_address(uint32_t vcpu) { return table + 16ull * (1 + vcpu); }

void pci_init(void) {
    if (config_read(0) == 0xffffffff) fail(0, FAIL_NO_DEVICE);
    /* Status bits are cleared by ones: none is written. */
    config_write(4, (config_read(4) & 0xffff) | COMMAND_MEMORY_AND_MASTER);
}

void msix_init(void) {
    uint32_t at = config_read(0x34) & 0xfc;
    for (unsigned n = 0; at != 0 && n < 48; n++, at = config_read(at) >> 8 & 0xfc) {
        const uint32_t header = config_read(at);
        if ((header & 0xff) != CAPABILITY_MSIX) continue;
        const uint32_t last = header >> 16 & 0x7ff, where = config_read(at + 4);
        if (last < PARAMETERS->vcpus || (where & 7) != 4) break;
        table = BAR4_GPA + (where & ~7u);
        for (uint32_t vcpu = 0; vcpu < PARAMETERS->vcpus; vcpu++) {
            const uint64_t entry = entry_address(vcpu);
            mmio_write32(entry, LAPIC_GPA | vcpu << 12); /* APIC identifiers are vCPU numbers */
            mmio_write32(entry + 4, 0);
            mmio_write32(entry + 8, DEVICE_VECTOR + vcpu);
            mmio_write32(entry + 12, 0); /* not masked */
        }
        config_write(at, (header & 0x3fffffff) | MSIX_ENABLE << 16);
        return;
    }
    fail(0, FAIL_NO_MSIX);
}

bool msix_is_ours(uint32_t vcpu) {
    const uint64_t entry = entry_address(vcpu);
    return mmio_read32(entry) == (uint32_t)(LAPIC_GPA | vcpu << 12) && mmio_read32(entry + 8) == DEVICE_VECTOR + vcpu;
}
