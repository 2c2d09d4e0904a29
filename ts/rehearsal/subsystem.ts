/**
 * An embedded subsystem as rehearsals use it: one object that provisions whole functions and injects faults.
 */
import { randomBytes } from 'node:crypto';
import type { WaitOptions } from '../abort.js';
import { EmbeddedControllingFunction, type EmbeddedOptions } from '../drivers/embedded.js';
import { NvmeFunction } from '../drivers/nvme.js';
import { TowlineError } from '../errors.js';
import { provisionFunction } from '../function/lifecycle.js';
import type { ControlledFunction, FunctionSpec } from '../function/types.js';
import type { GuestMemory } from '../migration/memory.js';
import { setFaults, setRates, type Fault, type Rates } from './faults.js';

/** A {@link Fault} that names its function by object. */
export interface FunctionFault extends Omit<Fault, 'cntlid'> {
  /** Every function where left out. */
  function?: ControlledFunction | undefined;
}

/** See {@link embedded}. */
export class EmbeddedSubsystem {
  /** Its controlling function. */
  readonly controlling: EmbeddedControllingFunction;

  constructor(controlling: EmbeddedControllingFunction) {
    this.controlling = controlling;
  }

  /** Provisions, configures, enables migration and exposes, whole or not at all. */
  provision(spec: FunctionSpec, options?: WaitOptions): Promise<ControlledFunction> {
    return provisionFunction(this.controlling, spec, options);
  }

  /** Gives a function its guest memory. */
  attachMemory(fn: ControlledFunction, memory: GuestMemory): void {
    this.controlling.attachMemory(fn, memory);
  }

  /** Takes the guest memory away, after the DMA under way has ended. */
  detachMemory(fn: ControlledFunction): Promise<void> {
    return this.controlling.detachMemory(fn);
  }

  /** Replaces all fault rules. */
  setFaults(faults: readonly FunctionFault[]): void {
    setFaults(
      this.controlling,
      faults.map(({ function: fn, ...rule }) => {
        if (fn === undefined) return rule;
        if (fn instanceof NvmeFunction) return { ...rule, cntlid: fn.cntlid };
        throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${fn.name} is no function of this subsystem`, {
          function: fn.uuid,
        });
      }),
    );
  }

  /** Replaces all rates. */
  setRates(rates: Rates): void {
    setRates(this.controlling, rates);
  }

  /** Stops everything. Idempotent. */
  close(): Promise<void> {
    return this.controlling.close();
  }

  /** As {@link EmbeddedSubsystem.close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** The embedded NVMe subsystem, for rehearsals: no hardware and no root. */
export const embedded = {
  /** Starts a subsystem in this process. A name is made where none is given. */
  async open(options: Omit<EmbeddedOptions, 'name'> & { name?: string | undefined } = {}): Promise<EmbeddedSubsystem> {
    const name = options.name ?? `rehearsal-${randomBytes(4).toString('hex')}`;
    return new EmbeddedSubsystem(await EmbeddedControllingFunction.start({ ...options, name }));
  },
};
