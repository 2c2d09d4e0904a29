import { refusingExposure } from './refuse.js';

/** VFIO. Not in this release. */
export const vfioExposure = refusingExposure(
  'vfio',
  { configSpace: 'vmm', interrupts: 'vmm' },
  'binding a function to vfio-pci is not implemented yet, and functions of the embedded driver have no PCI device to bind',
);
