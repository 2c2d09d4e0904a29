import { exposureByDriver } from './by-driver.js';

/** The kernel's own driver of the device. */
export const kernelExposure = exposureByDriver(
  'kernel',
  { configSpace: 'kernel', interrupts: 'kernel' },
  'this function is no device of this host that a driver of the kernel could be bound to',
);
