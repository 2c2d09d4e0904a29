import { exposureByDriver } from './by-driver.js';

/** VFIO: whoever opens the device owns it, a VMM say. */
export const vfioExposure = exposureByDriver(
  'vfio',
  { configSpace: 'vmm', interrupts: 'vmm' },
  'this function is no device of this host that a VFIO driver could be bound to',
);
