/**
 * PCI functions in words. The identities of vendors belong to the data base of pciutils; what is here is what a person needs to tell
 * functions apart.
 */
import type { PciFunction } from '../drivers/host/port.js';

/** Base class and subclass (PCI Code and ID Assignment), the longer one first. */
const classes: readonly (readonly [code: string, name: string])[] = [
  ['010802', 'NVMe controller'],
  ['0108', 'non-volatile memory controller'],
  ['0200', 'Ethernet controller'],
  ['0207', 'InfiniBand controller'],
  ['0300', 'display controller'],
  ['0302', '3D controller'],
  ['0380', 'display controller'],
  ['0600', 'host bridge'],
  ['0604', 'PCI bridge'],
  ['0b40', 'co-processor'],
  ['1000', 'encryption controller'],
  ['1200', 'accelerator'],
  ['01', 'storage controller'],
  ['02', 'network controller'],
  ['03', 'display controller'],
  ['06', 'bridge'],
  ['0c', 'serial bus controller'],
  ['10', 'encryption controller'],
];

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');

/** What a class is, in words. */
export function className(code: number): string {
  const text = hex(code, 6);
  return classes.find(([prefix]) => text.startsWith(prefix))?.[1] ?? `device of class ${text}`;
}

/** `NVMe controller 1b36:0010` */
export function describePci(fn: Pick<PciFunction, 'class' | 'vendor' | 'device'>): string {
  return `${className(fn.class)} ${hex(fn.vendor, 4)}:${hex(fn.device, 4)}`;
}
