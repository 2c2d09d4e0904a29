/**
 * The driver `nvme`: provisions, configures and migrates NVMe functions by commands to their controlling function
 * (NVMe Base 2.1, Host Managed Live Migration and Virtualization Enhancements).
 */
import { createHash, randomUUID } from 'node:crypto';
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { TowlineError } from '../errors.js';
import { exposureFor } from '../exposure/exposure.js';
import { checkConfig, checkSpec } from '../function/spec.js';
import type { ControlledFunction, ExposureName, FunctionConfig, FunctionSpec, Reason } from '../function/types.js';
import type { ControllingFunction, KindCapacity } from './driver.js';
import type { NvmeBackend } from './nvme/backend.js';
import { explainController } from './nvme/explain.js';
import { NvmeFunction } from './nvme/function.js';
import { claim, configure, unclaim } from './nvme/provision.js';

export type {
  NvmeAdmin,
  NvmeIdentify,
  NvmeNamespace,
  NvmePrimaryCaps,
  NvmeResource,
  NvmeSecondary,
  NvmeStateFormats,
} from './nvme/admin.js';
export type { NvmeBackend, NvmeControllerInfo } from './nvme/backend.js';
export { NvmeFunction } from './nvme/function.js';

/**
 * An NVMe controlling function over any {@link NvmeBackend}. Calls that change something run one after another: two of them at once
 * would race for the same free function.
 */
