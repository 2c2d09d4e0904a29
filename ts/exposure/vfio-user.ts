import { exposureByDriver } from './by-driver.js';

/** A vfio-user socket: a VMM that connects there has the function, and gives it its guest memory. */
export const vfioUserExposure = exposureByDriver(
  'vfio-user',
  { configSpace: 'exposure', interrupts: 'exposure' },
  'only functions of an embedded subsystem are served on a vfio-user socket: a device of this host goes to a VMM by exposure vfio',
);
