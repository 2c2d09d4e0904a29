import { refusingExposure } from './refuse.js';

/** A vfio-user socket. Not in this release. */
export const vfioUserExposure = refusingExposure(
  'vfio-user',
  { configSpace: 'exposure', interrupts: 'exposure' },
  'the vfio-user server is not implemented yet',
);
