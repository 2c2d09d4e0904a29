import { refusingExposure } from './refuse.js';

/** The kernel's own driver. Not in this release. */
export const kernelExposure = refusingExposure(
  'kernel',
  { configSpace: 'kernel', interrupts: 'kernel' },
  'binding a function to a kernel driver is not implemented yet, and functions of the embedded driver have no PCI device to bind',
);
