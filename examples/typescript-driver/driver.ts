/**
 * The driver of adding machines: one box with a few of them, which it hands out as VFs.
 */
import { randomUUID } from 'node:crypto';
import {
  BaseFunction,
  TowlineError,
  type ControlledFunction,
  type ControllingDriver,
  type ControllingFunction,
  type DirtySource,
  type ExposureName,
  type FunctionConfig,
  type FunctionDescriptor,
  type FunctionSpec,
  type KindCapacity,
  type Reason,
  type StateChannel,
  type WaitOptions,
} from 'towline';
import { TallyChannel, TallyWrites } from './channel.js';
import { Tally } from './tally.js';

function checkSignal(options: WaitOptions | undefined): void {
  if (options?.signal?.aborted)
    throw new TowlineError('ERR_TOWLINE_ABORTED', 'the caller cancelled', { cause: options.signal.reason });
}

/** One adding machine. */
export class TallyFunction extends BaseFunction {
  readonly device = new Tally();

  protected openChannel(): StateChannel {
    return new TallyChannel(this.device);
  }

  protected openDirtySources(): readonly DirtySource[] {
    return [new TallyWrites(this.device)];
  }

  async descriptor(): Promise<FunctionDescriptor> {
    return { technology: { value: 'tally/1', rule: 'equal', why: 'its state means nothing to another device' } };
  }

  protected async explainDevice(): Promise<readonly Reason[]> {
    return [];
  }
}

/** A box of adding machines. */
export class TallyBox implements ControllingFunction {
  readonly driver = 'tally';
  readonly address: string;
  readonly #size: number;
  readonly #functions = new Map<string, TallyFunction>();
  #closed = false;

  constructor(address: string, size: number) {
    this.address = address;
    this.#size = size;
  }

  async capacity(): Promise<readonly KindCapacity[]> {
    return [{ kind: 'vf', total: this.#size, free: this.#size - this.#functions.size }];
  }

  async list(): Promise<readonly ControlledFunction[]> {
    this.#checkOpen();
    return [...this.#functions.values()];
  }

  async provision(spec: FunctionSpec, options?: WaitOptions): Promise<ControlledFunction> {
    this.#checkOpen();
    checkSignal(options);
    if (spec.kind !== 'vf') throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `a box of tallies has no ${spec.kind}`);
    const uuid = spec.uuid?.toLowerCase() ?? randomUUID();
    if (this.#functions.has(uuid)) throw new TowlineError('ERR_TOWLINE_EXISTS', `${uuid} exists already`);
    if (this.#functions.size >= this.#size) throw new TowlineError('ERR_TOWLINE_NO_RESOURCES', 'no tally is free');
    const fn = new TallyFunction(this, { uuid, name: spec.name ?? uuid }, { kind: 'vf', migration: false });
    fn.advance('provisioned');
    this.#functions.set(uuid, fn);
    return fn;
  }

  async configure(fn: ControlledFunction, config: FunctionConfig, options?: WaitOptions): Promise<void> {
    checkSignal(options);
    const { queues = 1, vectors = 1, namespaces = [] } = config;
    if (queues > 1 || vectors > 1 || namespaces.length > 0)
      throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', 'a tally has one queue, one vector and no namespaces');
    this.#own(fn).advance('configured', { queues, vectors });
  }

  async enableMigration(fn: ControlledFunction, options?: WaitOptions): Promise<void> {
    checkSignal(options);
    this.#own(fn).advance('migration-enabled', { migration: true });
  }

  async expose(fn: ControlledFunction, exposure: ExposureName): Promise<void> {
    this.#own(fn);
    if (exposure !== 'none') throw new TowlineError('ERR_TOWLINE_EXPOSURE', 'a tally is visible in this process only');
  }

  async release(fn: ControlledFunction): Promise<void> {
    if (fn.state === 'released') return;
    const own = this.#own(fn);
    await own.close();
    own.device.reset();
    own.advance('released');
    this.#functions.delete(own.uuid);
  }

  async explain(): Promise<readonly Reason[]> {
    return [];
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const fn of this.#functions.values()) await fn.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #own(fn: ControlledFunction): TallyFunction {
    const own = this.#functions.get(fn.uuid);
    if (own === undefined || own !== fn)
      throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${fn.name} is not in ${this.address}`);
    return own;
  }

  #checkOpen(): void {
    if (this.#closed) throw new TowlineError('ERR_TOWLINE_CLOSED', `${this.address} is closed`);
  }
}

// guide: driver
/** Finds boxes of adding machines; here there are those that it is told of. */
export class TallyDriver implements ControllingDriver {
  readonly name = 'tally';
  readonly #boxes: ReadonlyMap<string, number>;

  constructor(boxes: Readonly<Record<string, number>>) {
    this.#boxes = new Map(Object.entries(boxes).map(([name, size]) => [`tally:${name}`, size]));
  }

  async discover() {
    return [...this.#boxes].map(([address, size]) => ({ address, description: `${size} tallies`, reasons: [] }));
  }

  async open(address: string, options?: WaitOptions): Promise<TallyBox> {
    checkSignal(options);
    const size = this.#boxes.get(address);
    if (size === undefined) throw new TowlineError('ERR_TOWLINE_NOT_FOUND', `there is no ${address}`);
    return new TallyBox(address, size);
  }
}
// guide: end