export class NvmeControllingFunction implements ControllingFunction {
  readonly driver: string;
  readonly address: string;
  readonly #backend: NvmeBackend;
  readonly #functions = new Map<number, NvmeFunction>();
  #tail: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(backend: NvmeBackend, driver = 'nvme') {
    this.#backend = backend;
    this.driver = driver;
    this.address = backend.address;
  }

  async capacity(): Promise<readonly KindCapacity[]> {
    this.#checkOpen();
    const controllers = (await this.#backend.controllers()).filter((c) => !c.controlling);
    const taken = (kind: string): number => [...this.#functions.values()].filter((f) => f.kind === kind).length;
    const { vf, siov } = this.#backend.limits;
    const pf = controllers.filter((c) => c.kind === 'pf').length;
    return [
      { kind: 'pf', total: pf, free: pf - taken('pf') },
      { kind: 'vf', total: vf, free: vf - taken('vf') },
      { kind: 'siov', total: siov, free: siov - taken('siov') },
    ];
  }

  /**
   * The functions that this process provisioned, and those that it found online: these have a UUID made from the subsystem and the
   * controller identifier.
   */
  async list(options: WaitOptions = {}): Promise<readonly ControlledFunction[]> {
    return this.#exclusive(options, async () => {
      const secondaries = await this.#backend.admin.secondaries();
      const controllers = await this.#backend.controllers();
      const found = secondaries.filter((s) => s.online && !this.#functions.has(s.cntlid));
      // Asked only where something is found: it takes several commands.
      const namespaces = found.length === 0 ? [] : await this.#backend.admin.namespaces();
      for (const s of found) {
        const info = controllers.find((c) => c.cntlid === s.cntlid);
        if (info === undefined) continue;
        const uuid = await this.#derivedUuid(s.cntlid);
        const spec: FunctionSpec = {
          kind: info.kind,
          migration: false,
          queues: s.vq - 1,
          vectors: s.vi,
          // Who changes one thing gives the rest of the spec along: without these, its disks would be detached.
          namespaces: namespaces.filter((n) => n.attached.includes(s.cntlid)).map((n) => n.nsid),
        };
        const fn = new NvmeFunction(this, this.#backend, s.cntlid, { uuid, name: `${info.kind}-${s.cntlid}` }, spec);
        fn.advance('provisioned');
        fn.advance('configured');
        this.#functions.set(s.cntlid, fn);
      }
      return [...this.#functions.values()].sort((a, b) => a.cntlid - b.cntlid);
    });
  }

  async provision(spec: FunctionSpec, options: WaitOptions = {}): Promise<ControlledFunction> {
    checkSpec(spec);
    return this.#exclusive(options, async () => {
      const uuid = spec.uuid?.toLowerCase() ?? randomUUID();
      for (const other of this.#functions.values()) {
        if (other.uuid === uuid) {
          throw new TowlineError('ERR_TOWLINE_EXISTS', `${other.name} has the UUID ${uuid} already`, {
            function: uuid,
          });
        }
        if (spec.name !== undefined && other.name === spec.name) {
          throw new TowlineError('ERR_TOWLINE_EXISTS', `there is a function ${spec.name} already`, {
            function: other.uuid,
          });
        }
      }
      const cntlid = await claim(this.#backend, spec.kind, new Set(this.#functions.keys()));
      const { kind } = spec;
      const identity = { uuid, name: spec.name ?? `${kind}-${cntlid}` };
      const fn = new NvmeFunction(this, this.#backend, cntlid, identity, { kind, migration: false, expose: 'none' });
      fn.advance('provisioned');
      this.#functions.set(cntlid, fn);
      return fn;
    });
  }

  async configure(fn: ControlledFunction, config: FunctionConfig, options: WaitOptions = {}): Promise<void> {
    checkConfig(config);
    const own = this.#own(fn);
    await this.#exclusive(options, async () => {
      own.checkArc('configured');
      const granted = await configure(this.#backend, own.cntlid, config, options);
      const enabled = own.state === 'migration-enabled';
      own.advance('configured', granted);
      if (enabled) own.advance('migration-enabled');
    });
  }

  async enableMigration(fn: ControlledFunction, options: WaitOptions = {}): Promise<void> {
    const own = this.#own(fn);
    await this.#exclusive(options, async () => {
      own.checkArc('migration-enabled');
      const [first, ...more] = await this.#explain();
      if (first !== undefined) {
        throw new TowlineError(
          'ERR_TOWLINE_UNSUPPORTED',
          `migration of ${fn.name} can't be enabled: ${first.message}`,
          {
            function: fn.uuid,
            details: { reasons: [first, ...more] },
          },
        );
      }
      // The first thing that a migration would do: a device that refuses it now would refuse it then.
      await own.channel().state(options);
      own.advance('migration-enabled', { migration: true });
    });
  }

  async expose(fn: ControlledFunction, exposure: ExposureName, options: WaitOptions = {}): Promise<void> {
    const own = this.#own(fn);
    await this.#exclusive(options, async () => {
      const next = exposureFor(exposure, fn);
      if (own.exposure === exposure) return;
      const before = exposureFor(own.exposure, fn);
      const hidden = own.spec.migration === true ? 'migration-enabled' : 'configured';
      const to = exposure === 'none' ? hidden : 'exposed';
      if (to !== own.state) own.checkArc(to);
      await before.hide(fn, options);
      await next.show(fn, options);
      own.advance(to, { expose: exposure });
    });
  }

  async release(fn: ControlledFunction, options: WaitOptions = {}): Promise<void> {
    if (fn.state === 'released') return;
    const own = this.#own(fn);
    await this.#exclusive(options, async () => {
      if (own.state === 'released') return;
      await exposureFor(own.exposure, fn).hide(fn, options);
      await own.close();
      await unclaim(this.#backend, own.cntlid, own.kind);
      own.advance('released', { expose: 'none' });
      this.#functions.delete(own.cntlid);
    });
  }

  async explain(): Promise<readonly Reason[]> {
    this.#checkOpen();
    return this.#explain();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#tail;
    const failures: unknown[] = [];
    // A function that does not close keeps neither the others nor the device open.
    for (const end of [...this.#functions.values(), this.#backend]) {
      try {
        await end.close();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #explain(): Promise<Reason[]> {
    const { admin } = this.#backend;
    return explainController(await admin.identify(), await admin.stateFormats());
  }

  #own(fn: ControlledFunction): NvmeFunction {
    if (fn instanceof NvmeFunction && this.#functions.get(fn.cntlid) === fn) return fn;
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${fn.name} is no function of ${this.address}`, {
      function: fn.uuid,
    });
  }

  #checkOpen(): void {
    if (this.#closed) throw new TowlineError('ERR_TOWLINE_CLOSED', `${this.address} is closed`);
  }

  #exclusive<T>(options: WaitOptions, work: () => Promise<T>): Promise<T> {
    this.#checkOpen();
    const turn = this.#tail.then(() => {
      throwIfAborted(options.signal);
      return work();
    });
    this.#tail = turn.catch(() => undefined);
    return turn;
  }

  /** A UUID of version 8 (RFC 9562): the same one as long as the subsystem and the controller are the same. */
  async #derivedUuid(cntlid: number): Promise<string> {
    const { subnqn } = await this.#backend.admin.identify();
    const hash = createHash('sha256').update(`towline ${subnqn} ${cntlid}`).digest();
    hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x80;
    hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80;
    const hex = hash.toString('hex');
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join('-');
  }
}
