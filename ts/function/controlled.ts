/**
 * What every controlled function has in common, so that a driver writes only what is its own.
 */
import type { WaitOptions } from '../abort.js';
import type { ControllingFunction, RateLimit } from '../drivers/driver.js';
import { TowlineError } from '../errors.js';
import { inDoubtReason, type Doubt } from '../migration/doubt.js';
import type { Migration } from '../migration/migration.js';
import type { MigrateOptions } from '../migration/options.js';
import { migrate } from '../migration/source.js';
import type { DirtySource, StateChannel } from './channel.js';
import { checkLifecycleArc } from './lifecycle.js';
import { checkUuid } from './spec.js';
import type {
  ControlledFunction,
  ExplainOptions,
  ExposeOptions,
  ExposureHandover,
  ExposureName,
  FunctionConfig,
  FunctionDescriptor,
  FunctionIdentity,
  FunctionKind,
  FunctionSpec,
  LifecycleState,
  Reason,
  Visibility,
} from './types.js';

/** Base class of controlled functions. The driver's controlling function does the work and tells it by {@link BaseFunction.advance}. */
export abstract class BaseFunction implements ControlledFunction {
  readonly kind: FunctionKind;
  readonly #controlling: ControllingFunction;
  #uuid: string;
  #name: string;
  #spec: FunctionSpec;
  #state: LifecycleState = 'absent';
  #exposure: ExposureName = 'none';
  #channel: StateChannel | undefined;
  #sources: readonly DirtySource[] | undefined;
  #doubt: Doubt | undefined;
  #closed = false;

  constructor(controlling: ControllingFunction, identity: FunctionIdentity, spec: FunctionSpec) {
    this.#controlling = controlling;
    this.kind = spec.kind;
    this.#uuid = checkUuid(identity.uuid);
    this.#name = identity.name;
    this.#spec = { ...spec, uuid: this.#uuid, name: this.#name };
  }

  /** Makes its one channel. */
  protected abstract openChannel(): StateChannel;
  /** Makes its dirty sources. */
  protected abstract openDirtySources(): readonly DirtySource[];
  abstract descriptor(options?: WaitOptions): Promise<FunctionDescriptor>;
  /** The reasons that the device gives; those of the lifecycle are added here. */
  protected abstract explainDevice(options?: ExplainOptions): Promise<readonly Reason[]>;

  get uuid(): string {
    return this.#uuid;
  }

  get name(): string {
    return this.#name;
  }

  get state(): LifecycleState {
    return this.#state;
  }

  get exposure(): ExposureName {
    return this.#exposure;
  }

  get spec(): Readonly<FunctionSpec> {
    return this.#spec;
  }

  get doubt(): Doubt | undefined {
    return this.#doubt;
  }

  setDoubt(doubt: Doubt | undefined): void {
    this.#doubt = doubt;
  }

  /** For the driver: checks that `to` can follow. */
  checkArc(to: LifecycleState): void {
    checkLifecycleArc(this, this.#state, to);
  }

  /** For the driver: the function is in `to` now, and has what `changes` says. */
  advance(to: LifecycleState, changes: Partial<FunctionSpec> = {}): void {
    this.checkArc(to);
    this.#state = to;
    this.#spec = { ...this.#spec, ...changes };
    if (changes.expose !== undefined) this.#exposure = changes.expose;
    if (to === 'released' || to === 'lost') this.#exposure = 'none';
  }

  channel(): StateChannel {
    this.#checkUsable();
    this.#channel ??= this.openChannel();
    return this.#channel;
  }

  dirtySources(): readonly DirtySource[] {
    this.#checkUsable();
    this.#sources ??= this.openDirtySources();
    return this.#sources;
  }

  async explain(options?: ExplainOptions): Promise<readonly Reason[]> {
    if (this.#state === 'released') {
      return [{ code: 'function-released', message: `${this.name} was released`, mend: 'provision a function' }];
    }
    if (this.#state === 'lost') {
      return [
        {
          code: 'function-lost',
          message: `${this.name} was lost with the process that held it`,
          mend: 'provision it again, or recover on the side that it went to',
        },
      ];
    }
    const doubt = this.#doubt;
    const inDoubt = doubt !== undefined && !(await doubt.settled()) ? [inDoubtReason(this.name, doubt.session)] : [];
    const reasons = [...inDoubt, ...(await this.explainDevice(options))];
    if (this.spec.migration === false || this.#state === 'provisioned' || this.#state === 'configured') {
      reasons.push({
        code: 'migration-not-enabled',
        message: `migration of ${this.name} is not enabled`,
        mend: 'enable it: towline configure --migration on, or controlling.enableMigration(fn)',
      });
    }
    return reasons;
  }

  configure(config: FunctionConfig, options?: WaitOptions): Promise<void> {
    return this.#controlling.configure(this, config, options);
  }

  expose(exposure: ExposureName, options?: ExposeOptions): Promise<void> {
    return this.#controlling.expose(this, exposure, options);
  }

  async rateLimit(limit: RateLimit | null, options?: WaitOptions): Promise<void> {
    if (this.#controlling.rateLimit !== undefined) return this.#controlling.rateLimit(this, limit, options);
    if (limit === null) return;
    throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `${this.name} can't be limited: ${this.#noRateLimit()}`, {
      function: this.uuid,
    });
  }

  async cannotRateLimit(): Promise<string | undefined> {
    const { cannotRateLimit, rateLimit } = this.#controlling;
    if (cannotRateLimit !== undefined) return this.#controlling.cannotRateLimit?.(this);
    return rateLimit === undefined ? this.#noRateLimit() : undefined;
  }

  async detachExposure(): Promise<ExposureHandover> {
    return this.#transferable().detach();
  }

  async adoptExposure(handover: ExposureHandover): Promise<void> {
    await this.#transferable().adopt(handover);
  }

  async resumeExposure(): Promise<void> {
    await this.#transferable().resume();
  }

  async surrenderExposure(): Promise<void> {
    await this.#transferable().surrender();
    // Nothing of it is left that could be hidden.
    await this.expose('none');
  }

  #transferable(): Required<Pick<Visibility, 'detach' | 'adopt' | 'resume' | 'surrender'>> {
    const { visibility }: ControlledFunction = this;
    const how = visibility?.[this.#exposure];
    const { detach, adopt, resume, surrender } = typeof how === 'object' ? how : ({} as Partial<Visibility>);
    if (detach === undefined || adopt === undefined || resume === undefined || surrender === undefined) {
      throw new TowlineError('ERR_TOWLINE_EXPOSURE', `exposure ${this.#exposure} can't be passed to another process`, {
        function: this.uuid,
      });
    }
    return { detach, adopt, resume, surrender };
  }

  migrate(options: MigrateOptions): Migration {
    return migrate(this, options);
  }

  release(options?: WaitOptions): Promise<void> {
    return this.#controlling.release(this, options);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const source of this.#sources ?? []) await source.close();
    await this.#channel?.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #noRateLimit(): string {
    return `the driver ${this.#controlling.driver} has no rate limit`;
  }

  #checkUsable(): void {
    if (this.#closed) throw new TowlineError('ERR_TOWLINE_CLOSED', `${this.name} is closed`, { function: this.uuid });
    if (this.#state === 'released' || this.#state === 'lost') {
      throw new TowlineError('ERR_TOWLINE_STATE', `${this.name} is ${this.#state}`, {
        function: this.uuid,
        state: this.#state,
      });
    }
  }
}
