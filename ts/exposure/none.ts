import type { Exposure } from './exposure.js';

/** Visible to nobody but whoever holds it in this process. Always works. */
export const noExposure: Exposure = {
  name: 'none',
  ownership: { configSpace: 'nobody', interrupts: 'nobody' },
  refusal: () => undefined,
  show: async () => undefined,
  hide: async () => undefined,
};
