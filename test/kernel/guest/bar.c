/*
 * Reads and writes the registers of a PCI function that no driver has, by mapping its BAR from sysfs: what a guest sees of it.
 *
 * bar RESOURCE-FILE BYTES {OFFSET[.WIDTH][=VALUE]}...: does the accesses in order, and prints what each read gave. Widths are 1, 2 and 4
 * bytes, 4 unless told; numbers as strtoul takes them.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  size_t bytes = strtoul(argv[2], NULL, 0);
  int fd = open(argv[1], O_RDWR | O_SYNC);
  if (fd < 0) return perror(argv[1]), 1;
  volatile uint8_t *bar = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (bar == MAP_FAILED) return perror("mmap"), 1;
  for (int n = 3; n < argc; n++) {
    char *rest;
    size_t offset = strtoul(argv[n], &rest, 0), width = 4;
    if (*rest == '.') width = strtoul(rest + 1, &rest, 0);
    if (width == 0 || width > 4 || offset > bytes - width) return 2;
    if (*rest == '=') {
      uint32_t value = strtoul(rest + 1, NULL, 0);
      if (width == 1) bar[offset] = value;
      else if (width == 2) *(volatile uint16_t *)(bar + offset) = value;
      else *(volatile uint32_t *)(bar + offset) = value;
    } else {
      uint32_t value = width == 1   ? bar[offset]
                       : width == 2 ? *(volatile uint16_t *)(bar + offset)
                                    : *(volatile uint32_t *)(bar + offset);
      printf("0x%x\n", value);
    }
  }
  return 0;
}
